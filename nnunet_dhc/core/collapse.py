# SPDX-License-Identifier: Apache-2.0
"""Alarms when a class dies out of a network's pseudo labels, or when the two networks have become one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MIN_LOGIT_GAP = 1e-3
_NETWORKS = ("A", "B")


class CollapseMonitor:
    """Counts, epoch by epoch, how long a class has been dead and how long A and B have agreed to the last digit.

    An alarm is raised once, when a state has lasted `patience_epochs` epochs in a row, and again only after it had
    ended in between. NaN is unknown: it leaves a count as it is.

    Args:
        class_names: Foreground classes, in the order of the values given to `observe`.
        patience_epochs: Epochs in a row before an alarm, at least 1.
        learns_from_pseudo_labels: Off where the pseudo labels are counted only.
    """

    def __init__(
        self, class_names: Sequence[str], patience_epochs: int, learns_from_pseudo_labels: bool = True
    ) -> None:
        if patience_epochs < 1:
            raise ValueError(f"patience_epochs is {patience_epochs}, but must be at least 1")
        self.class_names = list(class_names)
        self.patience_epochs = int(patience_epochs)
        self._remedy = "label more cases that show it" + (
            ", or lower lambda_max so that the labels outweigh the pseudo labels" if learns_from_pseudo_labels else ""
        )
        n = len(self.class_names)
        self._epochs_without_pseudo_labels = {network: [0] * n for network in _NETWORKS}
        self._epochs_with_zero_dice = [0] * n
        self._epochs_as_one = 0

    def observe(
        self,
        labels_contain: Sequence[bool],
        pseudo_label_shares: tuple[Sequence[float], Sequence[float]],
        dice: Sequence[float],
        relative_logit_gap: float,
    ) -> list[str]:
        """Take in one epoch.

        Args:
            labels_contain: Whether the labels of the fold hold the class, one per foreground class.
            pseudo_label_shares: Share of the class in the pseudo labels of A and in those of B, in [0, 1] or NaN: what
                is dead in one of them is never taught to the other.
            dice: Dice of the class in the epoch's validation, in [0, 1] or NaN.
            relative_logit_gap: Mean |logits A - logits B| over mean |logits|, or NaN.

        Returns:
            New alarms, one sentence each that names the class and what to do.

        Raises:
            ValueError: If a sequence does not have one value per class.
        """
        shares = dict(zip(_NETWORKS, pseudo_label_shares, strict=True))
        given = {"labels_contain": labels_contain, "dice": dice}
        given |= {f"pseudo_label_share of {network}": of_network for network, of_network in shares.items()}
        for name, values in given.items():
            if len(values) != len(self.class_names):
                raise ValueError(f"{name} has {len(values)} values for {len(self.class_names)} classes")
        alarms = []
        n = self.patience_epochs
        for index, class_name in enumerate(self.class_names):
            contained = bool(labels_contain[index])
            without = [
                network
                for network, epochs in self._epochs_without_pseudo_labels.items()
                if self._count(epochs, index, contained, shares[network][index])
            ]
            if without:
                alarms.append(
                    f"Class '{class_name}' has not appeared in the pseudo labels of {' and '.join(without)} for {n} "
                    f"epochs although the labels contain it: {self._remedy}."
                )
            if self._count(self._epochs_with_zero_dice, index, contained, dice[index]):
                alarms.append(
                    f"Class '{class_name}' has had a Dice of 0 for {n} epochs although the labels contain it: check "
                    f"its labels, add labeled cases that show it, or train longer."
                )
        if not math.isnan(relative_logit_gap):
            self._epochs_as_one = self._epochs_as_one + 1 if relative_logit_gap < MIN_LOGIT_GAP else 0
            if self._epochs_as_one == n:
                alarms.append(
                    f"Networks A and B have given the same logits for {n} epochs and teach each other nothing: "
                    f"initialize them differently, or give them different class weightings."
                )
        return alarms

    def _count(self, epochs: list[int], index: int, contained: bool, value: float) -> bool:
        """Count on or start over; true in the epoch in which the patience ends."""
        if not contained:
            epochs[index] = 0
            return False
        if math.isnan(value):
            return False
        epochs[index] = epochs[index] + 1 if value <= 0 else 0
        return epochs[index] == self.patience_epochs

    def state_dict(self) -> dict[str, Any]:
        """The counts, JSON-able."""
        return {
            "class_names": list(self.class_names),
            "epochs_without_pseudo_labels": {k: list(v) for k, v in self._epochs_without_pseudo_labels.items()},
            "epochs_with_zero_dice": list(self._epochs_with_zero_dice),
            "epochs_as_one": self._epochs_as_one,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If the state belongs to other classes.
        """
        if list(state["class_names"]) != self.class_names:
            raise ValueError(f"this state watches {state['class_names']}, not {self.class_names}")
        without = state["epochs_without_pseudo_labels"]
        if not isinstance(without, Mapping):  # checkpoints from before A was watched
            without = {"A": [0] * len(self.class_names), "B": without}
        self._epochs_without_pseudo_labels = {k: [int(v) for v in without[k]] for k in _NETWORKS}
        self._epochs_with_zero_dice = [int(v) for v in state["epochs_with_zero_dice"]]
        self._epochs_as_one = int(state["epochs_as_one"])
