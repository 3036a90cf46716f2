# SPDX-License-Identifier: Apache-2.0
"""What a voxel can be labeled as: one of several classes, or a member of overlapping regions.

Both kinds offer the same methods, so that a trainer never asks which one it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_dhc.core.class_counts import count_agreement, count_voxels
from nnunet_dhc.core.loss_sums import LossSums, Reading, sigmoid_sums, softmax_sums_of
from nnunet_dhc.core.pseudo_labels import highest_class
from nnunet_dhc.core.weighted_losses import weighted_cross_entropy, weighted_soft_dice_loss


class Overlap(NamedTuple):
    """Voxel counts of a prediction against a target, shape (k,), int64 each, ignored voxels left out."""

    true_positives: Tensor
    predicted: Tensor
    labeled: Tensor


class LabelReading(NamedTuple):
    """Target of some samples of a batch, which begin with number `first`, and how it is to be read."""

    labels: LabelSpace
    target: Tensor
    first: int
    overlap: bool


@lru_cache(maxsize=256)
def _nearest_positions(old_size: int, size: int, device: torch.device) -> Tensor:
    """Which of `old_size` positions each of `size` takes; made once, so that steps copy nothing to the device."""
    positions = torch.arange(old_size, dtype=torch.float32)
    return F.interpolate(positions[None, None], size=size, mode="nearest-exact")[0, 0].long().to(device)


class LabelSpace(ABC):
    """Pseudo labels, counts and losses of one kind of target.

    Targets are nnU-Net's. `class_weights` has length `num_classes`; None weighs all alike. Losses are computed in
    float32 whatever the dtype of the logits, and are finite for finite logits.

    Args:
        num_classes: Length k of counts and class weights.
    """

    sums_have_background: bool
    """Whether `loss_sums_of` has a column for class 0, as a softmax does."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    @abstractmethod
    def pseudo_label(self, logits: Tensor) -> Tensor:
        """The hard prediction, as a target without ignored voxels and without gradient."""

    @abstractmethod
    def count(self, target: Tensor) -> Tensor:
        """Voxels per class, shape (k,), int64, ignored voxels left out."""

    @abstractmethod
    def overlap(self, prediction: Tensor, target: Tensor) -> Overlap:
        """Count how a pseudo label agrees with a target, where the target is not ignored."""

    @abstractmethod
    def without_ignore(self) -> LabelSpace:
        """The same labels for targets in which no voxel is ignored, such as pseudo labels."""

    @abstractmethod
    def with_ignore(self) -> LabelSpace:
        """The same labels for targets in which voxels may be ignored, see `keep_confident`."""

    @abstractmethod
    def keep_confident(self, pseudo_label: Tensor, logits: Tensor, threshold: float) -> Tensor:
        """Ignore the voxels of a pseudo label whose probability is below `threshold`; a target of `with_ignore()`.

        Args:
            pseudo_label: From `pseudo_label(logits)`.
            logits: Shape (b, heads, x, y[, z]), without gradient.
            threshold: In [0, 1]. For regions a voxel is kept if every region is decided with that probability.
        """

    @property
    @abstractmethod
    def may_ignore(self) -> bool:
        """Whether voxels of a reference may be ignored."""

    @abstractmethod
    def reference_where(self, mask: Tensor, reference: Tensor, pseudo_label: Tensor) -> Tensor:
        """The reference in the mask, the pseudo label elsewhere.

        Args:
            mask: Shape (b, 1, x, y[, z]), bool.
            reference: Target of the same patches.
            pseudo_label: A target of `with_ignore()` if voxels of the reference may be ignored.

        Returns:
            A target of the kind and dtype of the pseudo label.
        """

    @abstractmethod
    def loss_sums_of(self, logits: Tensor, readings: Sequence[LabelReading]) -> list[LossSums]:
        """Everything the losses need of the voxels, for the same logits against several targets.

        Args:
            logits: Shape (b, heads, x, y[, z]).
            readings: Targets of these labels, with or without ignored voxels.

        Returns:
            One for each reading, in their order.
        """

    def cross_entropy_of(
        self, sums: LossSums, class_weights: Tensor | None, across_ranks: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Weighted cross entropy and the sum of the weights it hit, see `weighted_cross_entropy`."""
        if class_weights is not None and not self.sums_have_background:
            class_weights = class_weights[1:]
        return weighted_cross_entropy(sums, class_weights, across_ranks)

    def soft_dice_loss_of(
        self,
        sums: LossSums,
        class_weights: Tensor | None,
        smooth: float,
        pooled_over_batch: bool,
        across_ranks: bool = False,
    ) -> Tensor:
        """Weighted negative soft Dice of the foreground, see `weighted_soft_dice_loss`."""
        foreground = sums.from_class(1) if self.sums_have_background else sums
        weights = None if class_weights is None else class_weights[1:]
        return weighted_soft_dice_loss(foreground, weights, smooth, pooled_over_batch, across_ranks)

    @staticmethod
    def downsample(target: Tensor, spatial_shape: Sequence[int]) -> Tensor:
        """Take the nearest voxels, as nnU-Net's DownsampleSegForDSTransform does (torch's nearest-exact).

        Args:
            target: Shape (b, c, x, y[, z]), any dtype.
            spatial_shape: Sizes of the result along x, y[, z].

        Returns:
            Target of the new size, same dtype; the input itself where nothing changes.
        """
        for axis, size in enumerate(spatial_shape, start=2):
            old_size = target.shape[axis]
            if size != old_size:
                target = target.index_select(axis, _nearest_positions(old_size, int(size), target.device))
        return target


class ClassLabels(LabelSpace):
    """Mutually exclusive classes under a softmax.

    Targets: class indices, shape (b, 1, x, y[, z]), integer, which may hold `ignore_label`. Pseudo labels: the same,
    uint8, without it. Dice is over the foreground, classes 1 to k - 1.

    Args:
        num_classes: k, background included.
        ignore_label: Value of voxels that take no part; nnU-Net's is k.
    """

    sums_have_background = True

    def __init__(self, num_classes: int, ignore_label: int | None = None) -> None:
        super().__init__(num_classes)
        self.ignore_label = ignore_label

    def pseudo_label(self, logits: Tensor) -> Tensor:
        return highest_class(logits)

    def without_ignore(self) -> ClassLabels:
        return ClassLabels(self.num_classes)

    def with_ignore(self) -> ClassLabels:
        return ClassLabels(self.num_classes, ignore_label=self.num_classes)

    def keep_confident(self, pseudo_label: Tensor, logits: Tensor, threshold: float) -> Tensor:
        confidence = logits.float().softmax(1).amax(1, keepdim=True)
        return torch.where(confidence >= threshold, pseudo_label, self.num_classes)

    @property
    def may_ignore(self) -> bool:
        return self.ignore_label is not None

    def reference_where(self, mask: Tensor, reference: Tensor, pseudo_label: Tensor) -> Tensor:
        if self.ignore_label is not None:
            reference = reference.masked_fill(reference == self.ignore_label, self.num_classes)
        return torch.where(mask, reference.to(pseudo_label.dtype), pseudo_label)

    def count(self, target: Tensor) -> Tensor:
        return count_voxels(target, self.num_classes, self.ignore_label)

    def overlap(self, prediction: Tensor, target: Tensor) -> Overlap:
        return Overlap(*count_agreement(prediction, target, self.num_classes, self.ignore_label))

    def loss_sums_of(self, logits: Tensor, readings: Sequence[LabelReading]) -> list[LossSums]:
        plain = []
        for labels, target, first, overlap in readings:
            assert isinstance(labels, ClassLabels)
            plain.append(Reading(target, first, labels.ignore_label, overlap))
        return softmax_sums_of(logits, plain)


class RegionLabels(LabelSpace):
    """Overlapping regions, each under a sigmoid.

    Targets: membership, shape (b, r, x, y[, z]), bool or 0/1; with `has_ignore_channel` (b, r + 1, x, y[, z]), whose
    last channel marks ignored voxels. Pseudo labels: bool, r channels; they are accepted as targets in both cases.

    Counts and class weights have length k = 1 + r: index 0 is "voxels in no region", index i + 1 is region i (a voxel
    in two regions counts for both). Every region is a binary problem, so its weight acts on whole terms:
    CE_w = sum_i w_(i+1) mean_v BCE_vi / sum_i w_(i+1),  D_w = -(1/r) sum_i w_(i+1) SD_i;  w_0 enters neither.

    Args:
        num_regions: r.
        has_ignore_channel: Whether targets carry the ignore channel.
    """

    sums_have_background = False

    def __init__(self, num_regions: int, has_ignore_channel: bool = False) -> None:
        super().__init__(1 + num_regions)
        self.num_regions = num_regions
        self.has_ignore_channel = has_ignore_channel

    def _split(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Membership, and the valid voxels (None: all)."""
        if self.has_ignore_channel and target.shape[1] == self.num_regions + 1:
            return target[:, :-1], target[:, -1:] == 0
        return target, None

    def pseudo_label(self, logits: Tensor) -> Tensor:
        return logits.detach() > 0

    def without_ignore(self) -> RegionLabels:
        return RegionLabels(self.num_regions)

    def with_ignore(self) -> RegionLabels:
        return RegionLabels(self.num_regions, has_ignore_channel=True)

    def keep_confident(self, pseudo_label: Tensor, logits: Tensor, threshold: float) -> Tensor:
        # sigmoid(|z|) is the probability of the decision, whichever it is
        unsure = (logits.float().abs().sigmoid() < threshold).any(1, keepdim=True)
        return torch.cat([pseudo_label, unsure], 1)

    @property
    def may_ignore(self) -> bool:
        return self.has_ignore_channel

    def reference_where(self, mask: Tensor, reference: Tensor, pseudo_label: Tensor) -> Tensor:
        if reference.shape[1] < pseudo_label.shape[1]:
            reference = torch.cat([reference, torch.zeros_like(reference[:, :1])], 1)  # none of it is ignored
        return torch.where(mask, reference.to(pseudo_label.dtype), pseudo_label)

    def count(self, target: Tensor) -> Tensor:
        member, valid = self._split(target)
        return _count_members(member.bool(), valid)

    def overlap(self, prediction: Tensor, target: Tensor) -> Overlap:
        member, valid = self._split(target)
        member, prediction = member.bool(), prediction.bool()
        agreed = _count_members(member & prediction, valid)
        # in no region according to both: those that are in no region of the union
        agreed[0] = _count_members(member | prediction, valid)[0]
        return Overlap(agreed, _count_members(prediction, valid), _count_members(member, valid))

    def loss_sums_of(self, logits: Tensor, readings: Sequence[LabelReading]) -> list[LossSums]:
        found = []
        for labels, target, first, overlap in readings:
            assert isinstance(labels, RegionLabels)
            member, valid = labels._split(target)
            found.append(sigmoid_sums(logits[first : first + len(target)], member, valid, overlap))
        return found


def _count_members(member: Tensor, valid: Tensor | None) -> Tensor:
    """Valid voxels in no region and in each region; member (b, r, ...), valid (b, 1, ...), bool -> (1 + r,) int64."""
    outside = member.view(torch.uint8).amax(1) == 0
    channels = [outside, *member.unbind(1)]
    if valid is not None:
        channels = [channel & valid[:, 0] for channel in channels]
    # one by one: on the CPU (torch 2.14) this is 40 times as fast as a sum of the bool tensor along two axes
    return torch.stack([torch.count_nonzero(channel) for channel in channels])
