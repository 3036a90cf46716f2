# SPDX-License-Identifier: Apache-2.0
"""Boxes of one patch in another: mixed patches whose context the networks haven't seen together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def box_masks(num_patches: int, spatial_shape: Sequence[int], side: float) -> Tensor:
    """A box at a random place for every patch, or with probability 1/2 all that lies outside of it.

    Args:
        num_patches: b.
        spatial_shape: Sizes of a patch along x, y[, z], in voxels.
        side: Length of the box along each axis as a part of the patch, in (0, 1].

    Returns:
        Shape (b, 1, *spatial_shape), bool, on the CPU; torch's global generator draws it.
    """
    masks = torch.zeros(num_patches, 1, *spatial_shape, dtype=torch.bool)
    for mask in masks:
        box: list[slice] = []
        for size in spatial_shape:
            length = max(1, round(side * size))
            start = int(torch.randint(size - length + 1, ()))
            box.append(slice(start, start + length))
        mask[0][tuple(box)] = True
        if torch.rand(()) < 0.5:
            mask.logical_not_()
    return masks
