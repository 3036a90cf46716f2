# SPDX-License-Identifier: Apache-2.0
"""Two views of one patch: as augmented, and at the same place without augmentation of its intensities."""

from __future__ import annotations

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform


def two_views(transforms: ComposeTransforms, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Augment a patch, and keep what a transform of the appearance alone would change.

    Args:
        transforms: nnU-Net's augmentation.
        sample: ``image`` (c, *spatial) and, where augmentation needs one, ``segmentation``.

    Returns:
        The augmented sample with one more key, ``plain``: the image with the same crop, rotation, scaling, mirroring
        and mask, but without noise, blur, brightness, contrast, low resolution and gamma.
    """
    plain = None
    for transform in transforms.transforms:
        if changes_appearance(transform):
            if plain is None:
                plain = {name: tensor.clone() for name, tensor in sample.items()}
            sample = transform(**sample)
        elif plain is None:
            sample = transform(**sample)
        else:
            of_numpy, of_torch = np.random.get_state(), torch.get_rng_state()
            sample = transform(**sample)
            np.random.set_state(of_numpy)
            torch.set_rng_state(of_torch)
            plain = transform(**plain)
    return {**sample, "plain": sample["image"] if plain is None else plain["image"]}


def changes_appearance(transform: BasicTransform) -> bool:
    """Whether a transform leaves every voxel at its place, and is one of those that are applied now and then."""
    return isinstance(transform, RandomTransform) and isinstance(transform.transform, ImageOnlyTransform)
