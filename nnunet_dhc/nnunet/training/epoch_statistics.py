# SPDX-License-Identifier: Apache-2.0
"""What an epoch adds up on the device and reads once at its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_dhc.core.across_ranks import num_ranks, sum_across_ranks
from nnunet_dhc.core.class_counts import hard_dice
from nnunet_dhc.core.label_spaces import LabelSpace

LOSS_TERMS = ("total", "supervised_a", "supervised_b", "unsupervised_a", "unsupervised_b")


class TrainingStatistics:
    """Losses, skipped steps, pseudo-label counts and Dice on labeled patches of the training steps of one epoch."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._losses = np.zeros(len(LOSS_TERMS))
        self._counts: Tensor | None = None
        self._overlaps: Tensor | None = None
        self.steps = 0
        self.finite_steps = 0
        self.unlabeled_steps = 0
        self.non_finite_steps = 0
        self.amp_overflow_steps = 0
        self.empty_cross_entropies = 0
        self.gradient_share = float("nan")
        self.unlabeled_gradient_share = float("nan")

    def add(
        self,
        losses: np.ndarray,
        empty: float,
        counts: Tensor | None,
        overlaps: Tensor,
        *,
        has_unlabeled: bool,
        finite: bool,
        overflow: bool = False,
    ) -> None:
        """Take in one step.

        Args:
            losses: In the order of ``LOSS_TERMS``.
            empty: Number of its empty cross entropies.
            counts, overlaps: Those of its ``StepOutcome``, (2, k) and (2, 3, k), on all ranks together.
            has_unlabeled: Unlabeled patches were drawn.
            finite: Its losses are finite and the networks have learned from them, but for an overflow.
            overflow: A gradient left the range of half precision.
        """
        self.steps += 1
        self.unlabeled_steps += has_unlabeled
        self.non_finite_steps += not finite
        self.amp_overflow_steps += overflow
        self.empty_cross_entropies += int(empty)
        if not finite:  # predictions made of NaN say nothing of a class
            return
        self.finite_steps += 1
        self._losses += losses
        self._overlaps = overlaps if self._overlaps is None else self._overlaps + overlaps
        if counts is not None:
            self._counts = counts if self._counts is None else self._counts + counts

    @property
    def training_dice(self) -> tuple[Tensor, Tensor]:
        """Hard Dice of A and of B on the labeled patches, (k,) each, background included; NaN = not labeled there."""
        if self._overlaps is None:
            nothing = torch.full((self._num_classes,), float("nan"))
            return nothing, nothing
        of_a, of_b = (_dice(*overlap).where(overlap[2] > 0, torch.nan) for overlap in self._overlaps.cpu())
        return of_a, of_b

    def average_losses_across_ranks(self, device: torch.device) -> None:
        """Let each rank have the mean of all, as nnU-Net's own curve has it; call it on every rank."""
        losses = torch.from_numpy(self._losses).to(device)
        self._losses = sum_across_ranks(losses).cpu().numpy() / num_ranks()

    @property
    def losses(self) -> dict[str, float]:
        """Means of the steps that were finite, by term; NaN without any, since 0 would look perfect."""
        means = self._losses / self.finite_steps if self.finite_steps else np.full(len(LOSS_TERMS), np.nan)
        return dict(zip(LOSS_TERMS, means.tolist(), strict=True))

    @property
    def supervised_loss(self) -> float:
        """Of one sub-network on labeled patches, the mean of A and B."""
        losses = self.losses
        return (losses["supervised_a"] + losses["supervised_b"]) / 2

    def read(self) -> dict[str, Any]:
        """Values for the epoch log; waits for the device."""
        shares = [[float("nan")] * self._num_classes] * 2
        if self._counts is not None:
            counts = self._counts.cpu().double()  # in this order: MPS has no float64
            shares = (counts / counts.sum(1, keepdim=True).clamp_min(1)).tolist()
        training_dice = [dice[1:].tolist() for dice in self.training_dice]
        return {
            "losses": self.losses,
            "training_dice_a": training_dice[0],
            "training_dice_b": training_dice[1],
            "pseudo_label_share_a": shares[0],
            "pseudo_label_share_b": shares[1],
            "unsupervised_gradient_share": self.gradient_share,
            "unlabeled_gradient_share": self.unlabeled_gradient_share,
            "steps": self.steps,
            "steps_with_unlabeled": self.unlabeled_steps,
            "skipped_steps": self.non_finite_steps,
            "amp_overflow_steps": self.amp_overflow_steps,
            "empty_cross_entropies": self.empty_cross_entropies,
        }


def _dice(true_positives: Tensor, predicted: Tensor, labeled: Tensor) -> Tensor:
    """``hard_dice``, but 0 where nothing is hit: there it is some 1e-11, and what watches for 0 would never see it."""
    dice = hard_dice(true_positives, predicted, labeled)
    return torch.where((true_positives == 0) & (predicted + labeled > 0), 0.0, dice).cpu()


class ValidationStatistics:
    """Hard Dice of A, of B and of the pair, and how far A and B are apart, on an epoch's validation patches."""

    def __init__(self, labels: LabelSpace) -> None:
        self._labels = labels
        self._overlaps: dict[str, list[Tensor]] = {}
        self._logit_gap: Tensor | None = None

    @torch.no_grad()
    def add(self, logits_a: Tensor, logits_b: Tensor, logits_of_pair: Tensor, target: Tensor) -> None:
        """One batch: full-resolution logits (b, k, *spatial) and nnU-Net's target."""
        labels = self._labels
        predictions = {
            "a": labels.pseudo_label(logits_a),
            "b": labels.pseudo_label(logits_b),
            "mean": labels.pseudo_label(logits_of_pair),
        }
        for name, prediction in predictions.items():
            self._add_overlap(name, labels.overlap(prediction, target))
        self._add_overlap("agreement", labels.without_ignore().overlap(predictions["a"], predictions["b"]))
        gap = torch.stack(
            (
                (logits_a.float() - logits_b.float()).abs().mean(),
                (logits_a.float().abs() + logits_b.float().abs()).mean() / 2,
            )
        )
        self._logit_gap = gap if self._logit_gap is None else self._logit_gap + gap

    def _add_overlap(self, name: str, overlap: tuple[Tensor, Tensor, Tensor]) -> None:
        stacked = torch.stack(tuple(overlap))
        previous = self._overlaps.get(name)
        self._overlaps[name] = stacked if previous is None else previous + stacked

    def read(self, across_ranks: bool) -> dict[str, Any]:
        """Foreground Dice by class (NaN = in neither), agreement (Dice of A against B), relative logit gap."""
        if across_ranks:
            self._overlaps = {name: sum_across_ranks(overlap) for name, overlap in self._overlaps.items()}
            self._logit_gap = sum_across_ranks(self._logit_gap)
        values: dict[str, Any] = {
            f"dice_{name}": _dice(*self._overlaps[name])[1:].tolist() for name in ("a", "b", "mean")
        }
        both, predicted_a, predicted_b = (n[1:].sum().item() for n in self._overlaps["agreement"])
        foreground = predicted_a + predicted_b
        values["agreement"] = 2 * both / foreground if foreground else float("nan")
        difference, magnitude = self._logit_gap.cpu().tolist()
        values["relative_logit_gap"] = difference / magnitude if magnitude else 0.0
        return values
