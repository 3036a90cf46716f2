# SPDX-License-Identifier: Apache-2.0
"""How much of the loss gradient comes from the unsupervised term: the figure that shows a wrong lambda early."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dhc.core.co_training import CoTrainingTerms


def gradient_shares(
    terms: CoTrainingTerms, loss_weight: float, logits_a: Tensor, logits_b: Tensor, num_labeled: int
) -> tuple[float, float]:
    """Share of the loss gradient, at the full-resolution logits, that the unsupervised term has.

    The Euclidean norm of lambda * dU/dz against the sum of that and of dS/dz. It repeats the backward pass of the
    losses (not that of the networks) and waits for the device: for once an epoch.

    Args:
        num_labeled: Patches at the front of the batch that are labeled.

    Returns:
        The share of all patches and that of the unlabeled ones; NaN where all gradients are 0.
    """
    logits = [logits_a, logits_b]
    supervised = torch.autograd.grad(terms.supervised_a + terms.supervised_b, logits, retain_graph=True)
    unsupervised = torch.autograd.grad(terms.unsupervised_a + terms.unsupervised_b, logits, retain_graph=True)
    from_supervised = _norm(supervised)
    from_unsupervised = loss_weight * _norm(unsupervised)
    from_unlabeled = loss_weight * _norm([gradient[num_labeled:] for gradient in unsupervised])
    whole = from_supervised + from_unsupervised
    return (from_unsupervised / whole, from_unlabeled / whole) if whole > 0 else (float("nan"), float("nan"))


def _norm(gradients) -> float:
    return torch.cat([gradient.float().flatten() for gradient in gradients]).norm().item()
