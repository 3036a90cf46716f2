# SPDX-License-Identifier: Apache-2.0
"""What the page shows of scores: the summary table, class cards, the difference matrix and the case dots."""

from __future__ import annotations

import re
from typing import Any

from nnunet_dhc.reporting.table_cells import (
    cases_text,
    difference_of,
    duration,
    interval_cell,
    number,
    p_text,
    scopes,
    score_of,
    scored_cell,
)

_MARKS = {"better": "▲", "worse": "▼"}
_GOLDEN = 0.618034
_EPOCHS = re.compile(r"_(\d+)epochs?\b")


def short_name(name: str) -> str:
    """A row's name without the prefix that all trainers share, and with a short number of epochs."""
    name = _EPOCHS.sub(r" \1ep", name)
    short = name.removeprefix("nnUNetTrainer")
    return short if short[:1].isalpha() else name


def short_names(comparison: dict[str, Any]) -> dict[str, str]:
    """How each row is called where there is little space; rows whose short names would be the same keep their own."""
    short = {row["name"]: short_name(row["name"]) for row in comparison["rows"]}
    found = list(short.values())
    return {name: text if found.count(text) == 1 else name for name, text in short.items()}


def size_text(volume_ml: float) -> str:
    """A volume in three digits."""
    return f"{volume_ml:,.0f}" if volume_ml >= 100 else f"{volume_ml:.3g}"


def tiles(comparison: dict[str, Any]) -> list[dict[str, str]]:
    """Four numbers beside the verdict."""
    judged = comparison["verdict"]
    entry = next((item for item in comparison["differences"] if item["row"] == judged["row"]), None)
    if entry is None:
        return []
    rows = {row["name"]: row for row in comparison["rows"]}
    row, against = rows[entry["row"]], rows[entry["against"]]
    result = []
    metric = comparison["protocol"]["metrics"][0]
    for scope, label in (("overall", f"mean {metric['label']}"), ("rare", "rare structures")):
        if scope == "overall" or scope in entry["metrics"][metric["key"]]["groups"]:
            found = difference_of(entry, metric, scope)
            result.append({"label": f"{label}, {metric['unit_of_difference']}",
                           "value": number(found["mean"], metric, signed=True),
                           "note": interval_cell(found, metric, signed=True)})
    result.append({"label": "missed structures", "note": "predicted empty, reference not",
                   "value": f"{sum(against['missed'].values()):g} → {sum(row['missed'].values()):g}"})
    times = row["facts"]["seconds"], against["facts"]["seconds"]
    if all(times):
        result.append({"label": "training time", "value": f"× {times[0] / times[1]:.1f}",  # noqa: RUF001
                       "note": f"{duration(times[0])} against {duration(times[1])}"})
    return result


def summary_table(comparison: dict[str, Any]) -> dict[str, Any]:
    """One line a row: means with intervals, groups, what is missed."""
    groups = [scope for scope in scopes(comparison) if scope["kind"] == "group"]
    primary = comparison["protocol"]["metrics"][0]
    heading = [f"{metric['label']}, {metric['unit']}" for metric in comparison["protocol"]["metrics"]]
    lines = []
    for row in comparison["rows"]:
        cells = []
        for metric in comparison["protocol"]["metrics"]:
            found = score_of(row, metric, "overall")
            partly = not metric["higher_is_better"] and has_gaps(comparison, metric)
            cells.append({"value": number(found["mean"], metric), "note": interval_cell(found, metric),
                          "more": scored_cell(comparison, row, metric) + " scored" if partly else "",
                          "best": comparison["winners"][metric["key"]].get("overall") == row["name"]})
        for group in groups:
            mean = score_of(row, primary, group["key"])["mean"]
            cells.append({"value": number(mean, primary), "note": "", "more": "",
                          "best": comparison["winners"][primary["key"]].get(group["key"]) == row["name"]})
        for flag in ("missed", "spurious"):
            cells.append({"value": f"{sum(row[flag].values()):g}", "note": "", "more": "", "best": False})
        lines.append({"row": row, "cells": cells, "spread": _spread(row, primary)})
    return {"heading": [*heading, *(f"{primary['label']} {group['label']}" for group in groups), "missed", "spurious"],
            "lines": lines}


def has_gaps(comparison: dict[str, Any], metric: dict[str, Any]) -> bool:
    """Whether a row has structures without a value: its mean then rests on fewer than that of the first metric."""
    first = comparison["protocol"]["metrics"][0]["key"]
    return any(row["scores"][metric["key"]]["scored"] < row["scores"][first]["scored"] for row in comparison["rows"])


