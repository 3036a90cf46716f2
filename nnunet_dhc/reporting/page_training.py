# SPDX-License-Identifier: Apache-2.0
"""What the page shows of training: weight curves of A and B, agreement, losses, Dice, cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from typing import Any

from nnunet_dhc.reporting.charts import Series, line_chart
from nnunet_dhc.reporting.page_scores import bar_kind, short_names
from nnunet_dhc.reporting.table_cells import duration, memory, parameters

_MOST_LINES = 8
_MOST_MARKED_POINTS = 30
_ALARM_OF_A_CLASS = re.compile(r"Class '([^']+)' (.+)", re.DOTALL)
_TERM_OF_A_NETWORK = re.compile(r"_[ab]$")


def training_runs(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """One block a run: its charts, counters and alarms."""
    names = [item["name"] for item in comparison.get("structures", [])]
    # Curves of a pair say more than those of stock, whichever is better.
    subject = comparison["attribution"]["subject"] or comparison["verdict"]["row"]
    short = short_names(comparison)
    return [_run(curves, names, short[curves["row"]])
            for curves in sorted(comparison["training"], key=lambda run: run["row"] != subject)]


def agreement_chart(comparison: dict[str, Any]) -> dict[str, Any] | None:
    """Agreement of A and B over training, a line a row: the mean of its runs."""
    runs = [curves for curves in comparison["training"] if curves.get("agreement")]
    names = list(dict.fromkeys(curves["row"] for curves in runs))
    names.sort(key=lambda name: name != comparison["verdict"]["row"])
    shown = names[:_MOST_LINES]
    if not shown:
        return None
    series = _row_lines(comparison, shown, runs, "epochs", "agreement")
    return {"svg": _rows_chart("Agreement of A and B", series, ceiling=1.0),
            "legend": _legend(series), "left_out": len(names) - len(shown)}


def dice_courses(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Dice of training-time validation patches of all rows, against training steps and against time.

    One chart of the mean each, and small ones of the structures, from the smallest structure to the largest.
    """
    charts = []
    for amount, title in (("steps_done", "against training steps"), ("hours_done", "against training time in hours")):
        runs = [curves for curves in comparison["training"]
                if curves.get(amount) and curves.get("dice_mean_foreground")]
        names = list(dict.fromkeys(curves["row"] for curves in runs))[:_MOST_LINES]
        if len(names) < 2:
            continue
        scale = 1.0
        if amount == "hours_done" and max(curves[amount][-1] for curves in runs) < 2:
            title, scale = "against training time in minutes", 60.0
        series = _row_lines(comparison, names, runs, amount, "dice_mean_foreground", scale, 100.0)
        charts.append({"title": title, "legend": _legend(series),
                       "svg": _rows_chart(f"Mean Dice in percent {title}", series, start=0.0, floor=0.0),
                       "structures": _structure_courses(comparison, names, runs, amount, title, scale)})
    return charts


def _structure_courses(comparison: dict[str, Any], names: Sequence[str], runs: Sequence[dict[str, Any]], amount: str,
                       title: str, scale: float) -> list[dict[str, str]]:
    """A small chart a structure, all on one scale; none where the logs have other structures than the page."""
    structures = comparison["structures"]
    if any(len(curves.get("dice_mean") or ()) != len(structures) for curves in runs):
        return []
    charts = []
    for index in sorted(range(len(structures)), key=lambda index: structures[index]["mean_volume_ml"] or 0.0):
        own = [{**curves, "dice": curves["dice_mean"][index]} for curves in runs]
        series = _row_lines(comparison, names, own, amount, "dice", scale, 100.0)
        longest = max(at for line in series for at in line.xs or ())
        name = structures[index]["name"]
        charts.append({"name": name, "svg": line_chart(f"Dice of {name} in percent {title}", [0.0, longest], series,
                                                       width=160, height=94, floor=0.0, ceiling=100.0)})
    return charts


def _row_lines(comparison: dict[str, Any], names: Sequence[str], runs: Sequence[dict[str, Any]], x: str, y: str,
               x_scale: float = 1.0, y_scale: float = 1.0) -> list[Series]:
    """A line a row, with a point an epoch: the mean of the row's runs. Colored as elsewhere on the page."""
    series, others, short = [], count(1), short_names(comparison)
    for name in names:
        own = [curves for curves in runs if curves["row"] == name]
        epochs = sorted({epoch for curves in own for epoch in curves["epochs"]})

        def means(key: str, scale: float, own: Sequence[dict[str, Any]] = own,
                  epochs: Sequence[int] = epochs) -> list[float | None]:
            lines = [_at(curves["epochs"], curves[key], epochs) for curves in own]
            known = [_known_mean(values) for values in zip(*lines, strict=True)]
            return [None if value is None else scale * value for value in known]

        kind = bar_kind(name, comparison)
        points = [(at, value) for at, value in zip(means(x, x_scale), means(y, y_scale), strict=True) if at is not None]
        series.append(Series(short[name], [value for _, value in points],
                             kind if kind != "other" else f"c{next(others) % _MOST_LINES}", [at for at, _ in points]))
    return series


def _rows_chart(title: str, series: Sequence[Series], start: float | None = None, **limits: float) -> str:
    known = [at for line in series for at in line.xs or ()]
    marked = max(len(line.values) for line in series) <= _MOST_MARKED_POINTS
    return line_chart(title, [min(known) if start is None else start, max(known)], series, width=520, height=230,
                      points=marked, **limits)


def _legend(series: Sequence[Series]) -> list[dict[str, str]]:
    return [{"label": line.label, "style": line.style} for line in series]


