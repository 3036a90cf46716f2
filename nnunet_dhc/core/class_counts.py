# SPDX-License-Identifier: Apache-2.0
"""Voxel counts and hard Dice per class, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-8
COUNTER_ROWS = 1024


def count_voxels(label_map: Tensor, num_classes: int, ignore_label: int | None = None) -> Tensor:
    """Count the voxels of each class.

    n_i = #{v : label_map_v = i}

    Args:
        label_map: Class indices, any shape, any integer dtype or bool, in [0, num_classes), or `ignore_label`.
        num_classes: k, background included.
        ignore_label: Value that belongs to no class, >= 0; nnU-Net's is the highest label, k.

    Returns:
        Counts, shape (k,), int64, on the device of `label_map`.

    Source: methods of the DHC family count argmax predictions; here without a round trip to the host.
    Deviations: none.
    """
    flat = label_map.detach().reshape(-1)
    bins = num_classes if ignore_label is None else max(num_classes, ignore_label + 1)
    if flat.dtype == torch.bool:
        flat = flat.view(torch.uint8)
    counts = torch.bincount(flat, minlength=bins) if flat.device.type == "cpu" else _scatter_count(flat, bins)
    if ignore_label is not None and ignore_label < num_classes:
        counts[ignore_label] = 0
    return counts[:num_classes]


def _scatter_count(flat: Tensor, bins: int) -> Tensor:
    """`torch.bincount` without reading the largest value back to the host.

    Neighboring voxels mostly share a class, so each goes to another of many rows of counters: else the additions to
    the counter of the background would wait for each other.
    """
    row = torch.arange(flat.numel(), device=flat.device) % COUNTER_ROWS
    counters = torch.zeros(COUNTER_ROWS * bins, dtype=torch.int32, device=flat.device)
    one = torch.ones(1, dtype=torch.int32, device=flat.device)
    counters.scatter_add_(0, row.mul_(bins).add_(flat), one.expand(flat.numel()))
    return counters.view(COUNTER_ROWS, bins).sum(0, dtype=torch.int64)


def hard_dice(true_positives: Tensor, predicted: Tensor, labeled: Tensor) -> Tensor:
    """Dice per class from voxel counts.

    dice_i = (2 TP_i + 1e-8) / (predicted_i + labeled_i + 2e-8)

    Args:
        true_positives: Voxels that are both predicted and labeled as the class, shape (k,), integer.
        predicted: Voxels predicted as the class, shape (k,), integer.
        labeled: Voxels labeled as the class, shape (k,), integer.

    Returns:
        Dice, shape (k,), float32, in (0, 1]; NaN where the class is neither predicted nor labeled.

    Source: xmed-lab/DHC@b3dee97 code/train_dhc.py, class DiffDW.
    Deviations: NaN instead of 0.5 for a class that is in neither, so that a weighting can tell it from a bad one.
    """
    total = predicted + labeled
    dice = (2 * true_positives.to(torch.float32) + EPS) / (total.to(torch.float32) + 2 * EPS)
    return torch.where(total > 0, dice, torch.full_like(dice, float("nan")))
