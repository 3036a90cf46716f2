# SPDX-License-Identifier: Apache-2.0
"""Every refused input and every breakdown: how it is made, by which command it is met, and what the user must read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from console import PREPROCESS, TRAIN, Outcome, Running
from fault_makers import breakdowns, checkpoints, folds, live, scans
from tiny_data import TinyDataset

PREPROCESS_FOLD_0 = (*PREPROCESS, "-f", "0")


@dataclass(frozen=True)
class Fault:
    """One row of the table of messages.

    Attributes:
        name: What is wrong, in the user's words.
        make: Makes it in a copy of the tiny dataset, gives a function that cleans up, or None; skips the test where the
            system does not permit it.
        needles: Parts of the message: the file or case, and the remedy.
        command: The console command that meets it.
        code: Its exit code.
        wait_for: Text on standard output after which ``meanwhile`` acts on the running command.
        meanwhile: Breaks something in the live process.
        on_stdout: The message is a note on standard output; the command goes on.
        variables: Environment of the command.
    """

    name: str
    make: Callable[[TinyDataset], Callable[[], None] | None]
    needles: tuple[str, ...]
    command: tuple[str, ...] = TRAIN
    code: int = 1
    wait_for: str | None = None
    meanwhile: Callable[[Running], None] | None = None
    on_stdout: bool = False
    variables: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def made(self, dataset: TinyDataset) -> Iterator[None]:
        """Make the fault, and clean up afterwards."""
        undo = self.make(dataset)
        try:
            yield
        finally:
            if undo is not None:
                undo()

    def meet(self, dataset: TinyDataset) -> Outcome:
        """Run the command on a dataset that has the fault."""
        running = Running(dataset, self.command, self.variables)
        try:
            if self.wait_for is not None:
                running.wait_for(self.wait_for)
                self.meanwhile(running)
            outcome = running.finish()
            left = running.left_over()
        finally:
            running.kill()
        assert not left, f"{len(left)} processes are left"
        return outcome

    def message(self, outcome: Outcome) -> str:
        """The line that the user reads."""
        if not self.on_stdout:
            return outcome.last_line
        lines = [re.sub(r"^[\d-]+ [\d:.]+: ", "", line) for line in outcome.out.splitlines()]
        found = [line for line in lines if all(needle in line for needle in self.needles)]
        return found[0] if found else ""


def _bad_scan(name: str, make: Callable[[TinyDataset], None], *needles: str) -> Fault:
    remedy = ("Repair or remove", "--skip-bad")
    return Fault(name, make, (*needles, *remedy), PREPROCESS, 2)


WORKERS = {"nnUNet_n_proc_DA": "2"}

FAULTS: tuple[Fault, ...] = (
    Fault("no unlabeled case", scans.none, ("Put scans", "imagesUn", "splits_final.json")),
    _bad_scan("a channel is missing", scans.missing_channel, "imagesUn/scan_9", "lacks the channel _0000"),
    _bad_scan("one channel too many", scans.extra_channel, "imagesUn/scan_0", "extra channel", "dataset.json"),
    _bad_scan("another file ending", scans.wrong_ending, "scan_9_0000.mha", "does not end in .nii.gz"),
    _bad_scan("no channel number", scans.no_channel_number, "scan_9.nii.gz", "rename it to scan_9_0000.nii.gz"),
    _bad_scan("no image at all", scans.unreadable, "imagesUn/scan_9", "no readable NIfTI"),
    _bad_scan("a truncated file", scans.truncated, "imagesUn/scan_0", "is truncated"),
    _bad_scan("NaN", scans.nan, "imagesUn/scan_9", "has 5 NaN voxels"),
    _bad_scan("infinite voxels", scans.infinite, "imagesUn/scan_9", "has 3 infinite voxels"),
    _bad_scan("channels of another size", scans.other_geometry, "imagesUn/scan_0", "channels that differ in shape"),
    _bad_scan("a constant image", scans.constant, "imagesUn/scan_9", "is constant"),
    _bad_scan("a 2D image in a 3D dataset", scans.flat, "imagesUn/scan_9", "is 2D", "the dataset is 3D"),
    Fault(
        "a bad scan at the start of training", scans.truncated, ("imagesUn/scan_0", "is truncated", "Repair or remove")
    ),
    Fault(
        "an unlabeled scan with the name of a training case", scans.named_as("case_0"),
        ("case_0", "imagesUn", "training case", "remove it"), PREPROCESS_FOLD_0, 2,
    ),
    Fault(
        "an unlabeled scan with the name of a validation case", scans.named_as("case_2"),
        ("case_2", "imagesUn", "validation case", "remove it"), PREPROCESS_FOLD_0, 2,
    ),
    Fault(
        "an unlabeled scan that is a labeled one under another name", scans.copy_of_labeled,
        ("imagesUn/scan_9 = training case case_0", "Remove them"), PREPROCESS_FOLD_0, 2,
    ),
    Fault(
        "a scan in imagesUn that is also a case of the key unlabeled", scans.named_as("case_3"),
        ("case_3", "imagesUn", "splits_final.json", "remove it"), PREPROCESS_FOLD_0, 2,
    ),
    Fault("a fold without labeled cases", folds.no_labeled, ("splits_final.json", "no labeled case", '"train"')),
    Fault(
        "a fold without validation cases", folds.no_validation, ("splits_final.json", "no validation case", '"val"'),
        PREPROCESS_FOLD_0, 2,
    ),
    Fault(
        "a fold that the split file does not have", folds.usual, ("Fold 7", "splits_final.json", "choose one"),
        (*TRAIN[:3], "7", *TRAIN[4:]),
    ),
    Fault(
        "an unknown case in the split file", folds.unknown_case,
        ("splits_final.json", "case_77", '"train"', "correct the list"),
    ),
    Fault(
        "a case for training and for validation", folds.overlapping,
        ("splits_final.json", "case_0", "keep it in one of them"), PREPROCESS_FOLD_0, 2,
    ),
    Fault(
        "a case that is labeled and unlabeled", folds.leaking,
        ("splits_final.json", "case_1", "leak", "keep it in one of them"), PREPROCESS_FOLD_0, 2,
    ),
    Fault(
        "a broken split file", folds.broken_json, ("splits_final.json", "line 1", "repair it"), PREPROCESS_FOLD_0, 2
    ),
    Fault(
        "fewer than five labeled cases", folds.three_labeled, ("3 labeled cases", "splits_final.json", "3 folds"),
        code=143, wait_for="Epoch 1", meanwhile=live.terminate, on_stdout=True,
    ),
    Fault(
        "a class that no labeled case has", folds.class_without_labels, ("WARNING", "small", "Label a case"),
        code=130, wait_for="Epoch 1", meanwhile=live.interrupt, on_stdout=True, variables=WORKERS,
    ),
    Fault(
        "plans made again after the unlabeled cases were preprocessed", scans.other_plans,
        ("Preprocessing 3 unlabeled cases", "made with other plans"), PREPROCESS, 0, on_stdout=True,
    ),
    Fault(
        "plans made again, and the unlabeled scans are gone", scans.other_plans_without_scans,
        ("scan_0", "not preprocessed with these plans", "bring the images back"), PREPROCESS, 2,
    ),
    Fault(
        "labeled cases were preprocessed with another spacing", scans.other_spacing,
        ("case_0", "another spacing than nnUNetPlansTiny has", "nnUNetv2_preprocess -d Dataset999_Tiny"), PREPROCESS, 2,
    ),
    Fault(
        "labeled cases were preprocessed with another normalization", scans.other_normalization,
        ("case_0", "other settings", "than nnUNetPlansTiny has", "nnUNetv2_preprocess -d Dataset999_Tiny"),
        PREPROCESS, 2,
    ),
    Fault(
        "labeled cases are not preprocessed", breakdowns.labeled_not_preprocessed,
        ("nnUNetPlans_3d_fullres", "nnUNetv2_preprocess -d Dataset999_Tiny"),
    ),
    Fault("--c without a checkpoint", folds.usual, ("--c", "no checkpoint", "without --c"), (*TRAIN, "--c")),
    Fault(
        "--c with a checkpoint of another trainer", checkpoints.foreign,
        ("checkpoint_latest.pth", "nnUNetTrainer", "nnunet_dhc import"), (*TRAIN, "--c"),
    ),
    Fault(
        "--c with a truncated checkpoint", checkpoints.truncated,
        ("checkpoint_latest.pth", "cannot be read", "without --c"), (*TRAIN, "--c"),
    ),
    Fault(
        "an unknown setting in the plans", breakdowns.unknown_setting,
        ("nnUNetPlansTiny", "lambda_maximum", "lambda_max"),
    ),
    Fault(
        "a setting out of range", breakdowns.bad_setting,
        ("lambda_max = -1", "nnunet_dhc configure -d", "--set lambda_max=1.0", "train with -p"),
    ),
    Fault(
        "a seed that is no number", folds.usual, ("nnUNet_dhc_seed='seven'", "correct or unset"),
        variables={"nnUNet_dhc_seed": "seven"},
    ),
    Fault(
        "another process is preprocessing", breakdowns.lock_held,
        ("Another process is preprocessing", "waiting for it"), PREPROCESS, 0,
        wait_for="Another process", meanwhile=breakdowns.release_lock, on_stdout=True,
    ),
    Fault(
        "a second training in the same results folder", breakdowns.results_claimed,
        ("Another training is writing to", "fold_0", "wait for it or stop it"),
    ),
    Fault(
        "the disk is full while preprocessing", breakdowns.small_disk_for_unlabeled,
        ("The disk is full", "nnUNetPlans_3d_fullres_unlabeled", "free space"), PREPROCESS, 2,
    ),
    Fault(
        "the disk is full while a checkpoint is written", breakdowns.small_disk_for_results,
        ("fold_0", "checkpoint is kept", "Free ", "--c"), wait_for="Epoch 1", meanwhile=breakdowns.fill_results,
    ),
    Fault("the results folder is read-only", breakdowns.read_only_results, ("fold_0", "give this user the permission")),
    Fault(
        "losses that are no numbers, many in a row", breakdowns.non_finite_images,
        ("not finite in 3 steps in a row", "cases: case_", "last good checkpoint", "Check these images"),
    ),
    Fault(
        "SIGTERM while preprocessing", scans.many, ("Stopped by SIGTERM", "no checkpoint yet", "Start again with"),
        code=143, wait_for="Preprocessing", meanwhile=live.terminate,
    ),
    Fault(
        "SIGTERM while training", live.prepare, ("Stopped by SIGTERM", "Continue with: nnUNetv2_train 999", "--c"),
        code=143, wait_for="Epoch 1", meanwhile=live.terminate, variables=WORKERS,
    ),
    Fault(
        "Ctrl-C while training", live.prepare, ("Stopped by Ctrl-C", "Continue with: nnUNetv2_train 999", "--c"),
        code=130, wait_for="Epoch 1", meanwhile=live.interrupt, variables=WORKERS,
    ),
    Fault(
        "SIGTERM in the final validation", live.prepare_short, ("Stopped by SIGTERM in the final validation", "--c"),
        code=143, wait_for="predicting", meanwhile=live.terminate,
    ),
    Fault(
        "a data worker dies", live.prepare, ("ended by SIGKILL", "nnUNet_n_proc_DA", "continue with", "--c"),
        wait_for="Epoch 1", meanwhile=live.kill_a_worker, variables=WORKERS,
    ),
    Fault(
        "a worker of the final validation dies", live.prepare_short,
        ("final validation", "ended by SIGKILL", "nnUNet_def_n_proc", "--c"),
        wait_for="predicting", meanwhile=live.kill_validation_workers,
    ),
    Fault(
        "a preprocessed labeled file breaks while training", live.prepare,
        ("case_0.b2nd", "damaged", "nnUNetv2_preprocess -d", "continue with", "--c"),
        wait_for="Epoch 1", meanwhile=live.truncate_labeled, variables=WORKERS,
    ),
    Fault(
        "a preprocessed unlabeled file breaks while training", live.prepare,
        ("scan_0.b2nd", "damaged", "delete it", "--c"),
        wait_for="Epoch 1", meanwhile=live.truncate_unlabeled,
    ),
    Fault(
        "the data folder goes away while training", live.prepare,
        ("nnUNetPlans_3d_fullres", "bring it back", "continue with", "--c"),
        wait_for="Epoch 1", meanwhile=live.move_data_away, variables=WORKERS,
    ),
)
