# SPDX-License-Identifier: Apache-2.0
"""What is measured: the metrics of a comparison and the worth of an empty structure, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.surface_distances import SurfaceDistances


@dataclass(frozen=True)
class Metric:
    """A score per case and structure; ``scale`` and ``digits`` say how it is printed.

    ``rightly_empty`` is what no score is worth beside a score of another row: for Dice, which has none only where the
    structure is absent and not predicted, the best one. Without it, a row that paints absent structures would pay for
    them in its mean and not in its differences. None: such a pair is left out.
    """

    key: str
    label: str
    unit: str
    higher_is_better: bool
    scale: float = 1.0
    digits: int = 2
    definition: str = ""
    rightly_empty: float | None = None

    @property
    def unit_of_value(self) -> str:
        """What stands behind a single number; a scale such as 0-100 is no unit."""
        return "" if self.unit == "0-100" else self.unit

    @property
    def unit_of_difference(self) -> str:
        return "points" if self.unit in ("%", "0-100") else self.unit

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "unit_of_value": self.unit_of_value, "unit_of_difference": self.unit_of_difference}


@dataclass(frozen=True)
class EmptyRule:
    """What a structure is worth that is empty on one side or on both; None means left out of every mean."""

    prediction: str
    reference: str
    values: dict[str, float | None]
    meaning: str


@dataclass(frozen=True)
class Protocol:
    """A set of metrics with its rules for empty structures; the first metric decides the verdict."""

    name: str
    metrics: tuple[Metric, ...]
    rules: tuple[EmptyRule, ...]
    distances_in_mm: bool
    notes: str
    spread_ddof: int = 1

    def scores(self, dice: float, distances: SurfaceDistances) -> dict[str, float | None]:
        """Scores where neither side is empty."""
        if self.distances_in_mm:
            return {"dice": dice, "hd95_mm": distances.hd95, "assd_mm": distances.assd}
        return {"dice_dhc": 100.0 * dice, "asd_voxels": float(distances.prediction_to_reference.mean())}

    def scores_of_empty(self, prediction_found: bool, reference_found: bool) -> dict[str, float | None]:
        """Scores where at least one side is empty."""
        side = {False: "empty", True: "found"}
        for rule in self.rules:
            if (rule.prediction, rule.reference) == (side[prediction_found], side[reference_found]):
                return dict(rule.values)
        raise ValueError("both sides are found: there is no rule to apply")

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "notes": self.notes,
            "metrics": [metric.as_json() for metric in self.metrics],
            "empty_rules": [vars(rule) for rule in self.rules],
        }


STANDARD = Protocol(
    name="standard",
    metrics=(
        Metric("dice", "Dice", "%", True, 100.0, 1, "2|P∩R| / (|P|+|R|), in percent", rightly_empty=1.0),
        Metric("hd95_mm", "HD95", "mm", False, 1.0, 1,
               "larger of the two directed 95th percentiles of the surface distances"),
        Metric("assd_mm", "ASSD", "mm", False, 1.0, 2, "mean of all surface distances of both directions"),
    ),
    rules=(
        EmptyRule("empty", "empty", {"dice": None, "hd95_mm": None, "assd_mm": None},
                  "absent and not predicted: left out of every mean, as nnU-Net does"),
        EmptyRule("empty", "found", {"dice": 0.0, "hd95_mm": None, "assd_mm": None},
                  "missed: Dice 0; distances are undefined, left out, and counted as missed"),
        EmptyRule("found", "empty", {"dice": 0.0, "hd95_mm": None, "assd_mm": None},
                  "spurious: Dice 0; distances are undefined, left out, and counted as spurious"),
    ),
    distances_in_mm=True,
    notes="Distances in mm with the spacing of the reference file, between centers of surface voxels. "
          "A lower mean distance can come with more missed structures: read both columns.",
)

DHC = Protocol(
    name="dhc",
    metrics=(
        Metric("dice_dhc", "Dice", "0-100", True, 1.0, 1, "100 · 2|P∩R| / (|P|+|R|)"),
        Metric("asd_voxels", "ASD", "voxels", False, 1.0, 2,
               "mean distance from the surface of the prediction to that of the reference (one direction), "
               "in voxels, spacing ignored"),
    ),
    rules=(
        EmptyRule("empty", "found", {"dice_dhc": 0.0, "asd_voxels": 128.0}, "missed: Dice 0, ASD 128"),
        EmptyRule("found", "empty", {"dice_dhc": 0.0, "asd_voxels": 128.0}, "spurious: Dice 0, ASD 128"),
        EmptyRule("empty", "empty", {"dice_dhc": 1.0, "asd_voxels": 0.0},
                  "absent and not predicted: Dice 1 (of 100, as the released code has it), ASD 0"),
    ),
    distances_in_mm=False,
    notes="The metrics of the DHC paper's tables: mean over cases per class, then over classes. The paper computes "
          "them on volumes resized to 80 x 160 x 160; here they are computed on the grid of the files given. "
          "Spread over seeds: population standard deviation, as in the paper.",
    spread_ddof=0,
)

PROTOCOLS = {protocol.name: protocol for protocol in (STANDARD, DHC)}


def protocol_named(name: str) -> Protocol:
    """One of ``PROTOCOLS``."""
    if name not in PROTOCOLS:
        raise UserError(f"There is no protocol {name}; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
