# SPDX-License-Identifier: Apache-2.0
"""Curves over training for the page: thinned to what a screen can show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from nnunet_dhc.reporting.run_files import RunRecord

_MOST_POINTS = 100
_SCALARS = ("lambda", "agreement", "relative_logit_gap", "unsupervised_gradient_share", "learning_rate")
_VECTORS = ("class_weights_a", "class_weights_b", "pseudo_label_share_a", "pseudo_label_share_b")
_DICE = ("dice_a", "dice_b", "dice_mean")
_COUNTERS = ("skipped_steps", "amp_overflow_steps", "empty_cross_entropies")


def training_curves(record: RunRecord, name: str, fold: str, repeat: int) -> dict[str, Any] | None:
    """Series by epoch of one run; None where no log was left."""
    lines = record.epochs
    if not lines:
        return None
    kept = _thinned(lines)
    curves: dict[str, Any] = {
        "row": name, "fold": fold, "repeat": repeat,
        "epochs": [line.get("epoch", index) for index, line in enumerate(kept)],
        "class_names": _class_names(record),
    }
    curves |= _amounts(record, lines, curves["epochs"])
    for key in _SCALARS:
        _keep(curves, key, [_float(line.get(key)) for line in kept])
    for key in _VECTORS:
        _keep(curves, key, _columns([line.get(key) for line in kept]))
    for key in _DICE:
        values = [line.get(key) for line in kept]
        _keep(curves, f"{key}_foreground", [_mean(value) for value in values])
        _keep(curves, key, _columns(values))
    terms = sorted({term for line in kept for term in (line.get("losses") or {})})
    losses = {term: [_float((line.get("losses") or {}).get(term)) for line in kept] for term in terms}
    if losses:
        curves["losses"] = losses
    curves["counters"] = {key: total for key in _COUNTERS
                          if (total := sum(int(line.get(key) or 0) for line in lines)) or key in lines[-1]}
    curves["alarms"] = [{"epoch": line.get("epoch"), "text": str(text)}
                        for line in lines for text in line.get("alarms") or []][-20:]
    curves["seconds_per_epoch"] = _mean_seconds(lines)
    return curves


def _amounts(record: RunRecord, lines: Sequence[dict[str, Any]], epochs: Sequence[int]) -> dict[str, list[Any]]:
    """Training steps and hours at the end of the kept epochs, where the logs tell them."""
    amounts: dict[str, list[Any]] = {}
    iterations = record.facts()["iterations_per_epoch"]
    if iterations:
        amounts["steps_done"] = [(epoch + 1) * iterations for epoch in epochs]
    seconds = {line.get("epoch", index): (line.get("seconds") or {}).get("epoch") for index, line in enumerate(lines)}
    known = [float(value) for value in seconds.values() if isinstance(value, int | float)]
    if len(known) == len(seconds):
        hours = dict(zip(seconds, accumulate(value / 3600 for value in known), strict=True))
        amounts["hours_done"] = [_float(hours[epoch]) for epoch in epochs]
    return amounts


def _thinned(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every n-th line and the last one."""
    step = -(-len(lines) // _MOST_POINTS)
    return [*lines[:-1:step], lines[-1]]


def _keep(curves: dict[str, Any], key: str, values: list[Any]) -> None:
    if any(value is not None for value in values):
        curves[key] = values


def _columns(values: Sequence[Any]) -> list[Any]:
    """One series per class from one list per epoch."""
    width = max((len(value) for value in values if isinstance(value, list)), default=0)
    return [[_float(value[column]) if isinstance(value, list) and column < len(value) else None for value in values]
            for column in range(width)]


def _class_names(record: RunRecord) -> list[str] | None:
    names = record.manifest.get("class_names")
    if isinstance(names, dict):
        names = list(names.values())
    return [str(name).replace("_", " ") for name in names] if isinstance(names, list) else None


def _mean(value: Any) -> float | None:
    known = [float(item) for item in value if item is not None] if isinstance(value, list) else []
    return sum(known) / len(known) if known else None


def _mean_seconds(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    totals: dict[str, list[float]] = {}
    for line in lines:
        seconds = line.get("seconds")
        for part, value in (seconds.items() if isinstance(seconds, dict) else ()):
            if isinstance(value, int | float):
                totals.setdefault(part, []).append(float(value))
    return {part: sum(values) / len(values) for part, values in totals.items()}


def _float(value: Any) -> float | None:
    return float(f"{value:.5g}") if isinstance(value, int | float) else None
