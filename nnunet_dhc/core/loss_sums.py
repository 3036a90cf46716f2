# SPDX-License-Identifier: Apache-2.0
"""Per-sample, per-class sums from which cross entropy and soft Dice are made, for any class weights.

Both losses need no more of the voxels than five numbers per sample and class, so the logits are read once for both,
class weights and reductions over ranks act on tiny tensors, and no one-hot map and no softmax is kept for the backward
pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_dhc.core.voxel_pieces import SamplesRead, VoxelPieces


@dataclass(frozen=True)
class LossSums:
    """Sums over the voxels of each sample that are not ignored.

    Args:
        cross_entropy: Sum of the cross entropy of the voxels that belong to class k, shape (b, k), floating. For
            regions: of the binary cross entropy of all voxels.
        hits: Number of voxels in that sum, shape (b, k), floating.
        intersection: Sum of the probability of class k over its own voxels, shape (b, k), floating; None if not made.
        predicted: Sum of the probability of class k, shape (b, k), floating; None if not made.
        labeled: Voxels labeled k, shape (b, k), floating.
    """

    cross_entropy: Tensor
    hits: Tensor
    intersection: Tensor | None
    predicted: Tensor | None
    labeled: Tensor

    def join(self, other: LossSums) -> LossSums:
        """The sums of both batches as one batch; the overlap is kept if both have it."""

        def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else torch.cat([a, b])

        return LossSums(
            torch.cat([self.cross_entropy, other.cross_entropy]),
            torch.cat([self.hits, other.hits]),
            both(self.intersection, other.intersection),
            both(self.predicted, other.predicted),
            torch.cat([self.labeled, other.labeled]),
        )

    def from_class(self, first: int) -> LossSums:
        """The sums of classes `first` and up."""

        def tail(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[:, first:]

        return LossSums(
            self.cross_entropy[:, first:],
            self.hits[:, first:],
            tail(self.intersection),
            tail(self.predicted),
            self.labeled[:, first:],
        )


class Reading(NamedTuple):
    """Against what some samples of a batch are read, see `softmax_sums_of`.

    Args:
        target: Class indices, shape (b', 1, x, y[, z]), integer, in [0, k) or `ignore_label`.
        first: Sample of the batch that the first row of `target` belongs to.
        ignore_label: Value of voxels that take no part.
        overlap: Whether the sums for soft Dice are made too.
    """

    target: Tensor
    first: int = 0
    ignore_label: int | None = None
    overlap: bool = True


def softmax_sums_of(logits: Tensor, readings: Sequence[Reading]) -> list[LossSums]:
    """Make the sums of mutually exclusive classes, of the same logits against several targets.

    p = softmax(logits);  cross_entropy_k = sum over v with y_v = k of -ln p_vk,  intersection_k = sum over the same
    voxels of p_vk,  predicted_k = sum_v p_vk,  hits_k = labeled_k = #{v : y_v = k}. Each voxel's softmax is made once
    for all targets.

    Args:
        logits: Shape (b, k, x, y[, z]), floating; computed in float32 (float64 stays).
        readings: Targets and the samples that they belong to.

    Returns:
        For each reading the sums of its samples, with gradients with respect to `logits`.

    Raises:
        ValueError: If the shapes do not belong together.

    Source: own; the closed form of the gradients of cross entropy and soft Dice through the softmax.
    Deviations: none.
    """
    for reading in readings:
        rows, shape = reading.target.shape[0], reading.target.shape[1:]
        if shape != (1, *logits.shape[2:]) or not 0 <= reading.first <= logits.shape[0] - rows:
            raise ValueError(
                f"target of shape {tuple(reading.target.shape)} does not belong to logits {tuple(logits.shape)}"
            )
    targets = [reading.target.detach().flatten(1) for reading in readings]
    samples = [
        SamplesRead(r.first, len(r.target), -1 if r.ignore_label is None else r.ignore_label, r.overlap)
        for r in readings
    ]
    flat: tuple[Tensor, ...] = _SoftmaxSums.apply(logits.flatten(2), samples, *targets)
    result = []
    for number, reading in enumerate(readings):
        cross_entropy, intersection, predicted, labeled = flat[4 * number : 4 * number + 4]
        if reading.overlap:
            result.append(LossSums(cross_entropy, labeled, intersection, predicted, labeled))
        else:
            result.append(LossSums(cross_entropy, labeled, None, None, labeled))
    return result


def sigmoid_sums(logits: Tensor, target: Tensor, valid: Tensor | None = None, overlap: bool = True) -> LossSums:
    """Make the sums of overlapping regions, each a binary problem of its own.

    p = sigmoid(logits);  cross_entropy_r = sum_v BCE(p_vr, y_vr),  hits_r = number of valid voxels,
    intersection_r = sum_v p_vr y_vr,  predicted_r = sum_v p_vr,  labeled_r = sum_v y_vr

    Args:
        logits: Shape (b, r, x, y[, z]), floating; computed in float32 (float64 stays).
        target: Membership, same shape, bool or 0/1.
        valid: Voxels that take part, shape (b, 1, x, y[, z]), bool; None: all.
        overlap: Whether the sums for soft Dice are made too.

    Returns:
        `LossSums` with gradients with respect to `logits`, k read as r.

    Raises:
        ValueError: If the shapes do not belong together.

    Source: nnU-Net's region-based training.
    Deviations: none.
    """
    if target.shape != logits.shape:
        raise ValueError(f"target of shape {tuple(target.shape)} does not belong to logits {tuple(logits.shape)}")
    scores = logits.flatten(2)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    truth = target.detach().flatten(2).to(scores.dtype)
    bce = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    if valid is None:
        hits = torch.full_like(truth[..., 0], float(truth.shape[-1]))
        mask = None
    else:
        mask = valid.detach().flatten(2).to(scores.dtype)
        hits = mask.sum(2).expand(-1, truth.shape[1])
        bce = bce * mask
        truth = truth * mask
    labeled = truth.sum(2)
    if not overlap:
        return LossSums(bce.sum(2), hits, None, None, labeled)
    probs = torch.sigmoid(scores)
    predicted = probs.sum(2) if mask is None else (probs * mask).sum(2)
    return LossSums(bce.sum(2), hits, (probs * truth).sum(2), predicted, labeled)


def _per_class(values: Tensor, index: Tensor, buffer: Tensor) -> Tensor:
    """Sum `values` (s, n) by class index (s, n) into (s, k), accurate for millions of voxels; spoils `buffer`."""
    samples, k, _ = buffer.shape
    if values.device.type == "cpu":
        bins = index + k * torch.arange(samples)[:, None]
        return torch.bincount(bins.ravel(), weights=values.double().ravel(), minlength=samples * k).view(samples, k)
    return _scatter_per_class(values, index, buffer)


def _scatter_per_class(values: Tensor, index: Tensor, buffer: Tensor) -> Tensor:
    """The way of accelerators, one operation without a wait: each value at its class in `buffer` (s, k, n), summed."""
    return buffer.zero_().scatter_(1, index[:, None], values[:, None]).sum(2)


class _SoftmaxSums(torch.autograd.Function):
    """Keeps one number per voxel, ln sum_j exp z_j, for the backward pass, which makes the softmax from it again.

    Works through one piece of the samples and voxels at a time in buffers that are used again: on the CPU fresh memory
    of the size of the logits costs more time than the arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, reads: list[SamplesRead], *targets: Tensor) -> tuple[Tensor, ...]:
        b, k, n = logits.shape
        pieces = VoxelPieces(logits, 1, reads)
        exact = torch.float64 if logits.device.type == "cpu" else pieces.dtype
        sums = [torch.zeros(4, target.shape[0], k, dtype=exact, device=logits.device) for target in targets]
        log_sum = torch.empty(b, n, dtype=pieces.dtype, device=logits.device)
        for samples, voxels, readings, (buffer,) in pieces:
            if not readings:
                continue
            scores = logits[samples, :, voxels]
            largest = scores.amax(1).to(pieces.dtype)
            total = torch.sub(scores, largest[:, None], out=buffer).exp_().sum(1)
            log_total = torch.add(largest, total.log(), out=log_sum[samples, voxels])
            holds_exponentials = True
            for reading in readings:
                cross_entropy, intersection, predicted, labeled = sums[reading.number][:, reading.rows]
                target = targets[reading.number][reading.rows, voxels]
                index, valid = reading.index_and_mask(target, pieces.dtype)
                own = scores.gather(1, index[:, None])[:, 0] - log_total
                present = torch.ones_like(own) if valid is None else valid
                if reading.overlap:
                    if not holds_exponentials:
                        torch.sub(scores, largest[:, None], out=buffer).exp_()
                    predicted += buffer.mul_((present / total)[:, None]).sum(2)
                    intersection += _per_class(own.exp().mul_(present), index, buffer)
                labeled += _per_class(present, index, buffer)
                cross_entropy -= _per_class(own.mul_(present), index, buffer)
                holds_exponentials = False
        ctx.save_for_backward(logits, log_sum, *targets)
        ctx.reads = reads
        results = [value for of_reading in sums for value in of_reading.to(pieces.dtype).unbind()]
        ctx.mark_non_differentiable(*results[3::4])
        return tuple(results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # With g_i the gradient with respect to p_i, of_predicted_i + [i = y] of_intersection_y, the softmax gives
        # p_j (g_j - sum_i p_i g_i); the cross entropy of_entropy_y (p_j - [j = y]). All readings share p_j, so their
        # factors of it are added up: those that differ by class in `of_classes`, those that differ by voxel in `mean`.
        logits, log_sum, *targets = ctx.saved_tensors
        result = torch.empty_like(logits)
        pieces = VoxelPieces(logits, 2, ctx.reads)
        for samples, voxels, readings, (probs, buffer) in pieces:
            if not readings:
                result[samples, :, voxels] = 0
                continue
            torch.sub(logits[samples, :, voxels], log_sum[samples, None, voxels], out=probs).exp_()
            mean: Tensor | None = None
            of_classes: Tensor | None = None
            at_targets = []
            for reading in readings:
                of_target = gradients[4 * reading.number : 4 * reading.number + 3]
                of_entropy, of_intersection, of_predicted = (gradient[reading.rows] for gradient in of_target)
                target = targets[reading.number][reading.rows, voxels]
                index, valid = reading.index_and_mask(target, pieces.dtype)
                at_target = own_mean = -of_entropy.gather(1, index)
                if reading.overlap:
                    by_class = of_predicted[:, :, None]
                    own = probs.gather(1, index[:, None])[:, 0].mul_(of_intersection.gather(1, index))
                    own_mean = torch.mul(probs, by_class, out=buffer).sum(1).add_(own).add_(at_target)
                    at_target = at_target + own
                    by_class = by_class if valid is None else by_class * valid[:, None]
                    of_classes = by_class if of_classes is None else of_classes + by_class
                if valid is not None:
                    own_mean, at_target = own_mean * valid, at_target * valid
                mean = own_mean if mean is None else mean + own_mean
                at_targets.append((index, at_target))
            assert mean is not None  # there are readings
            factor = -mean[:, None] if of_classes is None else torch.sub(of_classes, mean[:, None], out=buffer)
            probs.mul_(factor)
            for index, at_target in at_targets:
                probs.scatter_add_(1, index[:, None], at_target[:, None])
            result[samples, :, voxels] = probs
        return result, None, *[None] * len(targets)
