# SPDX-License-Identifier: Apache-2.0
"""DiffDW: the slower a class is learned and the lower its Dice, the heavier it weighs."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nnunet_dhc.core.class_weighting import ClassWeighting, Mode, Statistic, checked_scale

EPS = 1e-8
FIRST_DICE = 1e-8
MIN_DICE = 1e-20  # below anything `hard_dice` can give; only keeps the logarithm of an exact 0 finite
MIN_LARGEST = 1e-12


def learning_speed(dice: Tensor, previous_dice: Tensor) -> tuple[Tensor, Tensor]:
    """How much each class was unlearned and learned in one step, as a term of the Population Stability Index.

    change_i = (dice_i - previous_i) * ln(dice_i / previous_i) >= 0; it is an unlearning where dice fell or stayed.

    Args:
        dice: Dice now, shape (k,), in [0, 1].
        previous_dice: Dice before, shape (k,), in [0, 1].

    Returns:
        unlearned, learned: shape (k,), float32, >= 0; one of the two is 0 for every class.

    Source: DHC (MICCAI 2023) Eq. 5; reference code xmed-lab/DHC@b3dee97 code/train_dhc.py, class DiffDW.
    Deviations: Eq. 5 as printed lacks the factor (dice - previous) and has no real solution where a class declines.
    """
    dice, previous_dice = dice.clamp_min(MIN_DICE), previous_dice.clamp_min(MIN_DICE)
    change = dice - previous_dice
    magnitude = change * torch.log(dice / previous_dice)
    zero = torch.zeros_like(magnitude)
    return torch.where(change <= 0, magnitude, zero), torch.where(change > 0, magnitude, zero)


class DiffDW(ClassWeighting):
    """Difficulty-aware debiased weighting from the Dice of each class on the labeled patches.

    d_i = ((du_i + 1e-8) / (dl_i + 1e-8))^alpha, raw_i = d_i * r_i, w = scale * raw / max_j raw_j
    ema:    du <- m du + (1 - m) unlearned, dl <- m dl + (1 - m) learned, r <- m r + (1 - m) (1 - dice),
            m = (tau - 1) / tau, from du = dl = 0 and r = 1
    window: du, dl, r are the sums of unlearned, learned, 1 - dice over the last tau steps; with absent="carry" over the
            last tau in which the class was seen, so that a class weighs little until it has been seen so often
    unlearned and learned are those of `learning_speed`.

    Args:
        num_classes: k, background included.
        mode: Sets the default of `absent`.
        tau: Steps over which the past counts.
        alpha: Exponent of the learning speed.
        scale: Weight of the heaviest class; None is k, as in the released code, 1.0 is as printed in the paper.
        normalise: "max" divides by the largest weight, "none" does not.
        absent: What a class does whose Dice is NaN (neither labeled nor predicted): "carry" leaves all of its state
            as it is, "half" takes its Dice for 0.5. None: carry in robust mode, half in released mode.
        init: "released" starts from a Dice of 1e-8, so the first observation looks like a great success;
            "first_observation" starts from the first Dice of each class, which then says nothing about speed.
        accumulation: "ema" (released) or "window" (paper). A class with an empty window has d = r = 1.

    Source: DHC (MICCAI 2023) Eq. 5; reference code xmed-lab/DHC@b3dee97 code/train_dhc.py, class DiffDW.
    Deviations: "carry" in robust mode: else a class that comes and goes between patches outweighs, by its jumps
        between 0.5 and 0, all that is learned. Where all raw weights vanish (every class perfect for more than a
        thousand steps) all classes get `scale`.
    """

    reads: ClassVar[Statistic] = "labeled_dice"

    def __init__(
        self,
        num_classes: int,
        mode: Mode = "robust",
        tau: int = 50,
        alpha: float = 0.2,
        scale: float | None = None,
        normalise: Literal["max", "none"] = "max",
        absent: Literal["carry", "half"] | None = None,
        init: Literal["released", "first_observation"] = "released",
        accumulation: Literal["ema", "window"] = "ema",
    ) -> None:
        super().__init__(num_classes, mode)
        if not 1 <= tau < math.inf or tau != int(tau):
            raise ValueError(f"tau is {tau}, but must be a whole number of steps, at least 1")
        if not 0.0 <= alpha < math.inf:
            raise ValueError(f"alpha is {alpha}, but must be a finite number, at least 0")
        absent = absent or ("carry" if mode == "robust" else "half")
        for name, value, valid in (
            ("normalise", normalise, ("max", "none")),
            ("absent", absent, ("carry", "half")),
            ("init", init, ("released", "first_observation")),
            ("accumulation", accumulation, ("ema", "window")),
        ):
            if value not in valid:
                raise ValueError(f"{name} is {value!r}, but must be one of {valid}")
        self.tau, self.alpha = int(tau), float(alpha)
        self.scale = checked_scale(num_classes if scale is None else scale)
        self.normalise, self.absent, self.init, self.accumulation = normalise, absent, init, accumulation
        self.initialize(torch.zeros(num_classes))

    @torch.no_grad()
    def initialize(self, counts: Tensor) -> Tensor:
        """Forget the past; the counts themselves do not matter to this weighting."""
        k = self.num_classes
        zero = torch.zeros_like(self._statistic(counts))
        self._state = {
            "weights": zero + self.scale,
            "dice": zero + FIRST_DICE,
            "observed": zero.to(torch.bool),
        }
        if self.accumulation == "ema":
            self._state |= {"unlearned": zero, "learned": zero.clone(), "reversed_dice": zero + 1.0}
        else:
            ring = zero.new_zeros(self.tau, k)
            self._state |= {"unlearned": ring, "learned": ring.clone(), "reversed_dice": ring.clone()}
            self._state["entries"] = zero.to(torch.int64)
        return self.weights

    @torch.no_grad()
    def update(self, dice: Tensor | None = None, /) -> Tensor:
        new = self._statistic(dice)
        state = self._state
        if self.absent == "half":
            new = torch.where(torch.isnan(new), torch.full_like(new, 0.5), new)
        present = ~torch.isnan(new)
        previous = state["dice"]
        if self.init == "first_observation":
            previous = torch.where(state["observed"], previous, new)
        unlearned, learned = learning_speed(new, previous)
        values = {"unlearned": unlearned, "learned": learned, "reversed_dice": 1.0 - new}
        if self.accumulation == "ema":
            self._mix(values, present)
        else:
            self._enter(values, present)
        state["dice"] = torch.where(present, new, state["dice"])
        state["observed"] = state["observed"] | present
        state["weights"] = self._weigh()
        return self.weights

    def _mix(self, values: dict[str, Tensor], present: Tensor) -> None:
        m = (self.tau - 1) / self.tau
        for name, value in values.items():
            old = self._state[name]
            self._state[name] = torch.where(present, m * old + (1.0 - m) * value, old)

    def _enter(self, values: dict[str, Tensor], present: Tensor) -> None:
        """Overwrite the oldest entry of the classes that have a new one; each class has its own ring."""
        state = self._state
        if self.init == "first_observation":  # the first Dice only sets the starting point
            present = present & state["observed"]
        slot = (state["entries"] % self.tau)[None]
        for name, value in values.items():
            old = state[name].gather(0, slot)
            state[name] = state[name].scatter(0, slot, torch.where(present, value, old))
        state["entries"] = state["entries"] + present

    def _weigh(self) -> Tensor:
        unlearned, learned, reversed_dice = (self._state[n] for n in ("unlearned", "learned", "reversed_dice"))
        if self.accumulation == "window":
            unlearned, learned, reversed_dice = unlearned.sum(0), learned.sum(0), reversed_dice.sum(0)
            reversed_dice = torch.where(self._state["entries"] > 0, reversed_dice, torch.ones_like(reversed_dice))
        raw = ((unlearned + EPS) / (learned + EPS)) ** self.alpha * reversed_dice
        largest = raw.max()
        weights = raw / largest.clamp_min(MIN_LARGEST) if self.normalise == "max" else raw
        return self.scale * torch.where(largest > MIN_LARGEST, weights, torch.ones_like(weights))
