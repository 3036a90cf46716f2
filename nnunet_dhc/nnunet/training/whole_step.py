# SPDX-License-Identifier: Apache-2.0
"""From the images of a step to the gradients of both sub-networks: all patches and both networks at once."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, autocast

from nnunet_dhc.core.across_ranks import sum_across_ranks
from nnunet_dhc.core.co_training import CoTrainingTerms
from nnunet_dhc.nnunet.training.gradient_shares import gradient_shares

if TYPE_CHECKING:
    from nnunet_dhc.trainers.pair_trainer import PairTrainer


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
    """

    images: Tensor
    targets: list[Tensor]
    unsupervised: bool
    loss_weight: float
    measures_shares: bool = False
    unlabeled_targets: tuple[Tensor, Tensor] | None = None
    paste_masks: Tensor | None = None

    @property
    def num_labeled(self) -> int:
        return self.targets[0].shape[0]


@dataclass(frozen=True)
class StepOutcome:
    """What a step computed, on the device; the gradients lie in the parameters.

    Attributes:
        total, terms: The losses.
        counts: Voxels per class that were counted for the weights, (2, k), or None.
        non_finite: Scalar bool: the total is not finite on some rank, and the weights are those of before.
        shares: Unsupervised share of the gradient, on all and on the unlabeled patches, if it was measured.
    """

    total: Tensor
    terms: CoTrainingTerms
    counts: Tensor | None
    non_finite: Tensor
    shares: tuple[float, float] | None


def whole_step(trainer: PairTrainer, inputs: StepInputs, in_halves: bool = False) -> StepOutcome:
    """The gradients of S_A + S_B + lambda * (U_A + U_B), added to those in the parameters.

    Args:
        in_halves: Run the networks on the labeled and on the unlabeled patches separately: a CPU gains nothing from a
            larger batch, and its caches hold more of half of it.
    """
    objective = trainer.objective
    with mixed_precision(trainer.device):
        outputs_a, outputs_b = outputs_of_both(trainer, inputs, in_halves)
        before = weighting_states(trainer)
        pseudo_a, pseudo_b = objective.pseudo_labels(outputs_a[0], outputs_b[0])
        weights_a, weights_b, counts = objective.update_weights(pseudo_a, pseudo_b, inputs.targets[0])
        terms = objective.terms(
            outputs_a,
            outputs_b,
            inputs.targets,
            pseudo_a,
            pseudo_b,
            weights_a,
            weights_b,
            inputs.unsupervised,
            inputs.unlabeled_targets,
        )
        total = terms.total(inputs.loss_weight)
    non_finite = keep_weightings_unless_finite(trainer, before, total)
    shares = None
    if inputs.measures_shares:
        shares = gradient_shares(
            terms,
            inputs.loss_weight,
            outputs_a[0],
            outputs_b[0],
            inputs.num_labeled,
            scaled(trainer, torch.ones_like(total)),
        )
    trainer.timer.mark("forward")
    scaled(trainer, total).backward()
    return StepOutcome(total, terms, counts, non_finite, shares)


def outputs_of_both(trainer: PairTrainer, inputs: StepInputs, in_halves: bool) -> list[list[Tensor]]:
    """Logits of A and of B on all patches, by resolution."""
    halves = inputs.images.tensor_split([inputs.num_labeled]) if in_halves else (inputs.images,)
    with trainer.pair.giving("both"):
        by_half = [[as_list(outputs) for outputs in trainer.network(half)] for half in halves if len(half)]
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


def weighting_states(trainer: PairTrainer) -> list[dict[str, Any]]:
    """The states of both weightings, to go back to."""
    return [trainer.objective.weighting_a.snapshot(), trainer.objective.weighting_b.snapshot()]


def keep_weightings_unless_finite(trainer: PairTrainer, before: list[dict[str, Any]], total: Tensor) -> Tensor:
    """Undo the update of the weights if the loss is not finite; whether that is so, scalar bool.

    One rank's NaN reaches all ranks through the gradients: all of them must skip the step and keep their weights.
    """
    non_finite = ~torch.isfinite(total.detach())
    if trainer.is_ddp:
        non_finite = sum_across_ranks(non_finite.float()) > 0
    for weighting, state in zip((trainer.objective.weighting_a, trainer.objective.weighting_b), before, strict=True):
        weighting.revert_where(non_finite, state)
    return non_finite
