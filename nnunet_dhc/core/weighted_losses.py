# SPDX-License-Identifier: Apache-2.0
"""Class-weighted cross entropy and soft Dice, made from `LossSums`."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dhc.core.across_ranks import differentiable_sum_across_ranks, num_ranks, sum_across_ranks
from nnunet_dhc.core.loss_sums import LossSums

MIN_DENOMINATOR = 1e-8


def weighted_cross_entropy(
    sums: LossSums, class_weights: Tensor | None = None, across_ranks: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean of the cross entropy over the voxels, each weighted by its class.

    CE_w = sum_v w(y_v) l_v / sum_v w(y_v);  0, with a zero gradient, if no voxel has a weight
    regions: CE_w = sum_r w_r mean_v BCE_vr / sum_r w_r

    Args:
        sums: Of the batch, see `softmax_sums_of` and `sigmoid_sums`.
        class_weights: Shape (k,), floating, >= 0, without gradient; None: all 1.
        across_ranks: Divide by the weights hit on all ranks, so that the mean of the ranks' losses, and of their
            gradients, is that of the joined batch.

    Returns:
        loss: Scalar, floating, connected to the graph in any case.
        hit_weight: sum_v w(y_v) of the joined batch, scalar; 0 where the loss is 0 for want of weights.

    Source: CE of the DHC family (torch's weighted mean); xmed-lab/DHC@b3dee97 code/utils/loss.py.
    Deviations: the value 0 where the reference divides 0 by 0.
    """
    hits = sums.hits.detach()
    weights = torch.ones_like(hits) if class_weights is None else class_weights.detach().to(hits.dtype).expand_as(hits)
    weights = torch.where(hits > 0, weights, torch.zeros_like(weights))
    hit_weight = (weights * hits).sum()
    denominator = hit_weight
    if across_ranks:
        hit_weight = sum_across_ranks(hit_weight)
        denominator = hit_weight / num_ranks()
    # The weights are divided before they meet the loss: the factor that a gradient scaler multiplies stays below 1.
    normalized = weights / denominator.clamp_min(torch.finfo(hits.dtype).tiny)
    return (normalized * sums.cross_entropy).sum(), hit_weight


def weighted_soft_dice_loss(
    sums: LossSums,
    class_weights: Tensor | None = None,
    smooth: float = 1e-5,
    pooled_over_batch: bool = True,
    across_ranks: bool = False,
) -> Tensor:
    """Negative mean of the soft Dice of the classes, each multiplied by its weight.

    D_w = -(1/k) sum_k w_k SD_k,  SD_k = (2 intersection_k + smooth) / max(predicted_k + labeled_k + smooth, 1e-8)

    Args:
        sums: Of the batch, restricted to the classes that take part.
        class_weights: Shape (k,), floating, >= 0, of the same classes, without gradient; None: all 1.
        smooth: In voxels; the authors' code has 1, nnU-Net 1e-5.
        pooled_over_batch: One Dice from the sums over all samples, instead of the mean of the samples' Dice.
        across_ranks: Give the value and, after averaging over ranks, the gradient of the joined batch.

    Returns:
        Loss, scalar, floating, in [-mean(w), 0].

    Raises:
        ValueError: If the sums were made without overlap.

    Source: xmed-lab/DHC@b3dee97 code/utils/loss.py; guard of the denominator as in nnU-Net v2.8.
    Deviations: the reference adds 1e-8 to the denominator instead of bounding it.
    """
    if sums.intersection is None or sums.predicted is None:
        raise ValueError("soft Dice needs sums that were made with overlap=True")
    parts = torch.stack([sums.intersection, sums.predicted, sums.labeled])
    if pooled_over_batch:
        parts = parts.sum(1, keepdim=True)
        if across_ranks:
            parts = differentiable_sum_across_ranks(parts)
    intersection, predicted, labeled = parts.unbind()
    dice = (2.0 * intersection + smooth) / (predicted + labeled + smooth).clamp_min(MIN_DENOMINATOR)
    if class_weights is not None:
        dice = dice * class_weights.detach().to(dice.dtype)
    loss = -dice.mean()
    if across_ranks and not pooled_over_batch:
        samples = torch.full_like(loss.detach(), float(dice.shape[0]))
        loss = loss * (samples * num_ranks() / sum_across_ranks(samples))
    return loss
