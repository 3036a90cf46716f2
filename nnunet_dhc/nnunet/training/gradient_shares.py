# SPDX-License-Identifier: Apache-2.0
"""How much of the loss gradient comes from the unsupervised term: the figure that shows a wrong lambda early."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dhc.core.term_sums import Gradients, TermSums


class ShareMeasurement:
    """Share of the loss gradient, at the full-resolution logits, that the unsupervised term has.

    The Euclidean norm of lambda * dU/dz against the sum of that and of dS/dz, added up over sub-networks and over
    groups of patches that are never in memory together. It repeats the backward pass of the losses (not that of the
    networks) and waits for the device: for once an epoch.
    """

    def __init__(self) -> None:
        self._squares = {"supervised": 0.0, "unsupervised": 0.0, "unlabeled": 0.0}

    def add_network(
        self,
        supervised: Tensor,
        unsupervised: Tensor,
        loss_weight: float,
        logits: Tensor,
        num_labeled: int,
        loss_scale: Tensor | float = 1.0,
    ) -> None:
        """All patches of one network.

        Args:
            supervised, unsupervised: Its S and its U, with a graph, which is kept.
            loss_weight: Lambda.
            logits: At full resolution, the start of that graph.
            num_labeled: Patches at the front of the batch that are labeled.
            loss_scale: What GradScaler multiplies losses by: gradients at half-precision logits would be 0 without it.
        """
        self._add(_gradient(loss_scale * supervised, logits), ["supervised"])
        of_unsupervised = _gradient(loss_scale * unsupervised, logits)
        self._add(of_unsupervised, ["unsupervised"], loss_weight)
        self._add(of_unsupervised[num_labeled:], ["unlabeled"], loss_weight)

    def add(self, sums: TermSums, gradients: Gradients, logits: Tensor, is_labeled: bool) -> None:
        """One group of patches of one network.

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
            of_unlabeled = ["unlabeled"] if term == "unsupervised" and not is_labeled else []
            self._add(at_logits, [term, *of_unlabeled])

    def _add(self, gradient: Tensor, parts: list[str], factor: float = 1.0) -> None:
        # in single precision without a copy: a step's activations are in memory, too
        precision = torch.promote_types(gradient.dtype, torch.float32)
        square = (factor * torch.linalg.vector_norm(gradient, dtype=precision).item()) ** 2
        for part in parts:
            self._squares[part] += square

    def read(self) -> tuple[float, float]:
        """The share of all patches and that of the unlabeled ones; NaN where all gradients are 0."""
        supervised, unsupervised, unlabeled = (square**0.5 for square in self._squares.values())
        whole = supervised + unsupervised
        return (unsupervised / whole, unlabeled / whole) if whole > 0 else (float("nan"), float("nan"))


def _gradient(term: Tensor, logits: Tensor) -> Tensor:
    """Of a term with respect to the logits; zeros where settings leave nothing of the term."""
    if not term.requires_grad:
        return torch.zeros_like(logits)
    return torch.autograd.grad(term, logits, retain_graph=True)[0]
