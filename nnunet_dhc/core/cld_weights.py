# SPDX-License-Identifier: Apache-2.0
"""CLD: fixed weights from the labeled voxels, and sampling rates from the running confidence."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dhc.core.class_weighting import ClassWeighting, Mode

EPS_CONFIDENCE = 1e-12


def cld_weights(counts: Tensor, mode: Mode = "robust", max_weight: float = 100.0) -> Tensor:
    """Weight each class by the cube root of how much rarer it is than the most frequent class.

    w_i = (max_j n_j / n_i)^(1/3)
    robust: n <- max(n, 1), w <- min(w, max_weight)

    Args:
        counts: Labeled voxels per class n, shape (k,), any real dtype, >= 0.
        mode: "released" gives a class without a labeled voxel an infinite weight.
        max_weight: Upper bound in robust mode, reached at a ratio of max_weight^3; Dice is linear in the weights.

    Returns:
        Weights, shape (k,), float32, >= 1; the most frequent class gets 1.

    Source: CLD (MICCAI 2022), xmed-lab/CLD-Semi; xmed-lab/DHC@b3dee97 code/train_cld.py.
    Deviations: in robust mode the floor and the bound.
    """
    counts = counts.to(torch.float32)
    if mode == "robust":
        counts = counts.clamp_min(1.0)
    weights = (counts.max() / counts) ** (1.0 / 3.0)
    return weights.clamp_max(max_weight) if mode == "robust" else weights


def cld_sampling_rates(confidence: Tensor) -> Tensor:
    """Share of the voxels of each class that stay in the unsupervised loss: all of the least confident class.

    s_i = ((1 - c_i) / (max_j (1 - c_j) + 1e-12))^(1/2)

    Args:
        confidence: Running mean probability of the right class c, shape (k,), in [0, 1].

    Returns:
        Rates, shape (k,), float32, in [0, 1].

    Source: CLD (MICCAI 2022); xmed-lab/DHC@b3dee97 code/train_cld.py.
    Deviations: none.
    """
    lack = 1.0 - confidence.to(torch.float32)
    return (lack / (lack.max() + EPS_CONFIDENCE)) ** 0.5


class CLD(ClassWeighting):
    """CLD weights: set once from the labeled counts, never updated.

    w is `cld_weights`.

    Args:
        num_classes: k, background included.
        mode: See `cld_weights`.
        max_weight: Upper bound in robust mode.

    Source: CLD (MICCAI 2022); xmed-lab/DHC@b3dee97 code/train_cld.py.
    Deviations: see `cld_weights`.
    """

    def __init__(self, num_classes: int, mode: Mode = "robust", max_weight: float = 100.0) -> None:
        super().__init__(num_classes, mode)
        if not max_weight >= 1.0:
            raise ValueError(f"max_weight is {max_weight}, but must be at least 1")
        self.max_weight = float(max_weight)

    @torch.no_grad()
    def initialize(self, counts: Tensor) -> Tensor:
        self._state["weights"] = cld_weights(self._statistic(counts), self.mode, self.max_weight)
        return self.weights

    def update(self, statistic: Tensor | None = None, /) -> Tensor:
        return self.weights
