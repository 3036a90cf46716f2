# SPDX-License-Identifier: Apache-2.0
"""CReST's sampling rate, used as a class weight."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dhc.core.class_weighting import CountWeighting, Mode, Statistic

EPS_VOXELS = 1e-8


def crest_weights(counts: Tensor, mode: Mode = "robust") -> Tensor:
    """Give each class the relative frequency, to the power 1/3, of the class at the opposite end of the ranking.

    mu_i = (n_i / max_j n_j)^(1/3);  with classes c_1 .. c_k from frequent to rare:  w(c_r) = mu(c_(k+1-r))

    Args:
        counts: Voxels per class n, shape (k,), any real dtype, >= 0.
        mode: "robust" counts an absent class as one voxel and gives equally frequent classes the mean of their
            weights; "released" adds 1e-8 voxels and ranks equal classes by index.

    Returns:
        Weights, shape (k,), float32, in (0, 1]; the rarest class gets 1.

    Source: CReST (CVPR 2021) Eq. 1, as a weight in xmed-lab/DHC@b3dee97 code/train_crest.py.
    Deviations: in robust mode the two above; without them equally absent classes get very different weights.
    """
    counts = counts.to(torch.float32)
    counts = counts.clamp_min(1.0) if mode == "robust" else counts + EPS_VOXELS
    relative = (counts / counts.max()) ** (1.0 / 3.0)
    descending, order = torch.sort(relative, descending=True, stable=True)
    weights = torch.empty_like(descending).scatter_(0, order, descending.flip(0))
    if mode == "released":
        return weights
    tied = (counts[:, None] == counts[None, :]).to(torch.float32)
    return (tied * weights).sum(1) / tied.sum(1)


class CReST(CountWeighting):
    """CReST weights, smoothed over steps.

    W_t = momentum * W_(t-1) + (1 - momentum) * scale * w(counts_t), W_0 = scale * w(labeled counts);
    w is `crest_weights`.

    Args:
        num_classes: k, background included.
        mode: See `crest_weights`.
        momentum: Share of the old weights kept per step.
        scale: Weight of the rarest class.

    Source: xmed-lab/DHC@b3dee97 code/train_crest.py.
    Deviations: see `crest_weights`; where nothing is counted, the weights stay. None in released mode.
    """

    reads: ClassVar[Statistic] = "unlabeled_counts"

    def __init__(self, num_classes: int, mode: Mode = "robust", momentum: float = 0.99, scale: float = 1.0) -> None:
        super().__init__(num_classes, mode, momentum, scale)

    def _current(self, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        return crest_weights(counts, self.mode), counts.max() > 0 if self.mode == "robust" else None