def class_cards(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Per metric, one card a structure with a bar a row, rare structures first."""
    result = []
    short = short_names(comparison)
    for metric in comparison["protocol"]["metrics"]:
        cards = []
        for scope in _ordered(comparison):
            found = [score_of(row, metric, scope["key"]) for row in comparison["rows"]]
            top = 100.0 if metric["higher_is_better"] else max(
                [value * metric["scale"] for item in found for value in (item["mean"], item["high"])
                 if value is not None], default=1.0) or 1.0
            bars = [{"name": short[row["name"]], **_bar(row, item, metric, top, comparison, scope["key"])}
                    for row, item in zip(comparison["rows"], found, strict=True)]
            cards.append({**scope, "bars": bars, "top": f"{top:.3g}", "size": size_text(scope["volume"])})
        result.append({"metric": metric, "cards": cards})
    return result


def difference_matrix(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Per metric, structures down and rows across: difference from the baseline, colored where it is claimed."""
    result = []
    for metric in comparison["protocol"]["metrics"]:
        lines = []
        heads = [scope for scope in scopes(comparison) if scope["kind"] != "structure"]
        for scope in [*heads, *_ordered(comparison)]:
            cells = [difference_of(entry, metric, scope["key"]) for entry in comparison["differences"]]
            lines.append({**scope, "cells": [{
                "text": number(found["mean"], metric, signed=True), "mark": _MARKS.get(found["claim"], ""),
                "claim": found["claim"].replace(" ", "-"),
                "title": f"{interval_cell(found, metric, signed=True)}, n = {found['n']}, "
                         f"p (Holm) = {p_text(found['p_holm'])}, {found['claim']}"} for found in cells]})
        result.append({"metric": metric, "lines": lines})
    return result


def case_dots(comparison: dict[str, Any]) -> dict[str, Any]:
    """Strips of dots for the first metric's case means; the script moves them for other choices."""
    metric = comparison["protocol"]["metrics"][0]
    strips = []
    for row in comparison["rows"]:
        dots = []
        for index, case in enumerate(comparison["cases"]):
            value = row["per_case"][case]["mean"][metric["key"]]
            dots.append({"case": case, "index": index, "left": None if value is None else value * metric["scale"],
                         "text": number(value, metric), "top": 12 + 76 * ((index * _GOLDEN) % 1)})
        strips.append({"row": row, "dots": dots})
    return {"metric": metric, "strips": strips}


def page_data(comparison: dict[str, Any]) -> dict[str, Any]:
    """What the script needs: scores by metric, row, case and structure, rounded."""
    metrics = comparison["protocol"]["metrics"]
    keys = [item["key"] for item in comparison["structures"]]
    shown = {case: f"overlay-{index}" for index, case in enumerate(item["case"] for item in comparison["overlays"])}
    return {
        "cases": comparison["cases"],
        "rows": list(short_names(comparison).values()),
        "structures": [item["name"] for item in comparison["structures"]],
        "volumes": [[_rounded(comparison["reference_volume_ml"][case].get(key)) for key in keys]
                    for case in comparison["cases"]],
        "metrics": [{"label": metric["label"], "unit": metric["unit"], "digits": metric["digits"],
                     "up": metric["higher_is_better"], "ofValue": metric["unit_of_value"],
                     "ofDifference": metric["unit_of_difference"]} for metric in metrics],
        "baseline": [row["name"] for row in comparison["rows"]].index(comparison["baseline"]),
        "mean": [[[_scaled(row["per_case"][case]["mean"][metric["key"]], metric) for case in comparison["cases"]]
                  for row in comparison["rows"]] for metric in metrics],
        "scores": [[[[_scaled(row["per_case"][case]["structures"][key][metric["key"]], metric) for key in keys]
                     for case in comparison["cases"]] for row in comparison["rows"]] for metric in metrics],
        "pictures": shown,
    }


def _ordered(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Structures by volume, the smallest first."""
    return sorted((scope for scope in scopes(comparison) if scope["kind"] == "structure"),
                  key=lambda scope: scope["volume"])


def _bar(row: dict[str, Any], found: dict[str, Any], metric: dict[str, Any], top: float, comparison: dict[str, Any],
         scope: str) -> dict[str, Any]:
    def percent(value: float | None) -> float | None:
        return None if value is None else round(max(0.0, min(100.0, 100.0 * value * metric["scale"] / top)), 2)

    entry = next((item for item in comparison["differences"] if item["row"] == row["name"]), None)
    claimed = difference_of(entry, metric, scope)["claim"] if entry else ""
    interval = interval_cell(found, metric)
    return {
        "kind": bar_kind(row["name"], comparison), "mark": _MARKS.get(claimed, ""), "claim": claimed,
        "value": number(found["mean"], metric), "width": percent(found["mean"]),
        "low": percent(found["low"]), "high": percent(found["high"]),
        "best": comparison["winners"][metric["key"]].get(scope) == row["name"],
        "title": f"{row['name']}: {number(found['mean'], metric)} {interval} {metric['unit']}, "
                 f"{cases_text(found['n'])}",
    }


def bar_kind(name: str, comparison: dict[str, Any]) -> str:
    """``baseline``, ``subject`` (the row of the verdict) or ``other``: all the color says."""
    if name == comparison["baseline"] and len(comparison["rows"]) > 1:
        return "baseline"
    return "subject" if name == comparison["verdict"]["row"] else "other"


def _spread(row: dict[str, Any], metric: dict[str, Any]) -> str:
    """Spread over seeds and folds, where there are several."""
    parts = []
    for key, word in (("over_repeats", "seeds"), ("over_folds", "folds")):
        found = row["scores"][metric["key"]][key]
        if found["standard_deviation"] is not None:
            parts.append(f"± {number(found['standard_deviation'], metric)} over {found['n']} {word}")
    return ", ".join(parts)


def _scaled(value: float | None, metric: dict[str, Any]) -> float | None:
    return None if value is None else round(value * metric["scale"], metric["digits"] + 1)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
