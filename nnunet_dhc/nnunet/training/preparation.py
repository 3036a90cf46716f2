# SPDX-License-Identifier: Apache-2.0
"""Everything that must hold before the first epoch: cases, unlabeled scans, labeled voxel counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
from nnunet_dhc.nnunet.splits.labeled_counts import classes_without_labels, labeled_voxel_counts
from nnunet_dhc.nnunet.training.cascade import note_on_labels, predict_unlabeled, require_labeled_predictions
from nnunet_dhc.nnunet.training.run_record import content_hash
from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import UnlabeledPool, bring_store_up_to_date


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on.

    Attributes:
        cases: Labeled, validation and (from the split file) unlabeled identifiers of the fold.
        pool: The preprocessed unlabeled cases, None for a trainer that uses none.
        labeled_counts: Voxels per class in the labeled cases, (k,) int64.
        warnings: Lines for the log.
        previous_stage_folder: First-stage predictions of the unlabeled cases, None without a cascade.
    """

    cases: FoldCases
    pool: UnlabeledPool | None
    labeled_counts: np.ndarray
    warnings: tuple[str, ...]
    previous_stage_folder: str | None = None

    @property
    def unlabeled(self) -> tuple[str, ...]:
        return tuple(self.pool.identifiers) if self.pool else ()

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hashes that tell a resumed run whether its cases are still the same."""
        return {
            "split_hash": content_hash([self.cases.labeled, self.cases.validation]),
            "unlabeled_hash": content_hash(sorted(self.unlabeled)),
        }

    def changes_since(self, fingerprint: dict[str, str]) -> str | None:
        """A warning that names which cases are other than those of an earlier fingerprint, None if none are."""
        now = self.fingerprint
        changed = [name.removesuffix("_hash") for name in now if fingerprint.get(name) != now[name]]
        if not changed:
            return None
        return (
            f"the list of cases ({', '.join(changed)}) is not what this run started with; it goes on with the new one"
        )


def prepare_training_data(trainer: nnUNetTrainer, cases: FoldCases, uses_unlabeled: bool) -> TrainingData:
    """Preprocess what is new among the unlabeled scans, count the labeled voxels, and collect warnings.

    Raises:
        UserError: Bad input of any kind; see docs/reference/messages.md.
    """
    pool = previous_stage_folder = None
    if trainer.is_cascaded:
        require_labeled_predictions(trainer, cases)
    if uses_unlabeled:
        pool = bring_store_up_to_date(
            trainer.plans_manager.plans,
            trainer.configuration_name,
            trainer.dataset_json,
            cases,
            num_processes=default_num_processes,
            say=trainer.print_to_log_file,
        )
        if trainer.is_cascaded:
            previous_stage_folder = predict_unlabeled(trainer, cases, pool, default_num_processes)
    counts = labeled_voxel_counts(trainer.preprocessed_dataset_folder, list(cases.labeled), trainer.label_manager)
    warnings = list(pool.notes) if pool else []
    if trainer.is_cascaded:
        warnings += note_on_labels(cases)
    missing = classes_without_labels(counts, trainer.label_manager)
    if missing:
        warnings.append(
            f"no labeled case of this fold contains class {', '.join(map(str, missing))}: it cannot be "
            'learned. Label a case that has it, or put one into the fold\'s key "train"'
        )
    return TrainingData(cases, pool, counts, tuple(warnings), previous_stage_folder)
