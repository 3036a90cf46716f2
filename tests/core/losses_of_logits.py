# SPDX-License-Identifier: Apache-2.0
"""The losses of some logits against one target, as a training makes them."""

from __future__ import annotations

from torch import Tensor

from nnunet_dhc.core.label_spaces import LabelReading, LabelSpace
from nnunet_dhc.core.loss_sums import LossSums


def sums_of(labels: LabelSpace, logits: Tensor, target: Tensor, overlap: bool = True) -> LossSums:
    return labels.loss_sums_of(logits, [LabelReading(labels, target, 0, overlap)])[0]


def cross_entropy_alone(
    labels: LabelSpace, logits: Tensor, target: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(cross entropy, hit weight), without sums for Dice."""
    return labels.cross_entropy_of(sums_of(labels, logits, target, overlap=False), class_weights)


def cross_entropy_and_dice(
    labels: LabelSpace,
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    smooth: float,
    pooled_over_batch: bool,
    across_ranks: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(cross entropy, soft Dice loss, hit weight)."""
    sums = sums_of(labels, logits, target)
    loss, hit_weight = labels.cross_entropy_of(sums, class_weights, across_ranks)
    return loss, labels.soft_dice_loss_of(sums, class_weights, smooth, pooled_over_batch, across_ranks), hit_weight
