# SPDX-License-Identifier: Apache-2.0
"""The objective of one co-training step: from the outputs of A and B to losses, with the class weights in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_dhc.core.across_ranks import sum_across_ranks
from nnunet_dhc.core.class_counts import hard_dice
from nnunet_dhc.core.class_weighting import ClassWeighting, tempered
from nnunet_dhc.core.label_spaces import LabelReading, LabelSpace, Overlap
from nnunet_dhc.core.loss_sums import LossSums
from nnunet_dhc.core.term_sums import TermSums

LEAST_REGION_WEIGHT = 0.1  # relative to the largest; of a region's own, without which nothing trains its output


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
    teacher_is_mean: bool = False
    pastes_reference: bool = False
    counts_from_labeled: bool = False
    weight_mean_one: bool = False
    weight_minimum: float = 0.0


@dataclass(frozen=True)
class NetworkTerms:
    """Losses of one network in a step; ``supervised`` and ``unsupervised`` carry a graph until `detached`."""

    supervised: Tensor
    unsupervised: Tensor
    empty_cross_entropies: Tensor
    """Number of its cross entropies whose hit weights summed to 0."""

    def total(self, loss_weight: float) -> Tensor:
        """S + lambda * U."""
        return self.supervised if loss_weight == 0 else self.supervised + loss_weight * self.unsupervised

    def detached(self) -> NetworkTerms:
        """The figures without their graph."""
        return NetworkTerms(self.supervised.detach(), self.unsupervised.detach(), self.empty_cross_entropies)


@dataclass(frozen=True)
class CoTrainingTerms:
    """What one step computed; all scalars live on the device, and only ``total`` and its parts may carry a graph."""

    supervised_a: Tensor
    supervised_b: Tensor
    unsupervised_a: Tensor
    unsupervised_b: Tensor
    empty_cross_entropies: Tensor
    """Number of cross entropies of the step whose hit weights summed to 0."""

    @classmethod
    def of_both(cls, a: NetworkTerms, b: NetworkTerms) -> CoTrainingTerms:
        """Those of A and of B together."""
        empty = a.empty_cross_entropies + b.empty_cross_entropies
        return cls(a.supervised, b.supervised, a.unsupervised, b.unsupervised, empty)

    def total(self, loss_weight: float) -> Tensor:
        """S_A + S_B + lambda * (U_A + U_B)."""
        supervised = self.supervised_a + self.supervised_b
        if loss_weight == 0:
            return supervised
        return supervised + loss_weight * (self.unsupervised_a + self.unsupervised_b)


class NetworkUpdate(NamedTuple):
    """What the predictions of one network in a step gave.

    Attributes:
        weights: Its class weights, (k,) float32.
        counts: Voxels per class of its pseudo labels on the patches that are counted, (k,) int64; None if none is.
        overlap: Of its pseudo labels with the reference of the labeled patches, (3, k) int64, as in `Overlap`.
    """

    weights: Tensor
    counts: Tensor | None
    overlap: Tensor


def counts_of(updates: Sequence[NetworkUpdate]) -> Tensor | None:
    """Counts of A and of B, (2, k), or None."""
    counts = [update.counts for update in updates if update.counts is not None]
    return torch.stack(counts) if counts else None


def overlaps_of(updates: Sequence[NetworkUpdate]) -> Tensor:
    """Overlaps of A and of B, (2, 3, k)."""
    return torch.stack([update.overlap for update in updates])


class CoTrainingObjective:
    """Cross pseudo supervision of two networks with a class weighting for each.

    In every step: pseudo labels from the full-resolution logits of both networks, then the weights of A and of B from
    them, then, with these weights,

        S_X = supervised_ce * CE_wX(z_X, y) + supervised_dice * Dice_wX(z_X, y)               on labeled patches
        U_X = unsupervised_ce * CE_wX(z_X, pseudo_Y) + unsupervised_dice * Dice_wX(z_X, pseudo_Y)

    with Y the other network, or, with ``teacher_is_mean``, the mean of both networks' logits. With deep supervision
    every loss is the sum over the outputs with nnU-Net's factors.

    DistDW gives the most frequent class a weight of 0. Among classes that is the background, nearly always, and its
    voxels still tell the others. A region has an output of its own, whose loss is all multiplied by its weight: so with
    regions no weight is below a tenth of the largest. The paper has no regions.

    Args:
        labels: How logits, targets and counts relate (softmax classes or sigmoid regions).
        weighting_a, weighting_b: Class weightings, updated once a step.
        composition: Which terms there are.
        output_factors: Factor of every deep-supervision output, full resolution first; (1.0,) without.
        across_ranks: Reduce statistics and loss denominators over ``torch.distributed`` ranks.

    Attributes:
        weightings: Of A and of B.
        weight_exponents: Of the background's weight (class 0) and of all others, see `tempered`; may change from epoch
            to epoch.
        background_weight: Of both networks, see `tempered`; None leaves it to each weighting.

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
        self.weightings = weighting_a, weighting_b
        self.composition = composition
        self.output_factors = tuple(float(f) for f in output_factors)
        self.across_ranks = across_ranks
        self.weight_exponents = 1.0, 1.0
        self.background_weight: float | None = None

    @torch.no_grad()
    def pseudo_labels(self, logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor]:
        """Hard pseudo labels of A and of B, without gradient."""
        return self.labels.pseudo_label(logits_a.detach()), self.labels.pseudo_label(logits_b.detach())

    @torch.no_grad()
    def update_weights(self, pseudo_a: Tensor, pseudo_b: Tensor, target: Tensor) -> tuple[NetworkUpdate, NetworkUpdate]:
        """Bring the class weights of A and of B up to date with this step's predictions.

        Args:
            pseudo_a, pseudo_b: Pseudo labels of the joint batch, labeled patches first.
            target: Reference of the labeled patches, shape (b_labeled, ...), at full resolution.
        """
        of_a, of_b = self.weightings
        return self.update_weights_of(of_a, pseudo_a, target), self.update_weights_of(of_b, pseudo_b, target)

    @torch.no_grad()
    def update_weights_of(self, weighting: ClassWeighting, pseudo: Tensor, target: Tensor) -> NetworkUpdate:
        """The same for one network, which needs nothing of the other one.

        Args:
            weighting: One of ``weightings``.
            pseudo: Pseudo labels of that network.
            target: As in `update_weights`.
        """
        num_labeled = target.shape[0]
        from_labeled = self.composition.counts_from_labeled
        labeled, unlabeled = pseudo[:num_labeled], pseudo[num_labeled:]
        overlap = self._summed(torch.stack(self.labels.overlap(labeled, target)))
        if weighting.reads == "labeled_dice":
            weighting.update(hard_dice(*overlap))
        counts = None
        # a step without unlabeled patches says nothing about their class distribution
        if from_labeled or len(unlabeled):
            # of labeled patches without the voxels in which nothing supervises them
            counts = Overlap(*overlap).predicted if from_labeled else self._summed(self.labels.count(unlabeled))
            if weighting.reads == "all_counts" and not from_labeled:
                weighting.update(counts + self._summed(self.labels.count(labeled)))
            elif weighting.reads in ("all_counts", "unlabeled_counts"):
                weighting.update(counts)
        return NetworkUpdate(self._tempered(weighting.weights), counts, overlap)

    @property
    def loss_weights(self) -> tuple[Tensor, Tensor]:
        """Weights of A and of B as the losses take them, (k,) float32."""
        of_a, of_b = self.weightings
        return self._tempered(of_a.weights), self._tempered(of_b.weights)

    def _tempered(self, weights: Tensor) -> Tensor:
        composition = self.composition
        of_background, of_others = self.weight_exponents
        if not self.labels.sums_have_background:
            minimum = max(composition.weight_minimum, LEAST_REGION_WEIGHT)
            return tempered(weights, of_others, composition.weight_mean_one, minimum)
        exponents: float | Tensor = of_others
        if of_background != of_others:
            exponents = torch.full_like(weights, of_others)
            exponents[:1].fill_(of_background)  # assigning the number would wait for a GPU
        return tempered(
            weights, exponents, composition.weight_mean_one, composition.weight_minimum, self.background_weight
        )

    @property
    def couples_networks(self) -> bool:
        """Whether a network learns in a step what the other one says in it, so that both must be seen first.

        Pseudo labels of mixed patches are made before the step.
        """
        return self.composition.unsupervised_on_labeled or not self.composition.pastes_reference

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
        unlabeled_targets: tuple[Tensor, Tensor] | None = None,
    ) -> CoTrainingTerms:
        """Losses of both networks.

        Args:
            outputs_a, outputs_b: Logits per output, (b_labeled + b_unlabeled, k, *spatial), full resolution first.
            targets: Reference of the labeled patches per output.
            pseudo_a, pseudo_b: Pseudo labels of the joint batch at full resolution.
            weights_a, weights_b: Class weights, (k,).
            unsupervised: False leaves U_A and U_B at 0.
            unlabeled_targets: What A and B learn on the unlabeled patches, if not the other one's pseudo label of them.
        """
        target_a = target_b = None
        if unsupervised:
            made_now = slice(targets[0].shape[0] if unlabeled_targets is not None else None)
            target_a, target_b = self.peer_targets(
                pseudo_a[made_now], pseudo_b[made_now], outputs_a[0][made_now], outputs_b[0][made_now]
            )
            if unlabeled_targets is not None:
                target_a, target_b = map(torch.cat, zip((target_a, target_b), unlabeled_targets, strict=True))
        sums_a, sums_b = self.sums(outputs_a, targets, target_a), self.sums(outputs_b, targets, target_b)
        return self.losses(sums_a, sums_b, weights_a, weights_b)

    @torch.no_grad()
    def peer_target(self, pseudo_label: Tensor, logits: Tensor) -> Tensor:
        """What a network's pseudo label is to the other one: where it is unsure of it, the voxel is ignored.

        Args:
            pseudo_label: From `pseudo_labels`.
            logits: The full-resolution logits that it was made from.
        """
        if not self._peers_ignore:
            return pseudo_label
        threshold = self.composition.confidence_threshold
        return self.labels.with_ignore().keep_confident(pseudo_label, logits.detach(), threshold)

    def peer_targets(
        self, pseudo_a: Tensor, pseudo_b: Tensor, logits_a: Tensor, logits_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What A learns from B and B from A, or both from the mean of their logits; see `peer_target`."""
        if self.composition.teacher_is_mean:
            mean = (logits_a.detach() + logits_b.detach()) / 2
            target = self.peer_target(self.labels.pseudo_label(mean), mean)
            return target, target
        return self.peer_target(pseudo_b, logits_b), self.peer_target(pseudo_a, logits_a)

    def sums(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], peer_target: Tensor | None) -> TermSums:
        """All that the losses of one network need of the voxels of some patches, labeled ones first.

        Args:
            outputs: Logits per output, full resolution first.
            targets: Reference of the labeled patches per output; empty where none of these patches is labeled.
            peer_target: From `peer_target`, of the same patches, or of the unlabeled ones where U is on these alone;
                None leaves U out.
        """
        composition = self.composition
        num_labeled = targets[0].shape[0] if targets else 0
        first = 0 if composition.unsupervised_on_labeled else num_labeled
        has_supervised = num_labeled > 0 and (composition.supervised_ce or composition.supervised_dice)
        has_unsupervised = peer_target is not None and (composition.unsupervised_ce or composition.unsupervised_dice)
        supervised: list[LossSums | None] = [None] * len(outputs)
        unsupervised: list[LossSums | None] = [None] * len(outputs)
        for i, (logits, factor) in enumerate(zip(outputs, self.output_factors, strict=True)):
            terms, readings = [], []
            if has_supervised and factor:
                terms.append(supervised)
                readings.append(LabelReading(self.labels, targets[i], 0, composition.supervised_dice > 0))
            if has_unsupervised and factor and i < len(self._unsupervised_factors) and first < logits.shape[0]:
                assert peer_target is not None
                target = self._peer_labels.downsample(peer_target[first - logits.shape[0] :], logits.shape[2:])
                terms.append(unsupervised)
                readings.append(LabelReading(self._peer_labels, target, first, composition.unsupervised_dice > 0))
            for term, sums in zip(terms, self.labels.loss_sums_of(logits, readings), strict=True):
                term[i] = sums
        return TermSums(tuple(supervised), tuple(unsupervised))

    def losses(self, sums_a: TermSums, sums_b: TermSums, weights_a: Tensor, weights_b: Tensor) -> CoTrainingTerms:
        """Losses of both networks from the sums of all patches of the step."""
        return CoTrainingTerms.of_both(self.losses_of(sums_a, weights_a), self.losses_of(sums_b, weights_b))

    def losses_of(self, sums: TermSums, class_weights: Tensor) -> NetworkTerms:
        """Losses of one network from the sums of all patches of the step."""
        composition = self.composition
        supervised, empty = self._loss(
            self.labels,
            sums.supervised,
            self.output_factors,
            (composition.supervised_ce, composition.supervised_dice),
            class_weights,
        )
        unsupervised, also_empty = self._loss(
            self._peer_labels,
            sums.unsupervised,
            self._unsupervised_factors,
            (composition.unsupervised_ce, composition.unsupervised_dice),
            class_weights,
        )
        return NetworkTerms(supervised, unsupervised, empty + also_empty)

    def _loss(
        self,
        labels: LabelSpace,
        sums_by_output: Sequence[LossSums | None],
        output_factors: Sequence[float],
        factors: tuple[float, float],
        class_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Sum of the losses over deep-supervision outputs, and how many of the cross entropies were empty."""
        ce_factor, dice_factor = factors
        composition = self.composition
        loss = empty = class_weights.new_zeros(())
        for output_factor, sums in zip(output_factors, sums_by_output, strict=False):
            if sums is None:
                continue
            if ce_factor:
                cross_entropy, hit_weight = labels.cross_entropy_of(sums, class_weights, self.across_ranks)
                loss = loss + output_factor * ce_factor * cross_entropy
                empty = empty + (hit_weight == 0)
            if dice_factor:
                loss = loss + output_factor * dice_factor * labels.soft_dice_loss_of(
                    sums, class_weights, composition.dice_smooth, composition.dice_pooled_over_batch, self.across_ranks
                )
        return loss, empty

    @property
    def _peer_labels(self) -> LabelSpace:
        return self.labels.with_ignore() if self._peers_ignore else self.labels.without_ignore()

    @property
    def _peers_ignore(self) -> bool:
        """Whether voxels of what a network learns from the other one may be ignored."""
        composition = self.composition
        return composition.confidence_threshold > 0 or (composition.pastes_reference and self.labels.may_ignore)

    @property
    def _unsupervised_factors(self) -> tuple[float, ...]:
        return self.output_factors if self.composition.unsupervised_deep_supervision else (1.0,)

    def _summed(self, counts: Tensor) -> Tensor:
        return sum_across_ranks(counts) if self.across_ranks else counts
