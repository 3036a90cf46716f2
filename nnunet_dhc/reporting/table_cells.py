# SPDX-License-Identifier: Apache-2.0
"""Texts of table cells, the same on the terminal, in Markdown and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_dhc.reporting.score_tables import of_scope
from nnunet_dhc.wording import counted

DASH = "–"  # noqa: RUF001


def scopes(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of a score table: everything, the frequency groups, then each structure."""
    structures = comparison["structures"]
    lines = [{"key": "overall", "label": "mean over structures", "kind": "overall"}]
    for group in ("rare", "medium", "frequent"):
        members = [item for item in structures if item["group"] == group]
        if members:
            lines.append({"key": group, "label": f"{group} ({len(members)})", "kind": "group"})
    lines += [{"key": item["key"], "label": item["name"], "n": item["cases_present"], "kind": "structure",
               "group": item["group"], "volume": item["mean_volume_ml"]} for item in structures]
    return lines


def score_of(row: dict[str, Any], metric: dict[str, Any], scope: str) -> dict[str, Any]:
    """Interval of a row in a scope."""
    return of_scope(row["scores"][metric["key"]], scope)


def difference_of(entry: dict[str, Any], metric: dict[str, Any], scope: str) -> dict[str, Any]:
    """Difference of a row from the baseline in a scope."""
    return of_scope(entry["metrics"][metric["key"]], scope)


def score_cell(row: dict[str, Any], metric: dict[str, Any], scope: str) -> str:
    """A mean, or a dash."""
    return number(score_of(row, metric, scope)["mean"], metric)


def cases_cell(comparison: dict[str, Any], metric: dict[str, Any], scope: str) -> str:
    """How many cases the means of a line rest on: those in which the row has a value."""
    found = [score_of(row, metric, scope)["n"] for row in comparison["rows"]]
    return f"{found[0]}" if min(found) == max(found) else f"{min(found)} to {max(found)}"


def cases_text(number_of_cases: int) -> str:
    return counted(number_of_cases, "case")


def scored_cell(comparison: dict[str, Any], row: dict[str, Any], metric: dict[str, Any]) -> str:
    """How many structures of how many a mean rests on, over all cases: distances need both sides."""
    first = comparison["protocol"]["metrics"][0]["key"]
    return f"{row['scores'][metric['key']]['scored']:g} of {row['scores'][first]['scored']:g}"


def number(value: float | None, metric: dict[str, Any], signed: bool = False) -> str:
    """A value in the metric's printed scale."""
    if value is None:
        return DASH
    shown = round(value * metric["scale"], metric["digits"]) or 0.0  # without the sign of a value that rounds to 0
    text = format(shown, f"{'+' if signed and shown else ''}.{metric['digits']}f")
    return text.replace("-", "\N{MINUS SIGN}")


def interval_cell(found: dict[str, Any], metric: dict[str, Any], signed: bool = False) -> str:
    """``[low, high]``, or nothing where there are too few cases for an interval."""
    if found["low"] is None:
        return ""
    return f"[{number(found['low'], metric, signed)}, {number(found['high'], metric, signed)}]"


def p_text(value: float | None) -> str:
    if value is None:
        return DASH
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def cost_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Lines of the table of costs: what each row is and what it took."""
    return [
        ["plans", *(or_dash(row["plans"]) for row in rows)],
        ["configuration", *(or_dash(row["configuration"]) for row in rows)],
        ["seeds x folds", *(f"{row['repeats']} x {len(row['folds'])}" for row in rows)],
        ["labeled / unlabeled cases", *(f"{count(row['facts']['labeled_cases'])} / "
                                        f"{count(row['facts']['unlabeled_cases'])}" for row in rows)],
        ["epochs", *(count(row["facts"]["epochs"]) for row in rows)],
        ["steps", *(count(row["facts"]["steps"]) for row in rows)],
        ["mirrored axes", *(or_dash(row["facts"]["mirror_axes"]) for row in rows)],
        ["training time", *(duration(row["facts"]["seconds"]) for row in rows)],
        ["peak memory", *(memory(row["facts"]["peak_memory_bytes"]) for row in rows)],
        ["parameters", *(parameters(row["facts"]["parameters"]) for row in rows)],
        ["device", *(or_dash(row["facts"]["device"]) for row in rows)],
    ]


def or_dash(value: Any) -> str:
    return DASH if value in (None, "") else str(value)


def count(value: float | None) -> str:
    """A number of things; a mean over folds may lie between two."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if float(value).is_integer() or value >= 100 else f"{value:,.1f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def memory(value: float | None) -> str:
    if not value:
        return DASH
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def parameters(value: float | None) -> str:
    if not value:
        return DASH
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,.0f}"


def markdown_table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; bars in cells are escaped."""
    rows = [heading, ["---"] * len(heading), *lines]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
