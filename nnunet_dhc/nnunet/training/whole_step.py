# SPDX-License-Identifier: Apache-2.0
"""From the images of a step to the gradients of both sub-networks: all patches at once.

Where neither sub-network needs what the other one says in the same step, A is trained before B looks at the patches: so
the activations of one are in memory at a time, about half of what both need, and nothing is computed twice. That holds
for mixed patches with no pseudo labels on labeled ones, as recommended, in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, autocast

from nnunet_dhc.core.across_ranks import sum_across_ranks
from nnunet_dhc.core.class_weighting import ClassWeighting
from nnunet_dhc.core.co_training import CoTrainingTerms, NetworkTerms, NetworkUpdate, counts_of, overlaps_of
from nnunet_dhc.nnunet.network.cotrained_pair import Output
from nnunet_dhc.nnunet.training.gradient_shares import ShareMeasurement

if TYPE_CHECKING:
    from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer


WeightingStates = list[dict[str, Any]]  # of A and of B


@dataclass(frozen=True)
class StepInputs:
    """What a step trains on.

    Attributes:
        images: Labeled patches, then unlabeled ones, (b, c, *spatial), on the device.
        targets: Reference of the labeled patches per output.
        unsupervised: Whether the pseudo labels supervise anything in this step.
        loss_weight: Lambda of this step.
        measures_shares: Whether to measure how much of the gradient is unsupervised; it waits for the device.
        unlabeled_targets: What A and B learn on the unlabeled patches, if not the other one's pseudo labels of them.
        paste_masks: Where labeled patches are still to be pasted into the unlabeled ones, (b, 1, *spatial), bool.
        pseudo_counts: Voxels per class of the pseudo labels of A and of B that the targets were made of, (2, k).
    """

    images: Tensor
    targets: list[Tensor]
    unsupervised: bool
    loss_weight: float
    measures_shares: bool = False
    unlabeled_targets: tuple[Tensor, Tensor] | None = None
    paste_masks: Tensor | None = None
    pseudo_counts: Tensor | None = None

    @property
    def num_labeled(self) -> int:
        return self.targets[0].shape[0]


@dataclass(frozen=True)
class StepOutcome:
    """What a step computed, on the device; the gradients lie in the parameters.

    Attributes:
        total, terms: The losses.
        counts: Voxels per class of the pseudo labels of A and of B, (2, k), or None: with mixed patches those of the
            plain unlabeled patches, which teach; else those that were counted for the weights.
        labeled_overlaps: Of the pseudo labels of A and of B with the reference of the labeled patches, (2, 3, k).
        non_finite: Scalar bool: the total is not finite on some rank, and the weights are those of before.
        shares: Unsupervised share of the gradient, on all and on the unlabeled patches, if it was measured.
    """

    total: Tensor
    terms: CoTrainingTerms
    counts: Tensor | None
    labeled_overlaps: Tensor
    non_finite: Tensor
    shares: tuple[float, float] | None


def whole_step(
    trainer: PairTrainer, inputs: StepInputs, before: WeightingStates, in_halves: bool = False
) -> StepOutcome:
    """The gradients of S_A + S_B + lambda * (U_A + U_B), added to those in the parameters.

    Args:
        before: To which the class weightings go back if the loss is not finite.
        in_halves: Run the networks on the labeled and on the unlabeled patches separately: a CPU gains nothing from a
            larger batch, and its caches hold more of half of it.
    """
    shares = ShareMeasurement() if inputs.measures_shares else None
    # DistributedDataParallel reduces the gradients of all parameters in one backward pass
    step = _both_at_once if trainer.objective.couples_networks or trainer.is_ddp else _one_after_the_other
    terms, updates = step(trainer, inputs, in_halves, shares)
    total = terms.total(inputs.loss_weight).detach()
    non_finite = keep_weightings_unless_finite(trainer, before, total)
    return StepOutcome(
        total, terms, counts_of(updates), overlaps_of(updates), non_finite, None if shares is None else shares.read()
    )


def _both_at_once(
    trainer: PairTrainer, inputs: StepInputs, in_halves: bool, shares: ShareMeasurement | None
) -> tuple[CoTrainingTerms, Sequence[NetworkUpdate]]:
    objective = trainer.objective
    with mixed_precision(trainer.device):
        outputs = outputs_of(trainer, inputs, in_halves, "both")
        pseudo = objective.pseudo_labels(*(of_network[0] for of_network in outputs))
        updates = objective.update_weights(*pseudo, inputs.targets[0])
        weights = [update.weights for update in updates]
        terms = objective.terms(
            *outputs, inputs.targets, *pseudo, *weights, inputs.unsupervised, inputs.unlabeled_targets
        )
        total = terms.total(inputs.loss_weight)
    if shares is not None:
        _measure(shares, trainer, inputs, terms.supervised_a, terms.unsupervised_a, outputs[0][0])
        _measure(shares, trainer, inputs, terms.supervised_b, terms.unsupervised_b, outputs[1][0])
    trainer.timer.mark("forward")
    scaled(trainer, total).backward()
    return terms, updates


def _one_after_the_other(
    trainer: PairTrainer, inputs: StepInputs, in_halves: bool, shares: ShareMeasurement | None
) -> tuple[CoTrainingTerms, Sequence[NetworkUpdate]]:
    results = [
        _one_network(trainer, inputs, in_halves, shares, network, weighting, target)
        for network, weighting, target in zip(
            "ab",
            trainer.objective.weightings,
            inputs.unlabeled_targets if inputs.unsupervised else (None, None),
            strict=True,
        )
    ]
    terms, updates = zip(*results, strict=True)
    return CoTrainingTerms.of_both(*terms), updates


def _one_network(
    trainer: PairTrainer,
    inputs: StepInputs,
    in_halves: bool,
    shares: ShareMeasurement | None,
    network: str,
    weighting: ClassWeighting,
    unlabeled_target: Tensor | None,
) -> tuple[NetworkTerms, NetworkUpdate]:
    """Forward and backward pass of one sub-network; its activations are gone afterwards."""
    objective = trainer.objective
    with mixed_precision(trainer.device):
        (outputs,) = outputs_of(trainer, inputs, in_halves, network)
        pseudo = objective.labels.pseudo_label(outputs[0].detach())
        update = objective.update_weights_of(weighting, pseudo, inputs.targets[0])
        terms = objective.losses_of(objective.sums(outputs, inputs.targets, unlabeled_target), update.weights)
        total = terms.total(inputs.loss_weight)
    if shares is not None:
        _measure(shares, trainer, inputs, terms.supervised, terms.unsupervised, outputs[0])
    trainer.timer.mark("forward")
    scaled(trainer, total).backward()
    trainer.timer.mark("backward")
    return terms.detached(), update


def _measure(
    shares: ShareMeasurement,
    trainer: PairTrainer,
    inputs: StepInputs,
    supervised: Tensor,
    unsupervised: Tensor,
    logits: Tensor,
) -> None:
    scale = scaled(trainer, torch.ones_like(supervised))
    shares.add_network(supervised, unsupervised, inputs.loss_weight, logits, inputs.num_labeled, scale)


def outputs_of(trainer: PairTrainer, inputs: StepInputs, in_halves: bool, network: Output) -> list[list[Tensor]]:
    """Logits on all patches by resolution, of each sub-network that is asked for."""
    halves = inputs.images.tensor_split([inputs.num_labeled]) if in_halves else (inputs.images,)
    by_half = []
    with trainer.pair.giving(network):
        for half in halves:
            if len(half):
                outputs = trainer.network(half)
                by_half.append([as_list(of_network) for of_network in (outputs if network == "both" else (outputs,))])
    if len(by_half) == 1:
        return by_half[0]
    return [[torch.cat(parts) for parts in zip(*of_network, strict=True)] for of_network in zip(*by_half, strict=True)]


def mixed_precision(device: torch.device) -> AbstractContextManager:
    """Autocast where nnU-Net uses it."""
    return autocast("cuda") if device.type == "cuda" else dummy_context()


def scaled(trainer: PairTrainer, loss: Tensor) -> Tensor:
    """The loss to run backward from."""
    return loss if trainer.grad_scaler is None else trainer.grad_scaler.scale(loss)


def as_list(output: Tensor | list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs by resolution, with or without deep supervision."""
    return list(output) if isinstance(output, (list, tuple)) else [output]


def weighting_states(trainer: PairTrainer) -> WeightingStates:
    """The states of both weightings, to go back to."""
    return [weighting.snapshot() for weighting in trainer.objective.weightings]


def keep_weightings_unless_finite(trainer: PairTrainer, before: WeightingStates, total: Tensor) -> Tensor:
    """Undo the update of the weights if the loss is not finite; whether that is so, scalar bool.

    One rank's NaN reaches all ranks through the gradients: all of them must skip the step and keep their weights.
    """
    non_finite = ~torch.isfinite(total.detach())
    if trainer.is_ddp:
        non_finite = sum_across_ranks(non_finite.float()) > 0
    for weighting, state in zip(trainer.objective.weightings, before, strict=True):
        weighting.revert_where(non_finite, state)
    return non_finite
