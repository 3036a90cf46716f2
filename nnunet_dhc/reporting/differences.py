# SPDX-License-Identifier: Apache-2.0
"""Paired differences between rows: interval, test, correction for the number of comparisons, and the claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunet_dhc.reporting.protocols import Metric, Protocol
from nnunet_dhc.reporting.score_tables import GROUP_ORDER, RowScores, case_means, of_scope, scope_columns
from nnunet_dhc.reporting.statistics import (
    Array,
    Interval,
    claim,
    class_mean_intervals,
    holm,
    wilcoxon_p,
)


def differences_from(baseline: RowScores, others: Sequence[RowScores], protocol: Protocol,
                     groups: Sequence[str]) -> list[dict[str, Any]]:
    """Each other row minus the baseline, per metric.

    p values are corrected by Holm within three families per metric: the rows as a whole, rows x frequency groups, and
    rows x structures.
    """
    results: list[dict[str, Any]] = [{"row": row.row.name, "against": baseline.row.name, "metrics": {}}
                                     for row in others]
    for metric in protocol.metrics:
        found = [_difference(row, baseline, metric, groups) for row in others]
        for family in ("overall", "groups", "structures"):
            correct([entry for scope in found for entry in scope[family].values()], metric)
        for result, scope in zip(results, found, strict=True):
            result["metrics"][metric.key] = {"overall": scope["overall"]["overall"], "groups": scope["groups"],
                                             "structures": scope["structures"]}
    return results


def correct(family: Sequence[dict[str, Any]], metric: Metric) -> None:
    """Correct the p values of differences that are read together, and decide with them what is claimed."""
    for entry, adjusted in zip(family, holm([entry["p"] for entry in family]), strict=True):
        entry["p_holm"] = adjusted
        entry["comparisons"] = sum(other["p"] is not None for other in family)
        interval = Interval(entry["mean"], entry["low"], entry["high"], entry["n"])
        entry["claim"] = claim(interval, adjusted, metric.higher_is_better)


def _difference(row: RowScores, baseline: RowScores, metric: Metric,
                groups: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Differences on the cases where both have a value, or one of them and the other is rightly empty."""
    matrix = _paired(row, baseline, metric)
    sets = scope_columns(groups, row.keys)
    intervals = class_mean_intervals(matrix, list(sets.values()))
    found = {scope: {**interval.as_json(), "p": wilcoxon_p(case_means(matrix[:, columns]), interval.mean)}
             for (scope, columns), interval in zip(sets.items(), intervals, strict=True)}
    return {"overall": {"overall": found["overall"]},
            "groups": {name: found[name] for name in GROUP_ORDER if name in found},
            "structures": {key: found[key] for key in row.keys}}


def winners(rows: Sequence[RowScores], protocol: Protocol, groups: Sequence[str],
            differences: Sequence[dict[str, Any]]) -> dict[str, dict[str, str | None]]:
    """Per metric and scope, the row whose interval against every other row excludes 0 in its favor, if there is one.

    Only such a row is set in bold, and only if its difference from the baseline is claimed after correction; for the
    baseline itself, that of each other row from it. Below six cases there is none. A row that lacks values which
    another row has, as distances of structures that it missed, is never one: its mean rests on the easier part.
    """
    claims = {entry["row"]: entry["metrics"] for entry in differences}
    result: dict[str, dict[str, str | None]] = {}
    scopes = scope_columns(groups, rows[0].keys)
    for metric in protocol.metrics:
        matrices = [row.matrix(metric.key) for row in rows]
        values = [_number_of_values(row, beside, metric) for row, beside in
                  zip(rows, _side_by_side(rows, metric), strict=True)]
        sign = 1.0 if metric.higher_is_better else -1.0
        won: dict[tuple[int, int], dict[str, bool]] = {}  # by a row against another, in every scope at once
        result[metric.key] = {}
        for scope, columns in scopes.items():
            means = [_class_mean(matrix, columns) for matrix in matrices]
            known = [index for index, mean in enumerate(means) if mean is not None]
            best = max(known, key=lambda index: sign * (means[index] or 0.0), default=None)
            result[metric.key][scope] = None
            if best is None or len(rows) < 2:
                continue
            found = [of_row[list(columns)].sum() for of_row in values]
            if found[best] < max(found) - 1e-9:
                continue
            if not _claimed_against_baseline(rows[best].row.name, claims, metric, scope):
                continue
            for other in range(len(rows)):
                if other != best and (best, other) not in won:
                    won[best, other] = _beats(sign * _paired(rows[best], rows[other], metric), scopes)
            if all(won[best, other][scope] for other in range(len(rows)) if other != best):
                result[metric.key][scope] = rows[best].row.name
    return result


def _claimed_against_baseline(name: str, claims: dict[str, dict[str, Any]], metric: Metric, scope: str) -> bool:
    """Whether the row is claimed to be better than the baseline or, being the baseline, than each other row.

    Args:
        name: Of the row.
        claims: Per row but the baseline, its differences from the baseline by metric.
        metric: The metric.
        scope: The scope.

    Returns:
        Whether it is; True for a baseline that nothing was compared with.
    """
    if name in claims:
        return bool(of_scope(claims[name][metric.key], scope)["claim"] == "better")
    return all(of_scope(of_row[metric.key], scope)["claim"] == "worse" for of_row in claims.values())


def _paired(row: RowScores, other: RowScores, metric: Metric) -> Array:
    """``row`` minus ``other``, (cases, structures)."""
    of_row, of_other = _side_by_side([row, other], metric)
    return of_row - of_other


def _side_by_side(rows: Sequence[RowScores], metric: Metric) -> list[Array]:
    """Scores of several rows, each (cases, structures), with what no score is worth where another row has one."""
    matrices = [row.matrix(metric.key) for row in rows]
    if metric.rightly_empty is None:
        return matrices
    compared = np.any([~np.isnan(matrix) for matrix in matrices], axis=0)
    return [row.matrix_beside(metric.key, compared, metric.rightly_empty) for row in rows]


def _number_of_values(row: RowScores, beside: Array, metric: Metric) -> Array:
    """Per structure, in how many cases the row has a value; a case with one in some seeds counts for that part."""
    values = ~np.isnan(beside) if metric.rightly_empty is not None else row.part_with_value(metric.key)
    number: Array = values.sum(axis=0, dtype=float)
    return number


def _class_mean(matrix: Any, columns: Sequence[int]) -> float | None:
    """Mean over classes of the means over cases, without an interval."""
    part = matrix[:, list(columns)]
    used = ~np.isnan(part).all(axis=0)
    return float(np.nanmean(part[:, used], axis=0).mean()) if used.any() else None


def _beats(difference: Array, scopes: dict[str, list[int]]) -> dict[str, bool]:
    intervals = class_mean_intervals(difference, list(scopes.values()))
    return {scope: claim(interval, 0.0, higher_is_better=True) == "better"
            for scope, interval in zip(scopes, intervals, strict=True)}
