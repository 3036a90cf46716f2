# SPDX-License-Identifier: Apache-2.0
"""Scores, differences, intervals and p values of a metric as they stand in sentences."""

from __future__ import annotations

from typing import Any

from nnunet_dhc.reporting.protocols import Metric
from nnunet_dhc.reporting.table_cells import number, p_text


def score_text(value: float | None, metric: Metric) -> str:
    """A score with its unit."""
    return "undefined" if value is None else f"{number(value, vars(metric))} {metric.unit_of_value}".rstrip()


def points_text(value: float, metric: Metric) -> str:
    """A difference with its sign and unit."""
    return f"{number(value, vars(metric), signed=True)} {metric.unit_of_difference}"


def interval_text(found: dict[str, Any], metric: Metric, signed: bool = True) -> str:
    """The interval in parentheses, after a space; nothing where there are too few cases for one."""
    if found["low"] is None:
        return ""
    low, high = (number(found[side], vars(metric), signed) for side in ("low", "high"))
    return f" (95 % interval {low} to {high})"


def p_value_text(value: float | None) -> str:
    """``p = 0.002``, ``p < 0.0001`` or that it is not defined."""
    if value is None:
        return "p undefined"
    text = p_text(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
