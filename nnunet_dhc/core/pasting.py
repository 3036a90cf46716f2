# SPDX-License-Identifier: Apache-2.0
"""Boxes of one patch in another: mixed patches whose context the networks haven't seen together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def box_masks(
    num_patches: int, spatial_shape: Sequence[int], side: float, device: torch.device | str = "cpu"
) -> Tensor:
    """A box at a random place for every patch, or with probability 1/2 all that lies outside of it.

    Args:
        num_patches: b.
        spatial_shape: Sizes of a patch along x, y[, z], in voxels.
        side: Length of the box along each axis as a part of the patch, in (0, 1].
        device: Where the masks go; nothing waits for it.

    Returns:
        Shape (b, 1, *spatial_shape), bool; torch's global generator of the CPU draws them.

    Source: bidirectional copy-paste (Bai et al., CVPR 2023); CutMix in CPS (Chen et al., CVPR 2021).
    Deviations: one box for each patch, inside or outside by chance, where the first one pastes both ways in each step.
    """
    lengths = [max(1, round(side * size)) for size in spatial_shape]
    starts = [
        torch.randint(size - length + 1, (num_patches,)) for size, length in zip(spatial_shape, lengths, strict=True)
    ]
    drawn = torch.stack((*starts, torch.randint(2, (num_patches,))))
    # Asynchronous on CUDA alone, which keeps a copy of what is dropped here; on MPS older versions of torch don't.
    drawn = drawn.to(device, non_blocking=torch.device(device).type == "cuda")
    *starts, is_outside = drawn.reshape(len(drawn), num_patches, *(1 for _ in spatial_shape), 1)
    inside = torch.ones(num_patches, 1, *spatial_shape, dtype=torch.bool, device=drawn.device)
    for axis, (size, length, start) in enumerate(zip(spatial_shape, lengths, starts, strict=True)):
        position = torch.arange(size, device=drawn.device).reshape(-1, *(1 for _ in spatial_shape[axis + 1 :]))
        inside &= (position >= start) & (position < start + length)
    return inside.logical_xor(is_outside)
