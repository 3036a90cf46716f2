# SPDX-License-Identifier: Apache-2.0
"""The preprocessed validation cases of a trained fold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.dataset_places import locate_dataset
from nnunet_dhc.nnunet.host.preprocessing_hash import preprocessing_hash
from nnunet_dhc.nnunet.network.model_folder import ModelFolder
from nnunet_dhc.nnunet.splits.fold_cases import SPLITS_FILE, read_fold_cases
from nnunet_dhc.nnunet.splits.preprocessed_cases import dataset_class_of, preprocessed_cases
from nnunet_dhc.nnunet.splits.remembered_cases import Source, source_of
from nnunet_dhc.nnunet.splits.stale_preprocessing import preprocessed_otherwise
from nnunet_dhc.nnunet.training.run_record import RunRecord


@dataclass(frozen=True)
class LoadedCase:
    """Attributes: image with the previous stage, if there is one, (c, *spatial); reference, (*spatial); properties."""

    image: Tensor
    reference: Tensor
    properties: dict[str, Any]


class ValidationCases:
    """Preprocessed validation cases of a fold.

    Args:
        model: The trained model.
        fold: Fold number or "all".
        remedy: What else the user can do where the preprocessed data are gone; ends the message.

    Raises:
        UserError: The preprocessed cases or the references are not there, or the split file has changed since.
    """

    def __init__(self, model: ModelFolder, fold: int | str, remedy: str) -> None:
        self.fold = fold
        self.plans_manager, self.configuration_manager = model.managers()
        self.dataset_json = model.dataset_json
        self.label_manager = self.plans_manager.get_label_manager(self.dataset_json)
        base = locate_dataset(model.dataset).preprocessed
        folder = self.folder = base / self.configuration_manager.data_identifier
        self.references = base / "gt_segmentations"
        for needed in (folder, self.references):
            if not needed.is_dir():
                raise UserError(f"{needed} is not there, and the validation cases are to be predicted: {remedy}")
        dataset_class = dataset_class_of(folder, remedy)
        known = dataset_class.get_identifiers(str(folder))
        self.identifiers = sorted(read_fold_cases(base, known, fold).validation)
        recorded = RunRecord(model.fold_folder(fold)).cases
        if recorded and sorted(recorded["validation"]) != self.identifiers:
            raise UserError(
                f"{base / SPLITS_FILE} has other validation cases of fold {fold} than this training had "
                f"({', '.join(recorded['validation'][:3])} ...), which may have been trained on: put that split file "
                "back, or train again"
            )
        self._refuse_other_plans(model, folder)
        previous = self.configuration_manager.previous_stage_name
        if previous is not None:
            stage = f"{model.trainer}__{model.plans_identifier}__{previous}"
            previous = str(model.path.parent / stage / "predicted_next_stage" / model.configuration)
        self.dataset = dataset_class(str(folder), list(self.identifiers), folder_with_segs_from_previous_stage=previous)

    def _refuse_other_plans(self, model: ModelFolder, folder: Path) -> None:
        """The data may have been planned anew since; nothing is noted of files that weren't read before."""
        preprocessing = preprocessing_hash(self.plans_manager, self.configuration_manager, self.dataset_json)
        cases = preprocessed_cases(folder, self.identifiers)
        stale = preprocessed_otherwise(folder, cases, self.plans_manager, model.configuration, preprocessing)
        if stale:
            raise UserError(
                f"{stale} than the model in {model.path} was trained with: train again, or preprocess with the plans "
                "of that model"
            )

    def source(self, case: str) -> Source:
        """What the case is known by: its reference and its preprocessed image."""
        ending = self.dataset_json["file_ending"]
        images = [path for end in (".b2nd", ".npz") if (path := self.folder / f"{case}{end}").is_file()]
        return source_of([self.references / f"{case}{ending}", *images])

    def load(self, case: str) -> LoadedCase:
        """As nnU-Net's final validation gives it to the network."""
        image, reference, segmentation, properties = self.dataset.load_case(case)
        image = np.asarray(image[:])
        if segmentation is not None:
            one_hot = convert_labelmap_to_one_hot(segmentation[:], self.label_manager.foreground_labels, image.dtype)
            image = np.vstack((image, one_hot))
        image = torch.from_numpy(np.ascontiguousarray(image))
        return LoadedCase(image, torch.from_numpy(np.asarray(reference[:])[0]), properties)
