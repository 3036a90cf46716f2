# SPDX-License-Identifier: Apache-2.0
"""What the page shows of training: weight curves of A and B, agreement, losses, Dice, cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_dhc.reporting.charts import Series, line_chart
from nnunet_dhc.reporting.page_scores import short_name
from nnunet_dhc.reporting.table_cells import duration, memory, parameters

_MOST_LINES = 8
_COURSE_POINTS = 161


def training_runs(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """One block a run: its charts, counters and alarms."""
    names = [item["name"] for item in comparison.get("structures", [])]
    subject = comparison["verdict"]["row"]
    return [_run(curves, names) for curves in sorted(comparison["training"], key=lambda run: run["row"] != subject)]


def agreement_chart(comparison: dict[str, Any]) -> dict[str, Any] | None:
    """Agreement of A and B over training, a line a row: the mean of its runs."""
    runs = [curves for curves in comparison["training"] if curves.get("agreement")]
    names = list(dict.fromkeys(curves["row"] for curves in runs))
    names.sort(key=lambda name: name != comparison["verdict"]["row"])
    shown = names[:_MOST_LINES]
    if not shown:
        return None
    epochs = max((curves["epochs"] for curves in runs), key=lambda known: int(known[-1]))
    series = []
    for index, name in enumerate(shown):
        lines = [_reached(curves["epochs"], curves["agreement"], epochs) for curves in runs if curves["row"] == name]
        series.append(Series(short_name(name), [_known_mean(values) for values in zip(*lines, strict=True)],
                             f"c{index}"))
    return {"svg": line_chart("Agreement of A and B", epochs, series, width=640, height=220, ceiling=1.0),
            "legend": [{"label": line.label, "style": line.style} for line in series],
            "left_out": len(names) - len(shown)}


def dice_courses(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean Dice of training-time validation patches of all rows, against training steps and against time."""
    charts = []
    for amount, title in (("steps_done", "against training steps"), ("hours_done", "against training time in hours")):
        runs = [curves for curves in comparison["training"]
                if curves.get(amount) and curves.get("dice_mean_foreground")]
        names = list(dict.fromkeys(curves["row"] for curves in runs))[:_MOST_LINES]
        if len(names) < 2:
            continue
        last = max(curves[amount][-1] for curves in runs)
        grid = [last * index / (_COURSE_POINTS - 1) for index in range(_COURSE_POINTS)]
        series = []
        for index, name in enumerate(names):
            lines = [_reached(curves[amount], curves["dice_mean_foreground"], grid)
                     for curves in runs if curves["row"] == name]
            series.append(Series(short_name(name), [_known_mean(values) for values in zip(*lines, strict=True)],
                                 f"c{index}"))
        charts.append({"title": title, "legend": [{"label": line.label, "style": line.style} for line in series],
                       "svg": line_chart(f"Mean Dice {title}", [float(f"{x:.3g}") for x in grid], series, width=640,
                                         height=220, floor=0.0)})
    return charts


def costs(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Time, memory and parameters of each row, with the ratio to the baseline."""
    result = []
    rows = comparison["rows"]
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
            bars.append({"name": short_name(row["name"]), "value": text(value), "ratio": ratio,
                         "width": round(100 * value / max(known), 1) if value else None})
        result.append({"label": label, "bars": bars})
    return result


def _run(curves: dict[str, Any], structures: Sequence[str]) -> dict[str, Any]:
    epochs = curves["epochs"]
    charts = []

    def add(title: str, series: list[Series], **limits: float) -> None:
        series = [line for line in series if any(value is not None for value in line.values)]
        svg = line_chart(title, epochs, series, **limits)  # type: ignore[arg-type]
        if svg:
            charts.append({"title": title, "svg": svg,
                           "legend": [{"label": line.label, "style": line.style} for line in series]})

    dice = [Series(label, curves.get(f"dice_{key}_foreground", []), style)
            for key, label, style in (("a", "A", "a"), ("b", "B", "b"), ("mean", "mean of both", "mean"))]
    if not curves.get("dice_a_foreground"):
        dice = [Series("Dice", curves.get("dice_mean_foreground", []), "a")]
    add("Dice on training-time validation patches", dice, floor=0.0, ceiling=1.0)
    add("Agreement of A and B", [Series("agreement", curves.get("agreement", []), "mean")], ceiling=1.0)
    add("Losses", [Series(term.replace("_", " "), values, f"c{index}")
                   for index, (term, values) in enumerate(sorted(curves.get("losses", {}).items()))])
    add("Weight of the unsupervised loss (lambda)", [Series("lambda", curves.get("lambda", []), "mean")], floor=0.0)
    add("Share of the unsupervised gradient",
        [Series("share", curves.get("unsupervised_gradient_share", []), "mean")], floor=0.0)
    add("Difference of the logits of A and B, relative",
        [Series("gap", curves.get("relative_logit_gap", []), "mean")], floor=0.0)
    return {"title": _title(curves), "charts": charts, "epochs": epochs[-1] + 1,
            "weights": _per_class(curves, "class_weights", structures),
            "shares": _per_class(curves, "pseudo_label_share", structures),
            "counters": [{"label": key.replace("_", " "), "value": value}
                         for key, value in curves["counters"].items()],
            "alarms": curves["alarms"],
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


def _reached(own: Sequence[float], values: Sequence[float | None], grid: Sequence[float]) -> list[float | None]:
    """The last value that a run had at each point of a grid; None before its first and after its end."""
    result: list[float | None] = []
    position = -1
    for point in grid:
        while position + 1 < len(own) and own[position + 1] <= point:
            position += 1
        result.append(values[position] if position >= 0 and point <= own[-1] else None)
    return result


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _title(curves: dict[str, Any]) -> str:
    repeat = f", seed {curves['repeat'] + 1}" if curves["repeat"] else ""
    return f"{short_name(curves['row'])}, fold {curves['fold']}{repeat}"
