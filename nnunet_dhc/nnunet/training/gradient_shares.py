# SPDX-License-Identifier: Apache-2.0
"""How much of the loss gradient comes from the unsupervised term: the figure that shows a wrong lambda early."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_dhc.core.co_training import CoTrainingTerms
from nnunet_dhc.core.term_sums import Gradients, TermSums


def gradient_shares(
    terms: CoTrainingTerms,
    loss_weight: float,
    logits_a: Tensor,
    logits_b: Tensor,
    num_labeled: int,
    loss_scale: Tensor | float = 1.0,
) -> tuple[float, float]:
    """Share of the loss gradient, at the full-resolution logits, that the unsupervised term has.

    The Euclidean norm of lambda * dU/dz against the sum of that and of dS/dz. It repeats the backward pass of the
    losses (not that of the networks) and waits for the device: for once an epoch.

    Args:
        num_labeled: Patches at the front of the batch that are labeled.
        loss_scale: What GradScaler multiplies losses by: gradients at half-precision logits would be 0 without it.

    Returns:
        The share of all patches and that of the unlabeled ones; NaN where all gradients are 0.
    """
    logits = [logits_a, logits_b]
    from_supervised = _gradients(loss_scale * (terms.supervised_a + terms.supervised_b), logits)
    gradients = _gradients(loss_scale * (terms.unsupervised_a + terms.unsupervised_b), logits)
    return _shares(
        _norm(from_supervised),
        loss_weight * _norm(gradients),
        loss_weight * _norm([gradient[num_labeled:] for gradient in gradients]),
    )


class ShareMeasurement:
    """The same figures, added up over groups of patches that are never in memory together."""

    def __init__(self) -> None:
        self._squares = {"supervised": 0.0, "unsupervised": 0.0, "unlabeled": 0.0}

    def add(self, sums: TermSums, gradients: Gradients, logits: Tensor, is_labeled: bool) -> None:
        """One group of one network.

        Args:
            sums: With a graph, which is kept.
            gradients: Of the whole loss with respect to them.
            logits: At full resolution, the start of that graph.
        """
        tensors = sums.tensors()
        for term in ("supervised", "unsupervised"):
            keys = [key for key in gradients if key[0] == term and key[1] == 0]
            if not keys:
                continue
            (at_logits,) = torch.autograd.grad(
                [tensors[key] for key in keys], [logits], [gradients[key] for key in keys], retain_graph=True
            )
            square = _norm([at_logits]) ** 2
            self._squares[term] += square
            if term == "unsupervised" and not is_labeled:
                self._squares["unlabeled"] += square

    def read(self) -> tuple[float, float]:
        """As `gradient_shares` gives them."""
        return _shares(*(square**0.5 for square in self._squares.values()))


def _gradients(term: Tensor, logits: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of one term with respect to the logits; zeros where settings leave nothing of the term."""
    if not term.requires_grad:
        return [torch.zeros_like(part) for part in logits]
    return torch.autograd.grad(term, logits, retain_graph=True)


def _shares(from_supervised: float, from_unsupervised: float, from_unlabeled: float) -> tuple[float, float]:
    whole = from_supervised + from_unsupervised
    return (from_unsupervised / whole, from_unlabeled / whole) if whole > 0 else (float("nan"), float("nan"))


def _norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm of all, in single precision without a copy of them: a step's activations are in memory, too."""
    precision = torch.promote_types(gradients[0].dtype, torch.float32)
    norms = [torch.linalg.vector_norm(gradient, dtype=precision) for gradient in gradients]
    return torch.stack(norms).norm().item()
