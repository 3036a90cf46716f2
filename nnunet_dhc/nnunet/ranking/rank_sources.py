# SPDX-License-Identifier: Apache-2.0
"""Where the scans to rank come from: the preprocessed unlabeled cases of a dataset, or any folder of scans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.dataset_places import locate_dataset, read_plans
from nnunet_dhc.nnunet.host.preprocessing_hash import preprocessing_hash
from nnunet_dhc.nnunet.host.raw_images import IMAGES_UN, list_image_folder
from nnunet_dhc.nnunet.network.model_folder import ModelFolder
from nnunet_dhc.nnunet.splits.fold_cases import read_fold_cases
from nnunet_dhc.nnunet.splits.preprocessed_cases import dataset_class_of
from nnunet_dhc.nnunet.training.run_record import RunRecord
from nnunet_dhc.nnunet.unlabeled.case_preprocessing import CaseJob, CaseResult, CaseTask, preprocessed_arrays
from nnunet_dhc.nnunet.unlabeled.unlabeled_loader import read_case
from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import bring_store_up_to_date
from nnunet_dhc.nnunet.unlabeled.unlabeled_store import UnlabeledStore


class LeftOut(Exception):
    """The scan can't be ranked; the text says why."""


class CaseSource(ABC):
    """Scans by identifier, preprocessed on demand.

    Attributes:
        identifiers: In a fixed order.
        left_out: Why a scan is not ranked, by identifier.
        description: For the page.
    """

    identifiers: list[str]
    left_out: dict[str, str]
    description: str

    @abstractmethod
    def made_from(self, identifier: str) -> list[Any]:
        """What changes when the scan or its preprocessing does; JSON values."""

    @abstractmethod
    def load(self, identifier: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Preprocessed image (c, x, y, z), float32, and properties.

        Raises:
            LeftOut: The scan is bad.
        """


class StoreCases(CaseSource):
    """The dataset's own unlabeled cases: those of ``imagesUn`` and of the key "unlabeled" of the folds.

    A case that one of the folds trains on or validates with has a label already, so it is not ranked, whether that is
    so in the present split file or was when the fold was trained.
    """

    def __init__(
        self, model: ModelFolder, folds: Sequence[int | str], num_processes: int, say: Callable[[str], None]
    ) -> None:
        _, configuration = model.managers()
        base = locate_dataset(model.dataset).preprocessed
        labeled_folder = base / configuration.data_identifier
        remedy = "bring the preprocessed data back, or rank a folder of scans with -i"
        if not labeled_folder.is_dir():
            raise UserError(f"{labeled_folder} is not there, which says which cases have labels: {remedy}")
        _refuse_other_plans(model, base)
        known = dataset_class_of(labeled_folder, remedy).get_identifiers(str(labeled_folder))
        fold_cases = [read_fold_cases(base, known, fold) for fold in folds]
        pool = bring_store_up_to_date(
            model.plans, model.configuration, model.dataset_json, fold_cases, num_processes,
            preprocessed_dataset_folder_base=base, say=say,
        )
        with_label = {case for fold in fold_cases for case in (*fold.labeled, *fold.validation)}
        self.folder = pool.folder
        unlabeled = set(pool.identifiers) - with_label
        had_label = unlabeled & _recorded_with_label(model, folds)
        self.identifiers = sorted(unlabeled - had_label)
        self.left_out = {**pool.excluded, **dict.fromkeys(had_label, "had a label when this model was trained")}
        self.description = "unlabeled cases of the dataset"
        self._entries = UnlabeledStore(pool.folder).entries

    def made_from(self, identifier: str) -> list[Any]:
        entry = self._entries[identifier]
        return [entry.voxels, entry.preprocessing, entry.shape]

    def load(self, identifier: str) -> tuple[np.ndarray, dict[str, Any]]:
        return read_case(self.folder, identifier)


class FolderCases(CaseSource):
    """Scans named as nnU-Net's: ``<case>_0000<ending>``, one file per channel; preprocessed when they are needed."""

    def __init__(self, model: ModelFolder, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"-i {folder} is not a folder: give the folder of the scans to rank")
        ending = model.dataset_json["file_ending"]
        listed = list_image_folder(folder, model.dataset_json)
        self._cases = {name: case for name, case in listed.items() if case.problem is None}
        self.left_out = {name: case.problem for name, case in listed.items() if case.problem is not None}
        if not self._cases:
            reason = f" ({next(iter(self.left_out))} {next(iter(self.left_out.values()))})" if self.left_out else ""
            raise UserError(f"-i {folder} has no scan named <case>_0000{ending}{reason}: rename them as nnU-Net asks")
        self.identifiers = sorted(self._cases)
        self.description = f"scans of the folder {folder.name}"
        plans_manager, configuration = model.managers()
        self._hash = preprocessing_hash(plans_manager, configuration, model.dataset_json)
        self._job = CaseJob(model.plans, model.configuration, model.dataset_json, folder="", with_nonzero_mask=False)

    def made_from(self, identifier: str) -> list[Any]:
        return [self._hash, *map(list, self._cases[identifier].sources)]

    def load(self, identifier: str) -> tuple[np.ndarray, dict[str, Any]]:
        result = CaseResult(identifier)
        arrays = preprocessed_arrays(self._job, CaseTask(self._cases[identifier]), result)
        if arrays is None:
            raise LeftOut(result.bad)
        image, _, properties = arrays
        return image, properties


def _refuse_other_plans(model: ModelFolder, base: Path) -> None:
    """Raise if the unlabeled cases would be preprocessed anew for the model, perhaps under a training that reads them.

    Raises:
        UserError: The plans have been made anew since the model was trained.
    """
    if not (base / f"{model.plans_identifier}.json").is_file():
        return
    plans = [PlansManager(content) for content in (model.plans, read_plans(base, model.plans_identifier))]
    hashes = {
        preprocessing_hash(of_time, of_time.get_configuration(model.configuration), model.dataset_json)
        if model.configuration in of_time.available_configurations else None
        for of_time in plans
    }
    if len(hashes) > 1:
        raise UserError(
            f"{model.plans_identifier} in {base} preprocesses otherwise than when {model.path} was trained, and the "
            f"unlabeled cases there belong to the plans of now: rank the scans with -i FOLDER/{IMAGES_UN}, or train "
            "again"
        )


def _recorded_with_label(model: ModelFolder, folds: Sequence[int | str]) -> set[str]:
    """Cases that the trainings used with their labels, whatever the split file says now."""
    found = set()
    for fold in folds:
        cases = RunRecord(model.fold_folder(fold)).cases_of_all_starts
        found.update(cases.get("labeled", ()), cases.get("validation", ()))
    return found
