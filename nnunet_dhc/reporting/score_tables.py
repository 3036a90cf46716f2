# SPDX-License-Identifier: Apache-2.0
"""Scores as matrices of cases and structures, and what is said about one row alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_dhc.reporting.collection import Row, Run
from nnunet_dhc.reporting.metrics import Scores
from nnunet_dhc.reporting.protocols import Protocol
from nnunet_dhc.reporting.statistics import (
    class_mean_intervals,
    frequency_groups,
    mean_and_spread,
    nanmean,
)

Array = NDArray[np.float64]
RunScores = list[tuple[Run, dict[str, Scores]]]
GROUP_ORDER = ("rare", "medium", "frequent")


class RowScores:
    """Scores of one row; seeds and folds that scored the same case are averaged within the case.

    Args:
        row: The row.
        scored: Each run with its scores by case.
        cases: Cases in the order of the matrices.
        keys: Structures in the order of the matrices.
    """

    def __init__(self, row: Row, scored: RunScores, cases: Sequence[str], keys: Sequence[str]) -> None:
        self.row, self.scored, self.cases, self.keys = row, scored, list(cases), list(keys)
        self._of_all_runs: dict[str, Array] = {}

    def matrix(self, name: str, runs: RunScores | None = None) -> Array:
        """Shape (cases, structures); NaN where there is no value."""
        return nanmean(self._values(name) if runs is None else self._of_runs(name, runs), axis=0)

    def matrix_beside(self, name: str, compared: NDArray[np.bool_], worth: float) -> Array:
        """``matrix`` with a value wherever ``compared`` asks for one.

        Args:
            name: Score.
            compared: (cases, structures), where another row has a value, or this one in another run.
            worth: What no value is worth there, for each run that scored the case.
        """
        values = self._values(name).copy()
        scored = np.array([[case in scores for case in self.cases] for _, scores in self.scored])
        values[np.isnan(values) & compared & scored[:, :, np.newaxis]] = worth
        return nanmean(values, axis=0)

    def part_with_value(self, name: str) -> Array:
        """Shape (cases, structures): part of the runs that scored a case in which the structure has a value, 0 to 1."""
        runs_with_case = np.array([[case in scores for case in self.cases] for _, scores in self.scored]).sum(axis=0)
        with_value = (~np.isnan(self._values(name))).sum(axis=0)
        result: Array = with_value / np.maximum(runs_with_case, 1)[:, np.newaxis]
        return result

    def _values(self, name: str) -> Array:
        if name not in self._of_all_runs:
            self._of_all_runs[name] = self._of_runs(name, self.scored)
        return self._of_all_runs[name]

    def _of_runs(self, name: str, runs: RunScores) -> Array:
        """Shape (runs, cases, structures)."""
        values = np.full((len(runs), len(self.cases), len(self.keys)), np.nan)
        for layer, (_, scores) in enumerate(runs):
            for line, case in enumerate(self.cases):
                if case in scores:
                    for column, key in enumerate(self.keys):
                        value = scores[case][key].get(name)
                        values[layer, line, column] = np.nan if value is None else float(value)
        return values

    def count(self, name: str) -> dict[str, float]:
        """In how many cases a flag is set, per structure; a case that was scored more than once counts its mean."""
        return dict(zip(self.keys, np.nansum(self.matrix(name), axis=0).tolist(), strict=True))

    def summary(self, protocol: Protocol, groups: Sequence[str]) -> dict[str, Any]:
        """Means with intervals per metric: over everything, per group and per structure."""
        result = {}
        sets = scope_columns(groups, self.keys)
        for metric in protocol.metrics:
            matrix = self.matrix(metric.key)
            found = dict(zip(sets, (interval.as_json() for interval in class_mean_intervals(
                matrix, list(sets.values()))), strict=True))
            result[metric.key] = {
                "overall": found["overall"],
                "groups": {name: found[name] for name in GROUP_ORDER if name in found},
                "structures": {key: found[key] for key in self.keys},
                "scored": round(float(self.part_with_value(metric.key).sum()), 2),
                "over_repeats": mean_and_spread([self._class_mean(metric.key, repeat=r) for r in self.row.repeats],
                                                protocol.spread_ddof),
                "over_folds": mean_and_spread([self._class_mean(metric.key, fold=f) for f in self.row.folds],
                                              protocol.spread_ddof),
            }
        return result

    def per_case(self, protocol: Protocol) -> dict[str, Any]:
        """Averaged scores of each case, and their mean over structures."""
        names = [metric.key for metric in protocol.metrics] + ["volume_prediction_ml", "missed", "spurious"]
        matrices = {name: self.matrix(name) for name in names}
        means = {metric.key: case_means(matrices[metric.key]) for metric in protocol.metrics}
        return {
            case: {
                "mean": {name: or_none(values[line]) for name, values in means.items()},
                "structures": {key: {name: or_none(matrix[line, column]) for name, matrix in matrices.items()}
                               for column, key in enumerate(self.keys)},
            }
            for line, case in enumerate(self.cases)
        }

    def _class_mean(self, name: str, repeat: int | None = None, fold: str | None = None) -> float | None:
        runs = [(run, scores) for run, scores in self.scored
                if repeat in (None, run.repeat) and fold in (None, run.fold)]
        return or_none(float(nanmean(nanmean(self.matrix(name, runs), axis=0), axis=0)))


def scope_columns(groups: Sequence[str], keys: Sequence[str]) -> dict[str, list[int]]:
    """Columns of everything, of each frequency group that has members, and of each structure."""
    sets = {"overall": list(range(len(groups)))}
    for name in GROUP_ORDER:
        members = [column for column, group in enumerate(groups) if group == name]
        if members:
            sets[name] = members
    return sets | {key: [column] for column, key in enumerate(keys)}


def of_scope(found: dict[str, Any], scope: str) -> dict[str, Any]:
    """What was found overall, in a frequency group or in a structure."""
    result: dict[str, Any] = (found["overall"] if scope == "overall"
                              else found["groups"].get(scope) or found["structures"][scope])
    return result


def case_means(matrix: Array) -> Array:
    """Mean over structures of each case."""
    return nanmean(matrix, axis=1)


def describe_structures(names: Sequence[tuple[str, str]], volumes: Array) -> list[dict[str, Any]]:
    """Key, name, mean reference volume where present, number of cases with it, and frequency group.

    Args:
        names: (key, name) of each structure.
        volumes: Reference volumes, shape (cases, structures), ml.
    """
    present = volumes > 0
    sizes = [float(volumes[present[:, column], column].mean()) if present[:, column].any() else 0.0
             for column in range(volumes.shape[1])]
    groups = frequency_groups(sizes)
    return [{"key": key, "name": name.replace("_", " "), "group": groups[column], "mean_volume_ml": sizes[column],
             "cases_present": int(present[:, column].sum())} for column, (key, name) in enumerate(names)]


def or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
