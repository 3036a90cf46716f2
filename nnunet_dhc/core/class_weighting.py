# SPDX-License-Identifier: Apache-2.0
"""What every class weighting has in common: a small state on the device, and a way to save and restore it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

Mode = Literal["robust", "released"]
Statistic = Literal["nothing", "unlabeled_counts", "all_counts", "labeled_dice"]


class ClassWeighting(ABC):
    """Class weights that are made from one statistic of the predictions and may remember the past.

    All arithmetic is float32 on the device of the statistic, without a host synchronization; the weights carry no
    gradient. A statistic in half precision gives the weights of the same values in float32.

    Args:
        num_classes: Length k of the weights, background included, at least 2.
        mode: "released" computes what the authors' code computes, its undefined cases included; "robust" defines them.

    Raises:
        ValueError: For an unknown mode or fewer than 2 classes.
    """

    reads: ClassVar[Statistic] = "nothing"

    def __init__(self, num_classes: int, mode: Mode = "robust") -> None:
        if mode not in ("robust", "released"):
            raise ValueError(f"mode is {mode!r}, but must be 'robust' or 'released'")
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}, but class weights need at least 2 classes")
        self.num_classes = int(num_classes)
        self.mode: Mode = mode
        self._state: dict[str, Tensor] = {"weights": torch.ones(self.num_classes, dtype=torch.float32)}

    @property
    def weights(self) -> Tensor:
        """The current weights, shape (k,), float32, >= 0, without gradient."""
        return self._state["weights"]

    @abstractmethod
    def initialize(self, counts: Tensor) -> Tensor:
        """Set the state from the voxel counts of all labeled cases.

        Args:
            counts: Voxels per class, shape (k,), any real dtype, >= 0.

        Returns:
            The weights, shape (k,), float32, on the device of `counts`.

        Raises:
            ValueError: If `counts` has another shape.
        """

    @abstractmethod
    def update(self, statistic: Tensor | None = None, /) -> Tensor:
        """Take in the statistic of one step, which the class attribute `reads` names, and return the new weights.

        Args:
            statistic: Shape (k,), any real dtype: voxel counts, or Dice (NaN where undefined).

        Returns:
            The weights, shape (k,), float32, on the device of the statistic.

        Raises:
            ValueError: If the statistic is missing or has another shape.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, as copies: tensors by name, and `num_classes`."""
        return {"num_classes": self.num_classes, **{name: value.clone() for name, value in self._state.items()}}

    def snapshot(self) -> dict[str, Any]:
        """As `state_dict`, without copies: an update makes new tensors and writes into none."""
        return {"num_classes": self.num_classes, **self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the tensors move to the device of the next statistic by themselves.

        Raises:
            ValueError: If the state belongs to another weighting or number of classes; in robust mode also if it is
                not finite.
        """
        name = type(self).__name__
        if set(state) != {"num_classes", *self._state}:
            raise ValueError(f"this is no state of {name}: it has {sorted(state)}, not {sorted(self.state_dict())}")
        for key, own in self._state.items():
            if state[key].shape != own.shape:
                raise ValueError(f"{name}: saved {key} has shape {tuple(state[key].shape)}, not {tuple(own.shape)}")
            if self.mode == "robust" and not bool(torch.isfinite(state[key]).all()):
                raise ValueError(f"{name}: saved {key} is not finite, the run that wrote it had already diverged")
        self._state = {key: state[key].detach().to(own.device, own.dtype).clone() for key, own in self._state.items()}

    def revert_where(self, condition: Tensor, state: Mapping[str, Any]) -> None:
        """Go back to `state` if `condition` holds, decided on the device: a step that is skipped leaves no trace.

        Args:
            condition: Scalar bool tensor.
            state: What `state_dict` or `snapshot` returned earlier.
        """
        for key, own in self._state.items():
            self._state[key] = torch.where(condition.to(own.device), state[key].to(own.device), own)

    def to(self, device: torch.device | str) -> ClassWeighting:
        """Move the state; rarely needed, since it follows the statistic."""
        self._state = {key: value.to(device) for key, value in self._state.items()}
        return self

    def _statistic(self, statistic: Tensor | None) -> Tensor:
        """The statistic in float32, after the state has followed it to its device."""
        if statistic is None:
            raise ValueError(f"{type(self).__name__}.update needs its statistic ({self.reads})")
        if statistic.shape != (self.num_classes,):
            raise ValueError(
                f"{type(self).__name__} got a statistic of shape {tuple(statistic.shape)}, not ({self.num_classes},)"
            )
        if self.weights.device != statistic.device:
            self.to(statistic.device)
        return statistic.detach().to(torch.float32)


