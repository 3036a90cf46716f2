# SPDX-License-Identifier: Apache-2.0
"""Preprocess the unlabeled cases of several configurations and folds, from names as the command line gets them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.dataset_places import locate_dataset, read_dataset_json, read_plans
from nnunet_dhc.nnunet.host.raw_images import training_identifiers
from nnunet_dhc.nnunet.splits.fold_cases import SPLITS_FILE, FoldCases, number_of_folds, read_fold_cases
from nnunet_dhc.nnunet.splits.preprocessed_cases import dataset_class_of
from nnunet_dhc.nnunet.splits.stale_preprocessing import current_cases
from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import UnlabeledPool, bring_store_up_to_date


def preprocess_ahead(
    dataset: str | int,
    configurations: Sequence[str],
    plans_identifier: str = "nnUNetPlans",
    folds: Sequence[str | int] | None = None,
    *,
    num_processes: int | None = None,
    skip_bad: bool = False,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[UnlabeledPool]:
    """Bring the store of each configuration up to date.

    Args:
        dataset: Dataset id or name.
        configurations: For example ["2d", "3d_fullres"].
        plans_identifier: Name of the plans.
        folds: Fold numbers or "all"; None joins the unlabeled cases of every fold of the split file.
        num_processes: Default: nnU-Net's own number.
        skip_bad: Record bad scans as excluded and go on.
        show_progress: Show a progress bar.
        say: Gets each message.

    Raises:
        UserError: As ``bring_store_up_to_date``, or the dataset, plans or configuration is unknown.
    """
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if num_processes is not None and num_processes < 0:
        raise UserError(f"-np {num_processes} is no number of processes: use 0 or more.")
    base = dataset_folder(dataset)
    plans = read_plans(base, plans_identifier)
    dataset_json = read_dataset_json(base / "dataset.json")
    plans_manager = PlansManager(plans)
    unknown = [name for name in configurations if name not in plans_manager.available_configurations]
    if unknown:
        raise UserError(
            f"{base / f'{plans_identifier}.json'} has no configuration {unknown[0]}: choose from "
            f"{', '.join(plans_manager.available_configurations)}."
        )
    pools = []
    for name in configurations:
        data_identifier = plans_manager.get_configuration(name).data_identifier
        cases = folds_to_prepare(base, _identifiers(base, data_identifier, dataset_json), folds)
        _refuse_stale(base / data_identifier, cases, plans_manager, name, dataset_json)
        pool = bring_store_up_to_date(
            plans_manager,
            name,
            dataset_json,
            cases,
            default_num_processes if num_processes is None else num_processes,
            skip_bad,
            show_progress,
            preprocessed_dataset_folder_base=base,
            say=say,
        )
        for note in pool.notes:
            say(note)
        say(
            f"{name}: {len(pool.identifiers)} unlabeled cases are ready in {pool.folder} ({pool.n_from_images_un} from "
            f"imagesUn, {pool.n_from_split} from {SPLITS_FILE})."
        )
        pools.append(pool)
    return pools


def folds_to_prepare(
    base: Path, identifiers: Sequence[str], folds: Sequence[str | int] | None
) -> list[FoldCases]:
    """The folds asked for; without a wish, every fold of the split file (or all cases where there is none yet)."""
    if folds is None:
        if not (base / SPLITS_FILE).is_file():
            folds = ["all"]
        else:
            folds = list(range(number_of_folds(base, identifiers)))
    return [read_fold_cases(base, identifiers, fold) for fold in folds]


def dataset_folder(dataset: str | int) -> Path:
    """Folder of a dataset in ``nnUNet_preprocessed``."""
    base = locate_dataset(dataset).preprocessed
    if not base.is_dir():
        raise UserError(f"{base} does not exist: run nnUNetv2_plan_and_preprocess -d {dataset} first.")
    return base


def _refuse_stale(
    folder: Path, cases: Sequence[FoldCases], plans_manager: Any, configuration: str, dataset_json: dict[str, Any]
) -> None:
    if folder.is_dir():  # or nnU-Net hasn't preprocessed yet
        labeled = {case for fold in cases for case in (*fold.labeled, *fold.validation)}
        there = [case for case in labeled if any((folder / f"{case}{end}").is_file() for end in ("_seg.b2nd", ".npz"))]
        current_cases(folder, there, plans_manager, configuration, dataset_json)


def _identifiers(base: Path, data_identifier: str, dataset_json: dict[str, Any]) -> list[str]:
    """Labeled cases: those that nnU-Net preprocessed, or the raw ones where it hasn't yet."""
    folder = base / data_identifier
    if folder.is_dir() and any(folder.iterdir()):
        remedy = "delete it, or run nnUNetv2_preprocess first"
        return sorted(dataset_class_of(folder, remedy).get_identifiers(str(folder)))
    raw_root = os.environ.get("nnUNet_raw")
    return training_identifiers(Path(raw_root) / base.name, dataset_json) if raw_root else []
