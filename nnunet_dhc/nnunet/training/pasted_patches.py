# SPDX-License-Identifier: Apache-2.0
"""Unlabeled patches mixed with labeled ones: pseudo labels of the plain patch supervise the mixed one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet_dhc.core.across_ranks import sum_across_ranks
from nnunet_dhc.nnunet.training.whole_step import StepInputs, as_list, mixed_precision

if TYPE_CHECKING:
    from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Batch normalization, where plans have it, takes no patches into its running statistics here.

    Those of the step itself are enough; the plain patches would move them towards the unlabeled scans.
    """
    layers = {layer: layer.momentum for layer in network.modules() if isinstance(layer, _BatchNorm)}
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in layers.items():
            layer.momentum = momentum


@torch.no_grad()
def mixed_with_labeled(trainer: PairTrainer, inputs: StepInputs, patches_at_once: int | None = None) -> StepInputs:
    """The inputs of a step with labeled parts in the unlabeled patches, where ``paste_masks`` says so.

    A and B are to learn the reference there, and elsewhere the teacher's pseudo label of the plain patch.

    Args:
        trainer: Its networks make the pseudo labels, or the average of their weights does.
        inputs: As many unlabeled patches as labeled ones.
        patches_at_once: Patches that go through the networks together; None = all.
    """
    objective, masks = trainer.objective, inputs.paste_masks
    labeled, unlabeled = inputs.images.tensor_split([inputs.num_labeled])
    peer_targets, counts = [], []
    teacher, network = trainer.pair, trainer.network
    if trainer.averaged_pair is not None:
        teacher = network = trainer.averaged_pair.pair
    for patches in unlabeled.split(patches_at_once or len(unlabeled)):
        with mixed_precision(trainer.device), teacher.giving("both"), running_statistics_kept(teacher):
            logits_a, logits_b = (as_list(outputs)[0] for outputs in network(patches))
        pseudo_a, pseudo_b = objective.pseudo_labels(logits_a, logits_b)
        counts.append(torch.stack((objective.labels.count(pseudo_a), objective.labels.count(pseudo_b))))
        peer_targets.append(objective.peer_targets(pseudo_a, pseudo_b, logits_a, logits_b))
    target_a, target_b = (
        objective.labels.reference_where(masks, inputs.targets[0], torch.cat(of_network))
        for of_network in zip(*peer_targets, strict=True)
    )
    images = torch.cat((labeled, torch.where(masks, labeled, unlabeled)))
    pseudo_counts = sum_across_ranks(torch.stack(counts).sum(0))
    targets = (target_a, target_b)
    return replace(inputs, images=images, unlabeled_targets=targets, paste_masks=None, pseudo_counts=pseudo_counts)
