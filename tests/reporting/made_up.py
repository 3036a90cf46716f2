# SPDX-License-Identifier: Apache-2.0
"""Small label maps and results folders for the tests of reporting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_dhc.reporting.collect import Selection, collect_trainings
from nnunet_dhc.reporting.compare import Options, build_comparison

DATASET = "Dataset901_Boxes"
LABELS = {"background": 0, "large_box": 1, "small_box": 2, "rare_box": 3}
SPACING_ZYX = (2.0, 1.0, 1.0)
SHAPE = (8, 16, 16)


def dataset_json(**more):
    return {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 8, "file_ending": ".nii.gz", **more}


def boxes(shift=0, rare=True, small=True):
    """Boxes of 4 x 6 x 6, 3 x 3 x 3 and 1 x 2 x 2 voxels; ``shift`` moves them along the last axis."""
    voxels = np.zeros(SHAPE, dtype=np.uint8)
    voxels[1:5, 1:7, 1 + shift:7 + shift] = 1
    if small:
        voxels[1:4, 9:12, 1 + shift:4 + shift] = 2
    if rare:
        voxels[6, 2:4, 10 + shift:12 + shift] = 3
    return voxels


def write_volume(path: Path, voxels, spacing_zyx=SPACING_ZYX) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing([float(value) for value in spacing_zyx[::-1]])
    sitk.WriteImage(image, str(path))
    return path


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


class ResultsTree:
    """nnU-Net's folders with ``num_cases`` validated cases in each of two folds."""

    def __init__(self, root: Path, num_cases: int = 4) -> None:
        self.root = root
        self.raw, self.preprocessed, self.results = root / "raw", root / "preprocessed", root / "results"
        self.cases = [f"patient_{number:02d}" for number in range(2 * num_cases)]
        self.folds = [self.cases[:num_cases], self.cases[num_cases:]]
        self.labeled = [f"labeled_{number}" for number in range(3)]
        preprocessed = self.preprocessed / DATASET
        write_json(preprocessed / "dataset.json", dataset_json())
        write_json(preprocessed / "splits_final.json",
                   [{"train": self.labeled, "val": fold, "unlabeled": ["u1", "u2"]} for fold in self.folds])
        for index, case in enumerate(self.cases):
            write_volume(preprocessed / "gt_segmentations" / f"{case}.nii.gz", boxes(rare=index != 0))
            write_volume(self.raw / DATASET / "imagesTr" / f"{case}_0000.nii.gz",
                         (boxes() * 60.0 + 20.0).astype(np.float32))

    def model(self, trainer: str, results: Path | None = None) -> Path:
        return (results or self.results) / DATASET / f"{trainer}__nnUNetPlans__3d_fullres"

    def add_stock(self, trainer: str = "nnUNetTrainer", epochs: int = 4, shift: int = 2, results: Path | None = None,
                  mirroring: str = "(0, 1, 2)"):
        """Predictions moved by ``shift`` voxels, the rare box missed in every second case."""
        for fold, cases in enumerate(self.folds):
            folder = self.model(trainer, results) / f"fold_{fold}"
            for index, case in enumerate(cases):
                write_volume(folder / "validation" / f"{case}.nii.gz", boxes(shift=shift, rare=index % 2 == 0))
            write_json(folder / "validation" / "summary.json", {})
            write_json(folder / "debug.json", {"num_iterations_per_epoch": "10", "num_epochs": str(epochs),
                                               "device": "cpu", "batch_size": "2", "torch_version": "2.8.0",
                                               "inference_allowed_mirroring_axes": mirroring})
            (folder / "training_log_2026_1_1_00_00_00.txt").write_text(stock_log(epochs))
        write_json(self.model(trainer, results) / "dataset.json", dataset_json())
        write_json(self.model(trainer, results) / "plans.json", {"plans_name": "nnUNetPlans"})
        return self

    def add_pair(self, trainer: str, epochs: int = 4, shift: int = 1, unlabeled: int = 2, seconds: float = 40.0,
                 validated: bool = True, results: Path | None = None, labeled: list[str] | None = None,
                 mirroring: str = "(0, 1, 2)", recipe: dict | list[dict] | None = None):
        """A pair with its log and record; unvalidated ones have no prediction yet. A list has a recipe per fold."""
        for fold, cases in enumerate(self.folds):
            folder = self.model(trainer, results) / f"fold_{fold}"
            if validated:
                for index, case in enumerate(cases):
                    write_volume(folder / "validation" / f"{case}.nii.gz",
                                 boxes(shift=shift if index % 3 else max(0, shift - 1)))
                write_json(folder / "validation" / "summary.json", {})
            names = [f"u{number}" for number in range(unlabeled)]
            write_json(folder / "dhc_run.json", {
                "versions": {"nnunet_dhc": "0.1", "torch": "2.8"}, "trainer": trainer, "plans_hash": "p" * 16,
                "split_hash": "s" * 16, "seed": 7, "device": "cpu: 2 threads", "num_epochs": 4,
                "iterations_per_epoch": 10, "parameters": 2_000_000, "peak_memory_bytes": 2**30,
                "seconds_total": seconds, "command": ["/somewhere/nnUNetv2_train", "901", "3d_fullres", str(fold)],
                "recipe": recipe[fold] if isinstance(recipe, list) else recipe or {},
                "cases": {"labeled": labeled or self.labeled, "unlabeled": names, "validation": cases}})
            write_json(folder / "debug.json", {"inference_allowed_mirroring_axes": mirroring})
            (folder / "dhc_log.jsonl").write_text("".join(json.dumps(log_line(epoch)) + "\n"
                                                          for epoch in range(epochs)))
        write_json(self.model(trainer, results) / "dataset.json", dataset_json())
        write_json(self.model(trainer, results) / "plans.json", {"plans_name": "nnUNetPlans"})
        return self

    def environment(self, monkeypatch) -> None:
        for name, folder in (("nnUNet_raw", self.raw), ("nnUNet_preprocessed", self.preprocessed),
                             ("nnUNet_results", self.results)):
            monkeypatch.setenv(name, str(folder))