def costs(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Time, memory and parameters of each row, with the ratio to the baseline."""
    result = []
    rows, short = comparison["rows"], short_names(comparison)
    baseline = next((row for row in rows if row["name"] == comparison.get("baseline")), rows[0])
    for key, label, text in (("seconds", "training time", duration), ("peak_memory_bytes", "peak memory", memory),
                             ("parameters", "parameters", parameters)):
        known = [row["facts"].get(key) for row in rows if row["facts"].get(key)]
        if not known:
            continue
        reference = baseline["facts"].get(key)
        bars = []
        for row in rows:
            value = row["facts"].get(key)
            ratio = f"× {value / reference:.2f}" if value and reference and row is not baseline else ""  # noqa: RUF001
            bars.append({"name": short[row["name"]], "kind": bar_kind(row["name"], comparison),
                         "value": text(value), "ratio": ratio,
                         "width": round(100 * value / max(known), 1) if value else None})
        result.append({"label": label, "bars": bars})
    return result


def _run(curves: dict[str, Any], structures: Sequence[str], row: str) -> dict[str, Any]:
    epochs = curves["epochs"]
    charts = []

    def add(title: str, series: list[Series], **limits: float) -> None:
        series = [line for line in series if any(value is not None for value in line.values)]
        svg = line_chart(title, epochs, series, **limits)  # type: ignore[arg-type]
        if svg:
            charts.append({"title": title, "svg": svg,
                           "legend": _legend(series)})

    dice = [Series(label, _percent(curves.get(f"dice_{key}_foreground", [])), style)
            for key, label, style in (("a", "A", "a"), ("b", "B", "b"), ("mean", "both together", "mean"))]
    if not curves.get("dice_a_foreground"):
        dice = [Series("Dice", _percent(curves.get("dice_mean_foreground", [])), "a")]
    add("Dice on training-time validation patches, %", dice, floor=0.0, ceiling=100.0)
    add("Agreement of A and B", [Series("agreement", curves.get("agreement", []), "mean")], ceiling=1.0)
    add("Losses", [Series(_TERM_OF_A_NETWORK.sub(_with_capital, term).replace("_", " "), values, f"c{index}")
                   for index, (term, values) in enumerate(sorted(curves.get("losses", {}).items()))])
    add("Weight of the unsupervised loss (lambda)", [Series("lambda", curves.get("lambda", []), "mean")], floor=0.0)
    add("Share of the unsupervised gradient",
        [Series("share", curves.get("unsupervised_gradient_share", []), "mean")], floor=0.0)
    add("Difference of the logits of A and B, relative",
        [Series("gap", curves.get("relative_logit_gap", []), "mean")], floor=0.0)
    return {"title": _title(curves, row), "charts": charts, "epochs": epochs[-1] + 1,
            "weights": _per_class(curves, "class_weights", structures),
            "shares": _per_class(curves, "pseudo_label_share", structures),
            "counters": [{"label": key.replace("_", " "), "value": value}
                         for key, value in curves["counters"].items()],
            "alarms": _alarms(curves["alarms"]),
            "seconds": [{"label": part, "value": f"{value:.1f} s"}
                        for part, value in curves["seconds_per_epoch"].items()]}


def _per_class(curves: dict[str, Any], key: str, structures: Sequence[str]) -> list[dict[str, str]]:
    """A small chart a class, with A and B in it, all on one scale."""
    of_a, of_b = curves.get(f"{key}_a") or [], curves.get(f"{key}_b") or []
    count = max(len(of_a), len(of_b))
    names = curves.get("class_names") or []
    if len(names) != count:
        names = ["background", *structures] if count == len(structures) + 1 else [f"class {k}" for k in range(count)]
    top = max((value for line in (*of_a, *of_b) for value in line if value is not None), default=1.0)
    charts = []
    for index in range(count):
        series = [Series(label, lines[index], style) for label, lines, style in (("A", of_a, "a"), ("B", of_b, "b"))
                  if index < len(lines)]
        own = max((value for line in series for value in line.values if value is not None), default=0.0)
        ceiling = top if key == "class_weights" else max(own, 1e-6)
        charts.append({"name": names[index], "svg": line_chart(
            f"{key.replace('_', ' ')}: {names[index]}", curves["epochs"], series, width=160, height=94, floor=0.0,
            ceiling=ceiling)})
    return charts


def _alarms(alarms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Alarms that say the same of several classes in one epoch are one."""
    merged: dict[tuple[Any, str], dict[str, Any]] = {}
    for alarm in alarms:
        found = _ALARM_OF_A_CLASS.fullmatch(alarm["text"])
        what = found[2] if found else alarm["text"]
        entry = merged.setdefault((alarm["epoch"], what), {"epoch": alarm["epoch"], "classes": [],
                                                           "text": what[:1].upper() + what[1:] if found else what})
        if found:
            entry["classes"].append(found[1].replace("_", " "))
    return list(merged.values())


def _percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]


def _with_capital(found: re.Match[str]) -> str:
    return found[0].upper()


def _at(own: Sequence[int], values: Sequence[float | None], epochs: Sequence[int]) -> list[float | None]:
    """Values at other epochs, on straight lines between neighbors; None outside and beside a gap."""
    result: list[float | None] = []
    right = 0
    for epoch in epochs:
        while right < len(own) - 1 and own[right] < epoch:
            right += 1
        left = right if own[right] <= epoch else right - 1
        before, after = (values[left], values[right]) if left >= 0 and epoch <= own[-1] else (None, None)
        if before is None or after is None:
            result.append(None)
        elif left == right:
            result.append(before)
        else:
            result.append(before + (after - before) * (epoch - own[left]) / (own[right] - own[left]))
    return result


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _title(curves: dict[str, Any], row: str) -> str:
    repeat = f", seed {curves['repeat'] + 1}" if curves["repeat"] else ""
    return f"{row}, fold {curves['fold']}{repeat}"
