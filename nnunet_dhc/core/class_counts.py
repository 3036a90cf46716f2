# SPDX-License-Identifier: Apache-2.0
"""Voxel counts and hard Dice per class, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-8
COUNTER_ROWS = 1024
MOST_CLASSES_IN_A_PAIR = 127
MOST_CLASSES_IN_A_TABLE = 181


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
    if flat.device.type != "cpu":
        counts = _scatter_count(flat, bins)
    elif flat.dtype == torch.uint8 and bins <= MOST_CLASSES_IN_A_PAIR:
        counts = _count_pairs(flat, bins)
    else:
        counts = torch.bincount(flat, minlength=bins)
    if ignore_label is not None and ignore_label < num_classes:
        counts[ignore_label : ignore_label + 1].zero_()  # assigning the number 0 would wait for a GPU
    return counts[:num_classes]


def count_agreement(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_label: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Count per class the voxels that are both predicted and labeled, those predicted, and those labeled.

    TP_i = #{v : p_v = t_v = i},  predicted_i = #{v : p_v = i},  labeled_i = #{v : t_v = i},  over voxels not ignored

    Args:
        prediction: Class indices in [0, num_classes), any shape, any integer dtype.
        target: The same, of the same shape; may hold `ignore_label`.
        num_classes: k, background included.
        ignore_label: As in `count_voxels`.

    Returns:
        Three times counts, shape (k,), int64, on the device of `prediction`.

    Source: what DiffDW's Dice needs; on a CPU from one pass over a table of (predicted, labeled).
    Deviations: none.
    """
    k = num_classes
    bins = k if ignore_label is None else max(k, ignore_label + 1)
    if prediction.device.type == "cpu" and bins <= MOST_CLASSES_IN_A_TABLE:
        cells = torch.add(target.detach().to(torch.int16), prediction.detach().to(torch.int16), alpha=bins)
        table = torch.bincount(cells.reshape(-1), minlength=bins * bins).view(bins, bins)
        if ignore_label is not None:
            table[:, ignore_label] = 0
        return table.diagonal()[:k].clone(), table.sum(1)[:k], table.sum(0)[:k]
    labeled = count_voxels(target, k, ignore_label)
    if ignore_label is not None:
        prediction = prediction.masked_fill(target == ignore_label, k)
    agreed = prediction.masked_fill(prediction != target, k)
    return count_voxels(agreed, k, k), count_voxels(prediction, k, k), labeled


def _count_pairs(flat: Tensor, bins: int) -> Tensor:
    """Count two bytes at once: additions to one counter wait for each other, so half as many take half the time."""
    even = flat.numel() // 2 * 2
    pairs = flat[:even].contiguous()
    if pairs.storage_offset() % 2:
        pairs = pairs.clone()
    table = torch.bincount(pairs.view(torch.int16), minlength=256 * bins).view(bins, 256)
    return table.sum(1) + table[:, :bins].sum(0) + torch.bincount(flat[even:], minlength=bins)


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
