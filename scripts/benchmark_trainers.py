# SPDX-License-Identifier: Apache-2.0
"""Real trainers on a synthetic dataset in a temporary folder, for the benchmarks of this folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

DATASET = "Dataset998_Benchmark"
CONFIGURATION = "3d_fullres"
NUM_CASES = 4


@dataclass(frozen=True)
class Shape:
    """What decides the cost of a step."""

    patch: tuple[int, int, int] = (64, 64, 64)
    batch: int = 2
    classes: int = 14
    features: tuple[int, ...] = (32, 64, 128, 256, 320)
    convolutions: int = 2


def use_folder(root: Path) -> None:
    """Point nnU-Net's variables at a folder."""
    for variable, name in (("nnUNet_raw", "raw"), ("nnUNet_preprocessed", "preprocessed"), ("nnUNet_results", "res")):
        (root / name / DATASET).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(root / name)


def dataset_json(shape: Shape) -> dict[str, Any]:
    labels = {"background": 0, **{f"structure {i}": i for i in range(1, shape.classes)}}
    return {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": NUM_CASES, "file_ending": ".nii.gz"}


def plans(shape: Shape, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Plans as nnU-Net writes them, with the default architecture."""
    stages = len(shape.features)
    names = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")
    configuration = {
        "data_identifier": "benchmark_3d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": shape.batch,
        "patch_size": list(shape.patch),
        "median_image_size_in_voxels": [2 * n for n in shape.patch],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(shape.features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * stages,
                "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                "n_conv_per_stage": [shape.convolutions] * stages,
                "n_conv_per_stage_decoder": [shape.convolutions] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **dict.fromkeys(names, "resample_data_or_seg_to_shape"),
        **{f"{name}_kwargs": {"is_seg": name.endswith("seg"), "order": 1, "order_z": 0} for name in names},
    }
    intensities = {"max": 5.0, "mean": 0.0, "median": 0.0, "min": -5.0, "std": 1.0}
    intensities |= {"percentile_00_5": -3.0, "percentile_99_5": 3.0}
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [2 * n for n in shape.patch],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "nnunet_dhc": dict(settings or {}),
    }


def make_label_map(size: tuple[int, ...], classes: int, seed: int) -> torch.Tensor:
    """Smooth structures of very different sizes, shape `size`, int16."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, *(max(2, n // 8) for n in size), generator=generator)
    coarse[:, 0] += 2.5  # mostly background
    coarse[:, classes // 2 :] -= 0.5  # and some rare classes
    fine = F.interpolate(coarse, size=size, mode="trilinear", align_corners=False)
    return fine.max(1).indices[0].to(torch.int16)


def write_preprocessed_cases(root: Path, shape: Shape) -> Path:
    """Labeled cases as nnU-Net preprocesses them, and unlabeled ones beside them; the folder of the latter."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    base = root / "preprocessed" / DATASET
    labeled, unlabeled = base / "benchmark_3d", base / "benchmark_3d_unlabeled"
    for folder in (labeled, unlabeled):
        shutil.rmtree(folder, ignore_errors=True)  # blosc2 writes no file that is there
    size = tuple(int(1.5 * n) for n in shape.patch)
    blocks, chunks = comp_blosc2_params((1, *size), shape.patch)
    for number in range(2 * NUM_CASES):
        labels = make_label_map(size, shape.classes, seed=number).numpy()
        image = (np.random.default_rng(number).normal(0, 0.3, (1, *size)) + labels / shape.classes).astype(np.float32)
        locations = {c: _locations(labels, c) for c in range(1, shape.classes)}
        folder = labeled if number < NUM_CASES else unlabeled
        folder.mkdir(parents=True, exist_ok=True)
        nnUNetDatasetBlosc2.save_case(
            image, labels[None], {"class_locations": locations}, str(folder / f"case_{number}"), chunks, blocks
        )
    for name in unlabeled.glob("*_seg.b2nd"):
        name.unlink()
    cases = [f"case_{number}" for number in range(NUM_CASES)]
    (base / "splits_final.json").write_text(json.dumps([{"train": cases[1:], "val": cases[:1]}]))
    return unlabeled


def _locations(labels: np.ndarray, value: int) -> np.ndarray:
    found = np.argwhere(labels == value)[:1000]
    return np.concatenate([np.zeros((len(found), 1), found.dtype), found], axis=1) if len(found) else []


class SyntheticBatches:
    """A few batches in turn, in the form that the loaders give; no loading, no augmentation."""

    def __init__(self, trainer: Any, shape: Shape, with_unlabeled: bool, seed: int, num_batches: int = 3) -> None:
        self.draw_unlabeled, self.waited_s, self._with_unlabeled = True, 0.0, with_unlabeled
        scales = trainer._get_deep_supervision_scales()
        self._batches = [self._batch(shape, scales, seed + 100 * n) for n in range(num_batches)]
        self._next = 0

    def _batch(self, shape: Shape, scales: list, seed: int) -> dict[str, Any]:
        maps = [make_label_map(shape.patch, shape.classes, seed + i) for i in range(2 * shape.batch)]
        target = torch.stack(maps)[:, None]
        noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(seed))
        images = target / shape.classes + 0.3 * noise
        own = target[: shape.batch]
        batch = {
            "data": images[: shape.batch].contiguous(),
            "target": [_downsampled(own, scale) for scale in scales],
            "keys": [f"case_{i}" for i in range(shape.batch)],
        }
        if self._with_unlabeled:
            batch["unlabeled"] = images[shape.batch :].contiguous()
        return batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        self._next += 1
        return dict(self._batches[self._next % len(self._batches)])


def _downsampled(target: torch.Tensor, scale: list[float]) -> torch.Tensor:
    size = [round(n * s) for n, s in zip(target.shape[2:], scale, strict=True)]
    return F.interpolate(target.float(), size=size, mode="nearest-exact").to(torch.int16)


def make_trainer(name: str, shape: Shape, device: torch.device, settings: dict | None, unlabeled: Path | None) -> Any:
    """A trainer before its first step.

    Args:
        name: "nnUNetTrainer" or a trainer of this package.
        shape: Patch, batch, classes and network.
        device: Where it trains.
        settings: For `plans["nnunet_dhc"]`.
        unlabeled: Folder of preprocessed unlabeled cases for real loaders; None: synthetic batches.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_dhc.trainers.lookup import trainer_class

    stock = name == "nnUNetTrainer"
    cls = nnUNetTrainer if stock else trainer_class(name)
    content = {**plans(shape, None if stock else settings), "continue_training": False}
    trainer = cls(content, CONFIGURATION, 0, dataset_json(shape), device)
    trainer.print_to_log_file = lambda *args, **kwargs: None
    folder = Path(trainer.preprocessed_dataset_folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        (folder / "case_0.b2nd").touch()  # nnU-Net tells the file format from the first name
    trainer.initialize()
    if not stock:
        _give_data(trainer, shape, unlabeled)
    if unlabeled is None:
        trainer.dataloader_train = SyntheticBatches(trainer, shape, with_unlabeled=not stock, seed=1)
    else:
        trainer.dataloader_train, validation = trainer.get_dataloaders()
        finish_workers(validation)
    trainer.set_deep_supervision_enabled(True)
    trainer.on_train_epoch_start()
    return trainer


def _give_data(trainer: Any, shape: Shape, unlabeled: Path | None) -> None:
    """What the trainer would find before its first epoch."""
    from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
    from nnunet_dhc.nnunet.training.preparation import TrainingData
    from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import UnlabeledPool

    pool = None
    if unlabeled is not None:
        names = sorted(path.name.removesuffix(".b2nd") for path in unlabeled.glob("*.b2nd"))
        pool = UnlabeledPool(str(unlabeled), names, {}, len(names), 0)
    labels = torch.stack([make_label_map(shape.patch, shape.classes, seed) for seed in range(NUM_CASES)])
    counts = np.bincount(labels.flatten().numpy(), minlength=shape.classes)
    cases = tuple(f"case_{number}" for number in range(NUM_CASES))
    trainer.data = TrainingData(FoldCases(cases[1:], cases[:1]), pool, counts, ())
    trainer._start_weightings()


def finish_workers(stream: Any) -> None:
    """Stop the workers of a loader, or of both streams of one; single-threaded ones have none."""
    for part in (getattr(stream, "labeled", None), getattr(stream, "unlabeled", None), stream):
        if hasattr(part, "_finish"):
            part._finish()
