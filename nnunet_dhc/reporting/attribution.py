# SPDX-License-Identifier: Apache-2.0
"""Where a gain comes from: unlabeled data, mixed patches, two networks, or longer training.

Each part is a difference between two rows of a comparison, and needs both. What a row is follows from its trainer's
name and from the records of its training; parts whose rows aren't there are named as missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_dhc.earlier_recipes import completed
from nnunet_dhc.reporting.differences import correct
from nnunet_dhc.reporting.metric_text import interval_text, points_text
from nnunet_dhc.reporting.protocols import Metric

_Row = dict[str, Any]  # as in comparison.json

_STOCK = re.compile(r"nnUNetTrainer(NoMirroring)?(_\d+epochs?)?(_NoMirroring)?$")
_CONTROLS = {
    "pair supervised": re.compile(r"nnUNetTrainerPairSupervised(_\d+epochs?)?$"),
    "pair mixed": re.compile(r"nnUNetTrainerPairMixed(_\d+epochs?)?$"),
}
_MIXING = re.compile(r"nnUNetTrainerDHC(_\d+epochs?)?$")
_SEMI_SUPERVISED = re.compile(r"nnUNetTrainer(DHC|CPS|CReST|SimiS|Pair(Dist|Diff)DW)")
# What a training on labels alone reads of a recipe.
SETTINGS_ON_LABELS = (
    "weighting_a", "weighting_b", "weighting_mode", "weighting_a_options", "weighting_b_options", "weight_exponent",
    "weight_exponent_final", "background_weight", "background_exponent_final", "weight_mean_one", "weight_minimum",
    "supervised_ce", "supervised_dice", "dice_smooth", "dice_pooled_over_batch", "initialization_a", "initialization_b",
    "architecture_b", "oversample_foreground", "mirror_axes", "abstain_below",
)
# How long and how guarded a training runs, of which the length is compared by the number of steps.
SETTINGS_OF_THE_RUN = (
    "num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "low_memory", "allow_leaks",
    "collapse_patience", "max_non_finite_steps",
)
_STEPS_TOLERANCE = 0.05
_TIME_TOLERANCE = 0.15

UNLABELED = "unlabeled data"
UNLABELED_AND_MIXED = "unlabeled data and mixed patches"
MIXED = "mixed patches of labeled scans"
NETWORKS = "two networks and class weights"
ALL_AT_EQUAL_STEPS = "everything together, at equal steps"
ALL_AT_EQUAL_TIME = "everything together, at equal wall-clock"
LONGER_STOCK = "longer training of stock nnU-Net"


def role(trainer: str | None, unlabeled_cases: int | None) -> str:
    """``stock``, ``pair supervised``, ``pair mixed``, ``semi-supervised`` or ``other``.

    Args:
        trainer: The trainer, or the name of a row that was given by hand.
        unlabeled_cases: How many it used, where that is known.
    """
    name = trainer or ""
    if _STOCK.match(name) or name.lower() == "stock":
        return "stock"
    for control, pattern in _CONTROLS.items():
        if pattern.match(name):
            return control
    if unlabeled_cases or _SEMI_SUPERVISED.match(name):
        return "semi-supervised"
    return "other"


def attribution(rows: Sequence[_Row], contrast: Callable[[str, str], dict[str, Any]], metric: Metric,
                subject: str | None) -> dict[str, Any]:
    """Which part of the gain comes from unlabeled data, from two networks, and from longer training.

    The parts are corrected by Holm as one family: they are read together.

    Args:
        rows: Rows of the comparison with ``role`` and ``facts``.
        contrast: Function (row name, against name) -> difference of the first metric with interval and p.
        metric: The metric that decides the verdict.
        subject: The row whose gain is explained; None takes the first semi-supervised row.
    """
    semi = [row for row in rows if row["role"] == "semi-supervised"]
    if not semi:
        return {"subject": None, "parts": [], "missing": [], "sentence": ""}
    target = next((row for row in semi if row["name"] == subject), semi[0])
    beside = _Beside.find(target, rows)
    pairs = beside.pairs()
    # Each contrast once: stock may be the one at equal steps and at equal time.
    names = dict.fromkeys((row["name"], other["name"]) for _, row, other in pairs)
    contrasts = {(name, against): contrast(name, against) for name, against in names}
    correct(list(contrasts.values()), metric)
    parts = {what: {"what": what, "row": row["name"], "against": other["name"],
                    **contrasts[row["name"], other["name"]]} for what, row, other in pairs}
    for what, differing in beside.differing_settings().items():
        parts[what]["differing_settings"] = differing
    missing = beside.missing()
    if parts and not target["facts"].get("steps"):
        missing.append("a record of the number of steps: that the rows had equally many is taken from their names")
    return {"subject": target["name"], "parts": list(parts.values()), "missing": missing,
            "sentence": _sentence(target["name"], parts, metric)}


@dataclass(frozen=True)
class _Beside:
    """The row whose gain is explained, and the rows of the comparison that can explain it."""

    target: _Row
    supervised: _Row | None
    mixed: _Row | None
    stock_at_equal_steps: _Row | None
    stock_at_equal_time: _Row | None

    @classmethod
    def find(cls, target: _Row, rows: Sequence[_Row]) -> _Beside:
        comparable = _comparable_with(target, rows)
        stock = [row for row in comparable if row["role"] == "stock"]
        stock = [row for row in stock if row["facts"].get("mirror_axes") == target["facts"].get("mirror_axes")] or stock
        supervised, mixed = (_control_of(target, [row for row in comparable if row["role"] == control])
                             for control in _CONTROLS)
        return cls(target, supervised, mixed, _closest(stock, target, "steps", _STEPS_TOLERANCE),
                   _closest(stock, target, "seconds", _TIME_TOLERANCE))

    @property
    def mixes(self) -> bool:
        """Whether unlabeled patches are mixed with labeled ones, by the records of the trainings or the row's name."""
        recipes = [run["recipe"] for run in self.target["runs"] if isinstance(run.get("recipe"), dict)]
        if not recipes:
            return _MIXING.match(self.target["trainer"] or self.target["name"]) is not None
        return any(recipe.get("paste_side") for recipe in recipes)

    @property
    def control(self) -> _Row | None:
        """The row from which the subject differs by its unlabeled data alone, or by as little more as there is."""
        return self.mixed if self.mixes and self.mixed else self.supervised

    @property
    def part_of_control(self) -> str:
        return UNLABELED_AND_MIXED if self.mixes and not self.mixed else UNLABELED

    def pairs(self) -> list[tuple[str, _Row, _Row]]:
        """Name of each part, the row and the one that it is compared with."""
        supervised, steps, time = self.supervised, self.stock_at_equal_steps, self.stock_at_equal_time
        found: list[tuple[str, _Row, _Row]] = []
        if self.control:
            found.append((self.part_of_control, self.target, self.control))
        if supervised and self.mixes and self.mixed:
            found.append((MIXED, self.mixed, supervised))
        if supervised and steps:
            found.append((NETWORKS, supervised, steps))
        if steps:
            found.append((ALL_AT_EQUAL_STEPS, self.target, steps))
        if time:
            found.append((ALL_AT_EQUAL_TIME, self.target, time))
        if steps and time and steps is not time:
            found.append((LONGER_STOCK, time, steps))
        return found

    def differing_settings(self) -> dict[str, list[str]]:
        """Per part with a control, in which settings the two pairs differ.

        Stock has no recipe: the pair that is compared with it should be the pair whose gain is explained.
        """
        return {what: _differing_settings(row, self.target if what == NETWORKS else other)
                for what, row, other in self.pairs() if what in (UNLABELED, UNLABELED_AND_MIXED, MIXED, NETWORKS)}

    def missing(self) -> list[str]:
        """Rows that a user would have to train, each with what it would tell."""
        texts = []
        if not self.supervised:
            unknown = ("the part of mixed patches can't be told from that of two networks" if self.control else
                       "the part of the unlabeled data can't be told from that of two networks")
            texts.append(f"nnUNetTrainerPairSupervised with the same plans and number of steps: without it, {unknown}")
        if self.mixes and not self.mixed:
            texts.append("nnUNetTrainerPairMixed with the same plans and number of steps: without it, the part of the "
                         "unlabeled data can't be told from that of mixed patches, which labeled scans give as well")
        if not self.stock_at_equal_steps:
            texts.append("stock nnU-Net with the same plans and number of steps")
        if not self.stock_at_equal_time:
            no_mirroring = "_NoMirroring" if self.target["facts"].get("mirror_axes") == "none" else ""
            texts.append("stock nnU-Net with the same wall-clock (of nnU-Net's trainers nnUNetTrainer_<N>epochs"
                         f"{no_mirroring} take the one "
                         f"{_epochs_for_equal_time(self.target, self.stock_at_equal_steps)})")
        return texts


