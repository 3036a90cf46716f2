# SPDX-License-Identifier: Apache-2.0
"""From the images of a step to the gradients, with the activations of a few patches of one sub-network at a time.

The gradients are those of `whole_step`; see `core/term_sums.py` for why. First both sub-networks look at all patches,
group by group and without a graph: that gives pseudo labels, class weights and the sums that couple the patches. Then
each group of each sub-network runs forward and backward by itself. The last look of B keeps its graph, which saves one
forward pass: 15 instead of 16 passes where the normal mode has 12 (a backward pass counted as two).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from nnunet_dhc.core.co_training import counts_of, overlaps_of
from nnunet_dhc.core.term_sums import Gradients, TermSums, backward_from_sums, gradients_by_group, join_sums
from nnunet_dhc.nnunet.training.gradient_shares import ShareMeasurement
from nnunet_dhc.nnunet.training.whole_step import (
    StepInputs,
    StepOutcome,
    WeightingStates,
    as_list,
    keep_weightings_unless_finite,
    mixed_precision,
    scaled,
)

if TYPE_CHECKING:
    from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer


@dataclass(frozen=True)
class PatchGroup:
    """Patches of the joint batch that go through a sub-network together: labeled ones or unlabeled ones."""

    rows: slice
    is_labeled: bool


def patch_groups(num_labeled: int, num_patches: int, patches_at_once: int) -> list[PatchGroup]:
    """Groups of at most so many patches, labeled ones first."""
    groups = []
    for start, stop, is_labeled in ((0, num_labeled, True), (num_labeled, num_patches, False)):
        for first in range(start, stop, patches_at_once):
            groups.append(PatchGroup(slice(first, min(first + patches_at_once, stop)), is_labeled))
    return groups


def low_memory_step(
    trainer: PairTrainer, inputs: StepInputs, before: WeightingStates, patches_at_once: int
) -> StepOutcome:
    """The gradients of S_A + S_B + lambda * (U_A + U_B), added to those in the parameters; see `whole_step`."""
    return _LowMemoryStep(trainer, inputs, patches_at_once).run(before)


class _LowMemoryStep:
    def __init__(self, trainer: PairTrainer, inputs: StepInputs, patches_at_once: int) -> None:
        self.trainer, self.inputs, self.objective = trainer, inputs, trainer.objective
        self.groups = patch_groups(inputs.num_labeled, len(inputs.images), patches_at_once)
        self.pseudo: dict[str, list[Tensor]] = {"a": [], "b": []}
        self.peer_targets: dict[str, list[Tensor | None]] = {"a": [], "b": []}
        self.sums: dict[str, list[TermSums]] = {"a": [], "b": []}
        self.random_states: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}
        self.kept_outputs: list[Tensor] = []
        self.shares = ShareMeasurement() if inputs.measures_shares else None

    def run(self, before: WeightingStates) -> StepOutcome:
        trainer, inputs, objective = self.trainer, self.inputs, self.objective
        with trainer.network.no_sync() if trainer.is_ddp else nullcontext():
            for number in range(len(self.groups)):
                self._look_at(number)
            pseudo_a, pseudo_b = torch.cat(self.pseudo["a"]), torch.cat(self.pseudo["b"])
            updates = objective.update_weights(pseudo_a, pseudo_b, inputs.targets[0])
            leaves = [join_sums(self.sums[network]).as_leaves() for network in "ab"]
            terms = objective.losses(*leaves, *(update.weights for update in updates))
            total = terms.total(inputs.loss_weight)
            non_finite = keep_weightings_unless_finite(trainer, before, total)
            trainer.timer.mark("forward")
            gradients = gradients_by_group(scaled(trainer, total), leaves, [self.sums["a"], self.sums["b"]])
            last = len(self.groups) - 1
            self._backward("b", last, gradients[1][last])
            for network, of_groups in zip("ab", gradients, strict=True):
                for number, of_sums in enumerate(of_groups):
                    if (network, number) != ("b", last):
                        self._backward(network, number, of_sums)
        if trainer.is_ddp:
            average_gradients(trainer.pair)
        shares = None if self.shares is None else self.shares.read()
        return StepOutcome(total.detach(), terms, counts_of(updates), overlaps_of(updates), non_finite, shares)

    def _look_at(self, number: int) -> None:
        """Pseudo labels and sums of one group; the last one leaves the graph of B behind."""
        objective, keeps_graph = self.objective, number == len(self.groups) - 1
        with mixed_precision(self.trainer.device), torch.no_grad():
            outputs_a = self._outputs("a", number)
        with mixed_precision(self.trainer.device), torch.set_grad_enabled(keeps_graph):
            outputs_b = self._outputs("b", number)
            pseudo_a, pseudo_b = objective.pseudo_labels(outputs_a[0], outputs_b[0])
            target_a = target_b = None
            given = self._given_targets(number)
            if given is not None:
                target_a, target_b = given
            elif self.inputs.unsupervised:
                target_a, target_b = objective.peer_targets(pseudo_a, pseudo_b, outputs_a[0], outputs_b[0])
            for network, outputs, pseudo, target in (
                ("a", outputs_a, pseudo_a, target_a), ("b", outputs_b, pseudo_b, target_b),
            ):
                self.pseudo[network].append(pseudo)
                self.peer_targets[network].append(target)
                self.sums[network].append(objective.sums(outputs, self._targets(number), target))
        if keeps_graph:
            self.kept_outputs = outputs_b

    def _backward(self, network: str, number: int, gradients: Gradients) -> None:
        """Add one group's part of the gradient of one sub-network."""
        kept, self.kept_outputs = self.kept_outputs, []
        if not gradients:
            return  # nothing of the loss depends on these patches
        if kept:
            outputs, sums = kept, self.sums[network][number]
        else:
            with mixed_precision(self.trainer.device), self._random_state_of(network, number):
                outputs = self._outputs(network, number)
                sums = self.objective.sums(outputs, self._targets(number), self.peer_targets[network][number])
        if self.shares is not None:
            self.shares.add(sums, gradients, outputs[0], self.groups[number].is_labeled)
        del outputs  # the graph lets go of the logits as soon as it has used them
        backward_from_sums(sums, gradients)

    def _outputs(self, network: str, number: int) -> list[Tensor]:
        """Logits of one sub-network on one group; a second call sees the same dropout if the state is put back."""
        self.random_states.setdefault((network, number), random_state(self.trainer.device))
        with self.trainer.pair.giving(network):
            return as_list(self.trainer.network(self.inputs.images[self.groups[number].rows]))

    def _targets(self, number: int) -> list[Tensor]:
        group = self.groups[number]
        return [target[group.rows] for target in self.inputs.targets] if group.is_labeled else []

    def _given_targets(self, number: int) -> list[Tensor] | None:
        """What A and B learn on a group, if not the other one's pseudo label."""
        group, num_labeled = self.groups[number], self.inputs.num_labeled
        if group.is_labeled or self.inputs.unlabeled_targets is None:
            return None
        rows = slice(group.rows.start - num_labeled, group.rows.stop - num_labeled)
        return [target[rows] for target in self.inputs.unlabeled_targets]

    @contextmanager
    def _random_state_of(self, network: str, number: int) -> Iterator[None]:
        device = self.trainer.device
        now = random_state(device)
        set_random_state(device, self.random_states[network, number])
        try:
            yield
        finally:
            set_random_state(device, now)


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """States of the generators that layers draw from."""
    of_device = {"cuda": lambda: torch.cuda.get_rng_state(device), "mps": torch.mps.get_rng_state}
    return torch.get_rng_state(), of_device[device.type]() if device.type in of_device else None


def set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    """Go back to what `random_state` returned."""
    of_host, of_device = state
    torch.set_rng_state(of_host)
    if device.type == "cuda":
        torch.cuda.set_rng_state(of_device, device)
    elif device.type == "mps":
        torch.mps.set_rng_state(of_device)


def average_gradients(network: torch.nn.Module) -> None:
    """What DistributedDataParallel does in its backward pass, which has seen no synchronized one here."""
    for parameter in network.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