def checked_scale(scale: float) -> float:
    """The factor on class weights.

    Raises:
        ValueError: It is not a finite number above 0.
    """
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale is {scale}, but must be a finite number above 0")
    return float(scale)


class CountWeighting(ClassWeighting):
    """A weighting by voxel counts, smoothed over steps: w <- momentum * w + (1 - momentum) * scale * w(counts).

    Args:
        momentum: Share of the old weights that is kept, in [0, 1).
        scale: Factor on the weights; a cross entropy that divides by the sum of weights ignores it, Dice does not.
    """

    def __init__(self, num_classes: int, mode: Mode, momentum: float, scale: float | None) -> None:
        super().__init__(num_classes, mode)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum is {momentum}, but must be in [0, 1)")
        self.momentum = float(momentum)
        self.scale = checked_scale(num_classes if scale is None else scale)

    @abstractmethod
    def _current(self, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Unscaled weights of these counts, and whether they say anything (scalar bool; None: always)."""

    @torch.no_grad()
    def initialize(self, counts: Tensor) -> Tensor:
        current, informative = self._current(self._statistic(counts))
        current = self.scale * current
        if informative is not None:
            current = torch.where(informative, current, torch.ones_like(current))
        self._state["weights"] = current
        return current

    @torch.no_grad()
    def update(self, counts: Tensor | None = None, /) -> Tensor:
        current, informative = self._current(self._statistic(counts))
        mixed = self.momentum * self.weights + (1.0 - self.momentum) * (self.scale * current)
        if informative is not None:
            mixed = torch.where(informative, mixed, self.weights)
        self._state["weights"] = mixed
        return mixed


class Unweighted(ClassWeighting):
    """All classes count the same: plain cross pseudo supervision.

    w_i = 1
    """

    def __init__(self, num_classes: int, mode: Mode = "robust") -> None:
        super().__init__(num_classes, mode)

    def initialize(self, counts: Tensor) -> Tensor:
        self._statistic(counts)
        return self.weights

    def update(self, statistic: Tensor | None = None, /) -> Tensor:
        return self.weights


def tempered(
    weights: Tensor,
    exponent: float | Tensor,
    mean_one: bool,
    minimum: float = 0.0,
    background: float | None = None,
) -> Tensor:
    """Class weights that differ less, of another size.

    v_i = max_j w_j * max(minimum, w_i / max_j w_j)^exponent_i;  mean_one: v_i / mean_j v_j

    Args:
        weights: Shape (k,), floating, >= 0.
        exponent: 1 leaves a weight, 0 makes it the largest; one for all, or one for each class, shape (k,).
        mean_one: Divide by the mean.
        minimum: Smallest weight before the exponent, relative to the largest. With 0, a weight of 0 stays 0 (but for
            exponent 0), and false positives on a background of that weight cost a cross entropy nothing.
        background: w_0 before all this, relative to the largest weight of the other classes; None: w_0 as it is.

    Returns:
        Shape (k,), the same dtype; all 0 where all weights are.

    Source: ours; the DHC family uses its weights as they are.
    """
    tiny = torch.finfo(weights.dtype).tiny
    if background is not None:
        weights = torch.cat((background * weights[1:].max()[None], weights[1:]))
    if minimum > 0:
        weights = torch.maximum(weights, minimum * weights.max())
    if isinstance(exponent, Tensor) or exponent != 1:
        largest = weights.max()
        weights = largest * (weights / largest.clamp_min(tiny)) ** exponent
    return weights / weights.mean().clamp_min(tiny) if mean_one else weights
