# SPDX-License-Identifier: Apache-2.0
"""Everything that must hold before the first epoch: cases, unlabeled scans, labeled voxel counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.installation import notes_on_torch
from nnunet_dhc.nnunet.splits.fold_cases import SPLITS_FILE, FoldCases
from nnunet_dhc.nnunet.splits.labeled_counts import classes_without_labels, labeled_voxel_counts
from nnunet_dhc.nnunet.splits.stale_preprocessing import current_cases
from nnunet_dhc.nnunet.splits.strict_plans import note_on_shared_statistics
from nnunet_dhc.nnunet.training.cascade import note_on_labels, predict_unlabeled, require_labeled_predictions
from nnunet_dhc.nnunet.training.run_record import RunRecord, content_hash
from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import UnlabeledPool, bring_store_up_to_date
from nnunet_dhc.wording import name_some


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
    def by_role(self) -> dict[str, list[str]]:
        """Labeled, validation and unlabeled cases, as a run's record lists them."""
        return {
            "labeled": list(self.cases.labeled),
            "validation": list(self.cases.validation),
            "unlabeled": list(self.unlabeled),
        }

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes that tell a resumed run whether its cases are still the same; each checkpoint has them."""
        return {
            "split_hash": content_hash([sorted(self.cases.labeled), sorted(self.cases.validation)]),
            "unlabeled_hash": content_hash(sorted(self.unlabeled)),
            "unlabeled_images_hash": content_hash(self.pool.voxels if self.pool else {}),
        }

    def changes_since(self, fingerprint: dict[str, str], recorded: Mapping[str, Sequence[str]]) -> str | None:
        """A warning that names which cases are other than those of an earlier fingerprint, None if none are.

        Args:
            fingerprint: Hashes of the checkpoint.
            recorded: `by_role` when the run was last started, empty if its record is gone.
        """
        now = self.fingerprint
        changed = [name.removesuffix("_hash") for name in now if fingerprint.get(name, now[name]) != now[name]]
        if not changed:
            return None
        if "unlabeled" in changed:
            changed = [name for name in changed if name != "unlabeled_images"]  # other cases, so other images
        if changed == ["unlabeled_images"]:
            return (
                "an unlabeled case has another image than when this run started, under the same name; it goes on with "
                "the new one"
            )
        differences = [
            f"{role} {what} {name_some(cases, 5)}"
            for role, cases_now in self.by_role.items() if role in recorded
            for what, cases in (("now with", sorted(set(cases_now) - set(recorded[role]))),
                                ("now without", sorted(set(recorded[role]) - set(cases_now)))) if cases
        ]
        return (
            f"the list of cases ({', '.join(changed)}) is not what this run started with"
            + (f" ({'; '.join(differences)})" if differences else "") + "; it goes on with the new one"
        )


def refuse_trained_validation_cases(
    validation: Sequence[str], record: RunRecord, resume: str
) -> None:
    """Raise if a validation case was a training case of this run, at its last start or an earlier one.

    Args:
        validation: Cases that are to be validated now.
        record: What the run has written about itself.
        resume: The command that continues.
    """
    of_all_starts = record.cases_of_all_starts
    trained_on = {*of_all_starts.get("labeled", ()), *of_all_starts.get("unlabeled", ())}
    leaking = sorted(trained_on & set(validation).difference(record.cases.get("validation", ())))
    if leaking:
        raise UserError(
            f"{SPLITS_FILE} now has {name_some(leaking)} for validation, on which this run has trained, so its "
            f"scores would be no scores on unseen images: put the split file that it started with back and "
            f"continue with: {resume}; or start anew without --c"
        )


def prepare_training_data(trainer: nnUNetTrainer, cases: FoldCases, uses_unlabeled: bool) -> TrainingData:
    """Preprocess what is new among the unlabeled scans, count the labeled voxels, and collect warnings.

    Raises:
        UserError: Bad input of any kind; see docs/reference/messages.md.
    """
    pool = previous_stage_folder = None
    folder = trainer.preprocessed_dataset_folder
    both = (*cases.labeled, *cases.validation)
    preprocessed = current_cases(folder, both, trainer.plans_manager, trainer.configuration_name, trainer.dataset_json)
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
    counts = labeled_voxel_counts({case: preprocessed[case] for case in cases.labeled}, trainer.label_manager)
    warnings = [f"{found.subject}: {found.text}; {found.remedy}" for found in notes_on_torch()]
    warnings += [cases.note_on_left_out] if cases.note_on_left_out else []
    warnings += pool.notes if pool else []
    shared = note_on_shared_statistics(trainer.plans_manager.plans, cases)
    warnings += [shared] if shared else []
    if trainer.is_cascaded:
        warnings += note_on_labels(cases)
    missing = classes_without_labels(counts, trainer.label_manager)
    if missing:
        warnings.append(
            f"no labeled case of this fold contains class {', '.join(map(str, missing))}: it cannot be "
            'learned. Label a case that has it, or put one into the fold\'s key "train"'
        )
    return TrainingData(cases, pool, counts, tuple(warnings), previous_stage_folder)
