# SPDX-License-Identifier: Apache-2.0
"""Tiny datasets of other kinds: several channels, an ignore label, regions, many classes, a cascade."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_data import TINY_PLANS, TinyDataset, make_scan, plan_and_preprocess, write_image

NUM_LABELED, NUM_UNLABELED = 4, 2
SHAPE = (22, 20, 18)
LABELS = {"background": 0, "large": 1, "middle": 2, "small": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "small": 3}
IGNORED_SLICES = 6  # at the low end of the first axis


def make_variant(
    root: Path,
    patch: pytest.MonkeyPatch,
    labels: dict | None = None,
    channels: int = 1,
    masked: bool = False,
    ignore: bool = False,
    many_classes: int = 0,
) -> TinyDataset:
    """A small dataset, planned and preprocessed for 3d_fullres, at which nnU-Net's variables point.

    Args:
        masked: Zeros around the image, and normalization within the nonzero mask.
        ignore: Whether the first slices of every labeled case carry the ignore label (the highest label + 1).
        many_classes: Instead of the three balls, this many foreground classes, drawn voxel by voxel.
    """
    dataset = TinyDataset(root)
    dataset.point_nnunet_here(patch, num_workers=1)  # planning can't do with 0
    labels = dict(labels or LABELS)
    if many_classes:
        labels = {"background": 0, **{f"class_{n}": n for n in range(1, many_classes + 1)}}
    highest = max(np.max(value) for value in labels.values())
    if ignore:
        labels["ignore"] = int(highest) + 1
    _write_raw(dataset.raw, labels, channels, masked, ignore, many_classes)
    _plan(dataset, masked, channels)
    patch.setenv("nnUNet_n_proc_DA", "0")
    return dataset


def _write_raw(raw: Path, labels: dict, channels: int, masked: bool, ignore: bool, many_classes: int) -> None:
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (raw / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(NUM_LABELED + NUM_UNLABELED):
        image, segmentation = make_scan(number, SHAPE)
        if many_classes:
            segmentation = rng.integers(0, many_classes + 1, SHAPE).astype(np.uint8)
            segmentation.flat[: many_classes + 1] = np.arange(many_classes + 1)
        if masked:
            image[:4], image[:, :3], segmentation[:4], segmentation[:, :3] = 0, 0, 0, 0
            image[8:10, 8:10, 8:10] = 0  # a hole inside, which cropping keeps
        if ignore:
            segmentation[:IGNORED_SLICES] = labels["ignore"]
        labeled = number < NUM_LABELED
        name = f"case_{number}" if labeled else f"scan_{number - NUM_LABELED}"
        for channel in range(channels):
            path = raw / ("imagesTr" if labeled else "imagesUn") / f"{name}_{channel:04d}.nii.gz"
            write_image(path, image * (channel + 1))
        if labeled:
            write_image(raw / "labelsTr" / f"{name}.nii.gz", segmentation)
    content = {
        "channel_names": {str(channel): "MRI" for channel in range(channels)},
        "labels": labels,
        "numTraining": NUM_LABELED,
        "file_ending": ".nii.gz",
    }
    regions = [value for value in labels.values() if isinstance(value, list)]
    if regions:
        content["regions_class_order"] = [1, 2, 3]
    (raw / "dataset.json").write_text(json.dumps(content))


def _plan(dataset: TinyDataset, masked: bool, channels: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if masked:
            from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

            patch.setattr(
                ExperimentPlanner,
                "determine_normalization_scheme_and_whether_mask_is_used_for_norm",
                lambda self: (["ZScoreNormalization"] * channels, [True] * channels),
            )
        dataset.preprocessed.mkdir(parents=True)
        plan_and_preprocess(dataset.raw, dataset.preprocessed, ("3d_fullres",))
    (dataset.preprocessed / "dataset.json").write_text((dataset.raw / "dataset.json").read_text())


def edit_plans(dataset: TinyDataset, **changes) -> None:
    """Change the configuration 3d_fullres of the tiny plans; a value that is a function gets and edits the old one."""
    plans = dataset.plans_content()
    configuration = plans["configurations"]["3d_fullres"]
    for key, value in changes.items():
        configuration[key] = value(configuration[key]) if callable(value) else value
    (dataset.preprocessed / f"{TINY_PLANS}.json").write_text(json.dumps(plans))


def residual_encoder(architecture: dict) -> dict:
    """The same stages as nnU-Net's ResEnc planners write them."""
    arguments = {key: value for key, value in architecture["arch_kwargs"].items() if key != "n_conv_per_stage"}
    arguments["n_blocks_per_stage"] = [1, 2, 2]
    return {
        **architecture,
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": arguments,
    }
