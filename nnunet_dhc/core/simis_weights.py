# SPDX-License-Identifier: Apache-2.0
"""SimiS: the gap between a class' share and the largest share is its weight."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dhc.core.class_weighting import CountWeighting, Mode, Statistic

EPS_VOXELS = 1e-8
MIN_GAP = 1e-6


def share_gap_weights(counts: Tensor) -> Tensor:
    """Weight each class by how far its share of the voxels lies below the largest share.

    w_i = max_j P_j - P_i,  P_i = (n_i + 1e-8) / (sum_j n_j + 1e-8)

    Args:
        counts: Voxels per class n, shape (k,), any real dtype, >= 0.

    Returns:
        Weights, shape (k,), float32, in [0, 1]; the most frequent class gets 0, equal counts give all 0.

    Source: SimiS (arXiv 2211.11086), as a weight in xmed-lab/DHC@b3dee97 code/train_simis.py.
    Deviations: none.
    """
    counts = counts.to(torch.float32)
    shares = (counts + EPS_VOXELS) / (counts.sum() + EPS_VOXELS)
    return shares.max() - shares


class SimiS(CountWeighting):
    """SimiS weights, smoothed over steps, from a start where all classes weigh `scale`.

    W_t = momentum * W_(t-1) + (1 - momentum) * scale * w(counts_t);
    W_0 = momentum * scale + (1 - momentum) * scale * w(labeled counts);  w is `share_gap_weights`.

    Args:
        num_classes: k, background included.
        mode: "robust" keeps the state when all counts are equal or 0, where "released" shrinks all weights alike.
        momentum: Share of the old weights kept per step.
        scale: Factor on the weights; None is k, as in the released code.

    Source: xmed-lab/DHC@b3dee97 code/train_simis.py.
    Deviations: the kept state in robust mode.
    """

    reads: ClassVar[Statistic] = "all_counts"

    def __init__(
        self, num_classes: int, mode: Mode = "robust", momentum: float = 0.99, scale: float | None = None
    ) -> None:
        super().__init__(num_classes, mode, momentum, scale)
        self._state["weights"] = torch.full((num_classes,), self.scale, dtype=torch.float32)

    @torch.no_grad()
    def initialize(self, counts: Tensor) -> Tensor:
        self._statistic(counts)
        self._state["weights"] = torch.full_like(self.weights, self.scale)
        return self.update(counts)

    def _current(self, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        weights = share_gap_weights(counts)
        return weights, weights.max() > MIN_GAP if self.mode == "robust" else None
