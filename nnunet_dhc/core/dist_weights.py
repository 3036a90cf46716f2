# SPDX-License-Identifier: Apache-2.0
"""DistDW: the rarer a class is in the pseudo labels, the heavier it weighs."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dhc.core.class_weighting import CountWeighting, Mode, Statistic

EPS_VOXELS = 1e-8
MIN_LOG_RATIO = 1e-6


def _log_rarity(counts: Tensor, mode: Mode) -> Tensor:
    counts = counts.to(torch.float32)
    if mode == "robust":
        counts = counts.clamp_min(1.0)
        return torch.log(counts.max() / counts)
    return torch.log((counts.max() + EPS_VOXELS) / (counts + EPS_VOXELS))


def distribution_weights(counts: Tensor, mode: Mode = "robust") -> Tensor:
    """Weight each class by the log of its under-representation; the rarest class gets 1, the most frequent 0.

    w_i = ln P_i / max_j ln P_j,  P_i = max_j n_j / n_i
    robust: n <- max(n, 1);  released: n <- n + 1e-8

    Args:
        counts: Voxels per class n, shape (k,), any real dtype, >= 0.
        mode: How counts of 0 and equal counts are treated.

    Returns:
        Weights, shape (k,), float32, in [0, 1]. Equal counts give ones (robust) or NaN (released).

    Source: DHC (MICCAI 2023) Eq. 3; reference code xmed-lab/DHC@b3dee97 code/train_dhc.py, class DistDW.
    Deviations: robust counts an absent class as one voxel, so that it does not squeeze the present classes towards 0
        (with 1e-8 voxels, an absent class divides their weights by about 33), and defines equal counts.
    """
    log_rarity = _log_rarity(counts, mode)
    largest = log_rarity.max()
    if mode == "released":
        return log_rarity / largest
    weights = log_rarity / largest.clamp_min(MIN_LOG_RATIO)
    return torch.where(largest > MIN_LOG_RATIO, weights, torch.ones_like(weights))


class DistDW(CountWeighting):
    """Distribution-aware debiased weighting, smoothed over steps.

    W_t = momentum * W_(t-1) + (1 - momentum) * scale * w(counts_t), W_0 = scale * w(labeled counts);
    w is `distribution_weights`.

    Args:
        num_classes: k, background included.
        mode: "robust" keeps the state when all counts are equal or 0, and starts from ones when all labeled counts
            are; "released" becomes NaN there, and stays so.
        momentum: Share of the old weights kept per step.
        scale: Weight of the rarest class; None is k, as in the released code, 1.0 is as printed in the paper.

    Source: DHC (MICCAI 2023) Eq. 3-4; reference code xmed-lab/DHC@b3dee97 code/train_dhc.py, class DistDW.
    Deviations: see `distribution_weights`; none in released mode.
    """

    reads: ClassVar[Statistic] = "unlabeled_counts"

    def __init__(
        self, num_classes: int, mode: Mode = "robust", momentum: float = 0.99, scale: float | None = None
    ) -> None:
        super().__init__(num_classes, mode, momentum, scale)

    def _current(self, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        weights = distribution_weights(counts, self.mode)
        if self.mode == "released":
            return weights, None
        return weights, _log_rarity(counts, self.mode).max() > MIN_LOG_RATIO
