# SPDX-License-Identifier: Apache-2.0
"""Unlabeled patches mixed with labeled ones: pseudo labels of the plain patch supervise the mixed one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnunet_dhc.core.pasting import box_masks
from nnunet_dhc.nnunet.training.whole_step import as_list, mixed_precision

if TYPE_CHECKING:
    from nnunet_dhc.trainers.pair_trainer import PairTrainer


@torch.no_grad()
def mixed_with_labeled(
    trainer: PairTrainer, labeled: Tensor, target: Tensor, unlabeled: Tensor, side: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Unlabeled patches with parts of labeled ones, and what A and B are to learn on them.

    Args:
        trainer: Its networks make the pseudo labels.
        labeled, unlabeled: Images, (b, c, *spatial) each.
        target: Reference of the labeled patches at full resolution.
        side: See `box_masks`.

    Returns:
        Mixed images, and the targets of A and of B: the reference where the image is labeled, elsewhere the other
        network's pseudo label of the plain unlabeled patch.
    """
    objective = trainer.objective
    with mixed_precision(trainer.device), trainer.pair.giving("both"):
        logits_a, logits_b = (as_list(outputs)[0] for outputs in trainer.network(unlabeled))
    pseudo_a, pseudo_b = objective.pseudo_labels(logits_a, logits_b)
    masks = box_masks(len(unlabeled), unlabeled.shape[2:], side).to(unlabeled.device)
    target_a, target_b = (
        objective.labels.reference_where(masks, target, peer_target)
        for peer_target in objective.peer_targets(pseudo_a, pseudo_b, logits_a, logits_b)
    )
    return torch.where(masks, labeled, unlabeled), (target_a, target_b)