def _comparable_with(target: _Row, rows: Sequence[_Row]) -> list[_Row]:
    """Rows with as many labeled cases, as far as that is known, and with the same plans and configuration.

    An upper bound is no control, nor is a training with another patch or network.
    """
    labels = target["facts"].get("labeled_cases")
    return [row for row in rows if row["planned"] == target["planned"]
            and row["configuration"] == target["configuration"]
            and (labels is None or row["facts"].get("labeled_cases") in (None, labels))]


def _control_of(target: _Row, rows: Sequence[_Row]) -> _Row | None:
    """Of those with as many steps the one with the settings of the target, or else the closest."""
    near = _near(rows, target, "steps", _STEPS_TOLERANCE)
    return next((row for row in near if not _differing_settings(row, target)), near[0] if near else None)


def _differing_settings(row: _Row, other: _Row) -> list[str]:
    """Settings in which trainings of the same fold differ, of those that the records of both tell.

    Args:
        row: A pair.
        other: Another one. If one of them is trained on labels alone, the settings on labels are compared, otherwise
            all but those of the run.

    Returns:
        Names of the settings.
    """
    recipes = [(completed(run["recipe"]), completed(another["recipe"])) for run in row["runs"]
               for another in other["runs"] if run.get("fold") == another.get("fold")
               and isinstance(run.get("recipe"), dict) and isinstance(another.get("recipe"), dict)]
    told = dict.fromkeys(name for of_row, of_other in recipes for name in of_row if name in of_other)
    on_labels_alone = "pair supervised" in (row["role"], other["role"])
    names = SETTINGS_ON_LABELS if on_labels_alone else [name for name in told if name not in SETTINGS_OF_THE_RUN]
    return [name for name in names
            if any(name in of_row and name in of_other and of_row[name] != of_other[name]
                   for of_row, of_other in recipes)]


