# SPDX-License-Identifier: Apache-2.0
"""The objective of one co-training step: from the outputs of A and B to losses, with the class weights in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_dhc.core.across_ranks import sum_across_ranks
from nnunet_dhc.core.class_counts import hard_dice
from nnunet_dhc.core.class_weighting import ClassWeighting
from nnunet_dhc.core.label_spaces import LabelSpace


@dataclass(frozen=True)
class LossComposition:
    """Which terms the losses have; see `Recipe` for the meaning and the range of each."""

    supervised_ce: float = 1.0
    supervised_dice: float = 1.0
    unsupervised_ce: float = 1.0
    unsupervised_dice: float = 0.0
    dice_smooth: float = 1e-5
    dice_pooled_over_batch: bool = True
    unsupervised_on_labeled: bool = True
    unsupervised_deep_supervision: bool = True
    confidence_threshold: float = 0.0
    counts_from_labeled: bool = False


@dataclass(frozen=True)
class CoTrainingTerms:
    """What one step computed; all scalars live on the device and only ``total`` and its parts carry a graph."""

    supervised_a: Tensor
    supervised_b: Tensor
    unsupervised_a: Tensor
    unsupervised_b: Tensor
    empty_cross_entropies: Tensor
    """Number of cross entropies of the step whose hit weights summed to 0."""

    def total(self, loss_weight: float) -> Tensor:
        """S_A + S_B + lambda * (U_A + U_B)."""
        supervised = self.supervised_a + self.supervised_b
        if loss_weight == 0:
            return supervised
        return supervised + loss_weight * (self.unsupervised_a + self.unsupervised_b)


class CoTrainingObjective:
    """Cross pseudo supervision of two networks with a class weighting for each.

    In every step: pseudo labels from the full-resolution logits of both networks, then the weights of A and of B from
    them, then, with these weights,

        S_X = supervised_ce * CE_wX(z_X, y) + supervised_dice * Dice_wX(z_X, y)               on labeled patches
        U_X = unsupervised_ce * CE_wX(z_X, pseudo_Y) + unsupervised_dice * Dice_wX(z_X, pseudo_Y)

    with Y the other network. With deep supervision every loss is the sum over the outputs with nnU-Net's factors.

    Args:
        labels: How logits, targets and counts relate (softmax classes or sigmoid regions).
        weighting_a, weighting_b: Class weightings, updated once a step.
        composition: Which terms there are.
        output_factors: Factor of every deep-supervision output, full resolution first; (1.0,) without.
        across_ranks: Reduce statistics and loss denominators over ``torch.distributed`` ranks.

    Source: DHC (Wang & Li, MICCAI 2023), Eq. 1-2 and the released training step.
    """

    def __init__(
        self,
        labels: LabelSpace,
        weighting_a: ClassWeighting,
        weighting_b: ClassWeighting,
        composition: LossComposition,
        output_factors: Sequence[float] = (1.0,),
        across_ranks: bool = False,
    ) -> None:
        self.labels = labels
        self.weighting_a = weighting_a
        self.weighting_b = weighting_b
        self.composition = composition
        self.output_factors = tuple(float(f) for f in output_factors)
        self.across_ranks = across_ranks

    @torch.no_grad()
    def pseudo_labels(self, logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor]:
        """Hard pseudo labels of A and of B, without gradient."""
        return self.labels.pseudo_label(logits_a.detach()), self.labels.pseudo_label(logits_b.detach())

    @torch.no_grad()
    def update_weights(
        self, pseudo_a: Tensor, pseudo_b: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Bring the class weights of A and of B up to date with this step's predictions.

        Args:
            pseudo_a, pseudo_b: Pseudo labels of the joint batch, labeled patches first.
            target: Reference of the labeled patches, shape (b_labeled, ...), at full resolution.

        Returns:
            Weights of A and of B, each (k,) float32, and the voxels per class of both networks' pseudo labels on the
            patches that are counted, shape (2, k) int64; None where none is counted.
        """
        num_labeled = target.shape[0]
        from_labeled = self.composition.counts_from_labeled
        # a step without unlabeled patches says nothing about their class distribution
        countable = from_labeled or pseudo_a.shape[0] > num_labeled
        counts = []
        for weighting, pseudo in ((self.weighting_a, pseudo_a), (self.weighting_b, pseudo_b)):
            labeled, unlabeled = pseudo[:num_labeled], pseudo[num_labeled:]
            if weighting.reads == "labeled_dice":
                weighting.update(hard_dice(*(self._summed(n) for n in self.labels.overlap(labeled, target))))
            if not countable:
                continue
            counted = self._summed(self.labels.count(labeled if from_labeled else unlabeled))
            counts.append(counted)
            if weighting.reads == "all_counts" and not from_labeled:
                weighting.update(counted + self._summed(self.labels.count(labeled)))
            elif weighting.reads in ("all_counts", "unlabeled_counts"):
                weighting.update(counted)
        return self.weighting_a.weights, self.weighting_b.weights, torch.stack(counts) if countable else None

    def terms(
        self,
        outputs_a: Sequence[Tensor],
        outputs_b: Sequence[Tensor],
        targets: Sequence[Tensor],
        pseudo_a: Tensor,
        pseudo_b: Tensor,
        weights_a: Tensor,
        weights_b: Tensor,
        unsupervised: bool = True,
    ) -> CoTrainingTerms:
        """Losses of both networks.

        Args:
            outputs_a, outputs_b: Logits per output, (b_labeled + b_unlabeled, k, *spatial), full resolution first.
            targets: Reference of the labeled patches per output.
            pseudo_a, pseudo_b: Pseudo labels of the joint batch at full resolution.
            weights_a, weights_b: Class weights, (k,).
            unsupervised: False leaves U_A and U_B at 0.
        """
        supervised_a, empty_1 = self.supervised(outputs_a, targets, weights_a)
        supervised_b, empty_2 = self.supervised(outputs_b, targets, weights_b)
        if unsupervised:
            first = 0 if self.composition.unsupervised_on_labeled else targets[0].shape[0]
            unsupervised_a, empty_3 = self.unsupervised(outputs_a, outputs_b[0].detach(), pseudo_b, weights_a, first)
            unsupervised_b, empty_4 = self.unsupervised(outputs_b, outputs_a[0].detach(), pseudo_a, weights_b, first)
            empty = empty_1 + empty_2 + empty_3 + empty_4
        else:
            unsupervised_a = unsupervised_b = torch.zeros_like(supervised_a)
            empty = empty_1 + empty_2
        return CoTrainingTerms(supervised_a, supervised_b, unsupervised_a, unsupervised_b, empty)

    def supervised(
        self, outputs: Sequence[Tensor], targets: Sequence[Tensor], class_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """S of one network on the labeled patches (the first rows), and how many of its cross entropies were empty."""
        num_labeled = targets[0].shape[0]
        total = _Sum(self, outputs[0])
        for factor, logits, target in zip(self.output_factors, outputs, targets, strict=True):
            if factor:
                total.add(
                    factor,
                    self.labels,
                    logits[:num_labeled],
                    target,
                    class_weights,
                    self.composition.supervised_ce,
                    self.composition.supervised_dice,
                )
        return total.loss, total.empty

    def unsupervised(
        self,
        outputs: Sequence[Tensor],
        peer_logits: Tensor,
        peer_pseudo_label: Tensor,
        class_weights: Tensor,
        first_patch: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """U of one network against its peer's pseudo label, from patch ``first_patch`` on."""
        composition, labels, pseudo_label = self.composition, self.labels.without_ignore(), peer_pseudo_label
        if composition.confidence_threshold > 0:
            labels = self.labels.with_ignore()
            pseudo_label = labels.keep_confident(pseudo_label, peer_logits, composition.confidence_threshold)
        factors = self.output_factors if composition.unsupervised_deep_supervision else (1.0,)
        total = _Sum(self, outputs[0])
        for factor, logits in zip(factors, outputs, strict=False):
            if factor:
                total.add(
                    factor,
                    labels,
                    logits[first_patch:],
                    labels.downsample(pseudo_label[first_patch:], logits.shape[2:]),
                    class_weights,
                    composition.unsupervised_ce,
                    composition.unsupervised_dice,
                )
        return total.loss, total.empty

    def _summed(self, counts: Tensor) -> Tensor:
        return sum_across_ranks(counts) if self.across_ranks else counts


class _Sum:
    """Sum of the losses over deep-supervision outputs, and the number of empty cross entropies."""

    def __init__(self, objective: CoTrainingObjective, like: Tensor) -> None:
        self._objective = objective
        self.loss = like.new_zeros((), dtype=torch.float32)
        self.empty = like.new_zeros((), dtype=torch.float32)

    def add(
        self,
        factor: float,
        labels: LabelSpace,
        logits: Tensor,
        target: Tensor,
        class_weights: Tensor,
        ce_factor: float,
        dice_factor: float,
    ) -> None:
        composition, across_ranks = self._objective.composition, self._objective.across_ranks
        sums = labels.loss_sums(logits, target, overlap=dice_factor > 0)
        if ce_factor:
            cross_entropy, hit_weight = labels.cross_entropy_of(sums, class_weights, across_ranks)
            self.loss = self.loss + factor * ce_factor * cross_entropy
            self.empty += hit_weight == 0
        if dice_factor:
            self.loss = self.loss + factor * dice_factor * labels.soft_dice_loss_of(
                sums, class_weights, composition.dice_smooth, composition.dice_pooled_over_batch, across_ranks
            )