def build_from(tree: ResultsTree, *trainers: str, folds: list[str] | None = None, allow_different=False) -> dict:
    selection = Selection("901", list(trainers), folds=folds)
    return build_comparison(collect_trainings(selection, allow_different), Options(images=False))


def log_line(epoch: int) -> dict:
    return {"epoch": epoch, "lambda": 0.01 * epoch, "losses": {"total": -0.1 * epoch, "supervised_a": 0.3},
            "class_weights_a": [0.1, 1.0, 2.0, 4.0 - 0.1 * epoch], "class_weights_b": [0.2, 1.1, 2.2, None],
            "dice_a": [0.5, 0.4, None], "dice_b": [0.4, 0.4, 0.1], "dice_mean": [0.6, 0.5, 0.1],
            "agreement": 0.9 + 0.01 * epoch, "skipped_steps": 1 if epoch == 2 else 0,
            "seconds": {"epoch": 10.0, "loading": 1.0}, "alarms": ["rare_box: none predicted"] if epoch == 3 else []}


def stock_log(epochs: int) -> str:
    """What nnU-Net 2.8 writes, timestamps and NumPy's way of printing numbers included."""
    lines = ["2026-01-01 00:00:00.1: This split has 3 training and 4 validation cases. "]
    for epoch in range(epochs):
        at = "2026-01-01 00:00:00.1: "
        lines += [f"{at} ", f"{at}Epoch {epoch} ", f"{at}Current learning rate: 0.01 ", f"{at}train_loss -0.25 ",
                  f"{at}val_loss np.float32(-0.5) ", f"{at}Pseudo dice [np.float32(0.5), np.float32(0.25), nan] ",
                  f"{at}Epoch time: 2.5 s "]
    return "\n".join(lines) + "\n"