def _closest(rows: Sequence[_Row], target: _Row, fact: str, tolerance: float) -> _Row | None:
    return next(iter(_near(rows, target, fact, tolerance)), None)


def _near(rows: Sequence[_Row], target: _Row, fact: str, tolerance: float) -> list[_Row]:
    """Rows whose fact is that of the target within a relative tolerance, the closest first."""
    wanted = target["facts"].get(fact)
    known = [row for row in rows if row["facts"].get(fact)]
    if not wanted or not known:
        # Folders of predictions don't tell their steps: the row's name has to do, and the page says so.
        return list(rows) if fact == "steps" and not wanted and not known else []
    return sorted((row for row in known if abs(row["facts"][fact] - wanted) <= tolerance * wanted),
                  key=lambda row: abs(row["facts"][fact] - wanted))


def _epochs_for_equal_time(target: _Row, stock: _Row | None) -> str:
    if stock and stock["facts"].get("seconds") and stock["facts"].get("epochs") and target["facts"].get("seconds"):
        ratio = target["facts"]["seconds"] / stock["facts"]["seconds"]
        return f"nearest to N = {max(1, round(stock['facts']['epochs'] * ratio))}"
    return "that trains about as long"


def _sentence(subject: str, parts: dict[str, dict[str, Any]], metric: Metric) -> str:
    """What the parts say; nothing without a control, from which alone the unlabeled data's part is known."""
    def change(what: str) -> str | None:
        part = parts.get(what)
        if part is None or part["mean"] is None:
            return None
        return f"{points_text(part['mean'], metric)}{interval_text(part, metric)}"

    def doubt(what: str) -> str:
        return "" if parts[what]["claim"] in ("better", "worse") else " (no claim)"

    def differing(what: str) -> str:
        return ", ".join(parts[what]["differing_settings"])

    unlabeled = next((what for what in (UNLABELED, UNLABELED_AND_MIXED) if change(what)), None)
    if unlabeled is None:
        return ""
    control = (f"a pair without them whose recipe differs, too (in {settings})" if (settings := differing(unlabeled))
               else "the same pair without them")
    clauses = [f"The {unlabeled} change {subject} by {change(unlabeled)} against {control}{doubt(unlabeled)}"]
    if found := change(MIXED):
        pair = f"a pair whose recipe differs, too (in {settings})," if (settings := differing(MIXED)) else "the pair"
        clauses.append(f"mixed patches of labeled scans change {pair} by {found}{doubt(MIXED)}")
    if found := change(NETWORKS):
        pair = f" (of a pair that differs from {subject} in {settings})" if (settings := differing(NETWORKS)) else ""
        clauses.append(f"two networks with class weights{pair} change stock by {found} at equal steps"
                       f"{doubt(NETWORKS)}")
    text = (f"{', '.join(clauses[:-1])}, and {clauses[-1]}" if clauses[1:] else clauses[0]) + "."
    if found := change(ALL_AT_EQUAL_TIME):
        text += f" Against stock with the same wall-clock it is {found}{doubt(ALL_AT_EQUAL_TIME)}."
    return text
