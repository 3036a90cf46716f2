# SPDX-License-Identifier: Apache-2.0
"""Means, intervals and paired tests over cases. Cases are the unit: seeds are averaged within a case before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_CASES_FOR_INTERVAL = 4  # three cases can be drawn in ten ways only, and two often give a width of nearly 0
MIN_CASES_FOR_CLAIM = 6  # with five cases a two-sided signed-rank test can't fall below p = 0.0625
CONFIDENCE = 0.95
ALPHA = 0.05
_RESAMPLES = 4999
_SEED = 20230816


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` cases with its bootstrap interval; the bounds are None below four cases."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def as_json(self) -> dict[str, Any]:
        return vars(self)

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_intervals(columns: Sequence[Array]) -> list[Interval]:
    """Mean and interval of each column; NaN values are left out of their column.

    Columns that miss the same cases are resampled together, which is what makes 10 trainers x 15 classes quick.
    """
    results: list[Interval] = [Interval(None, None, None, 0)] * len(columns)
    groups: dict[bytes, list[int]] = {}
    for index, column in enumerate(columns):
        groups.setdefault(np.isnan(column).tobytes(), []).append(index)
    for indices in groups.values():
        present = ~np.isnan(columns[indices[0]])
        if not present.any():
            continue
        values = np.stack([columns[index][present] for index in indices])
        bounds = _bootstrap(values.shape[1], partial(_means_of, values))
        for row, index in enumerate(indices):
            results[index] = _interval(float(values[row].mean()), bounds, row, values.shape[1])
    return results


def class_mean_interval(matrix: Array, weights: Sequence[Sequence[int]]) -> list[Interval]:
    """Interval of the mean over classes of the means over cases, for each set of classes.

    Args:
        matrix: Shape (cases, classes); NaN is left out.
        weights: For each result, the columns that are averaged.
    """
    used = ~np.isnan(matrix).all(axis=1)
    matrix = matrix[used]
    if len(matrix) == 0:
        return [Interval(None, None, None, 0) for _ in weights]

    def statistic(cases: NDArray[np.int64]) -> Array:
        means = nanmean(matrix[cases], axis=-2)
        return np.stack([nanmean(means[..., list(columns)], axis=-1) for columns in weights])

    points = statistic(np.arange(len(matrix)))
    bounds = _bootstrap(len(matrix), statistic)
    sizes = [int((~np.isnan(matrix[:, list(columns)])).any(axis=1).sum()) for columns in weights]
    return [_interval(float(points[row]), bounds if size >= MIN_CASES_FOR_INTERVAL else None, row, size)
            for row, size in enumerate(sizes)]


def wilcoxon_p(differences: Array, mean: float | None) -> float | None:
    """Two-sided p of the signed-rank test on paired differences; None without a pair, 1 if all are 0.

    It is the one-sided p in the direction of ``mean``, twice: where most cases differ the other way than the mean, as
    with one structure that few cases have, the test must not confirm it.

    Args:
        differences: (cases,), NaN for no pair.
        mean: The mean difference that is to be confirmed, perhaps over classes.
    """
    from scipy import stats

    values = differences[~np.isnan(differences)]
    if len(values) == 0:
        return None
    values = values[values != 0]  # Wilcoxon's rule; with zeros SciPy approximates, however few others there are
    if len(values) == 0:
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties among more than 13: the normal approximation is used, as SciPy says
        one_sided = stats.wilcoxon(values, alternative="greater" if (mean or 0.0) > 0 else "less").pvalue
    return min(1.0, 2.0 * float(one_sided))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; None stays None and does not count as a comparison."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted


def claim(interval: Interval, p_adjusted: float | None, higher_is_better: bool) -> str:
    """``better``, ``worse``, ``too few cases`` or ``no claim``: the only place that decides it."""
    if interval.n < MIN_CASES_FOR_CLAIM:
        return "too few cases"
    if not interval.excludes_zero or p_adjusted is None or p_adjusted >= ALPHA or interval.mean is None:
        return "no claim"
    return "better" if (interval.mean > 0) == higher_is_better else "worse"


def frequency_groups(volumes: Sequence[float]) -> list[str]:
    """``rare``, ``medium`` or ``frequent`` per class, by terciles of the mean reference volume.

    A class that no reference contains (volume 0) is ``absent`` and none of these. Below three classes there is nothing
    to divide: each is ``all``.
    """
    groups = ["absent"] * len(volumes)
    present = [index for index in np.argsort(volumes, kind="stable") if volumes[index] > 0]
    names = ("rare", "medium", "frequent") if len(present) >= 3 else ("all",)
    for name, members in zip(names, np.array_split(present, len(names)), strict=True):
        for member in members:
            groups[int(member)] = name
    return groups


def mean_and_spread(values: Sequence[float | None], ddof: int = 1) -> dict[str, Any]:
    """Mean and standard deviation over seeds or folds (``ddof`` as in NumPy); no spread from a single one."""
    known = np.array([value for value in values if value is not None], dtype=float)
    return {
        "mean": float(known.mean()) if len(known) else None,
        "standard_deviation": float(known.std(ddof=ddof)) if len(known) > 1 else None,
        "n": len(known),
    }


def _interval(mean: float, bounds: tuple[Array, Array] | None, row: int, n: int) -> Interval:
    if np.isnan(mean):
        return Interval(None, None, None, n)
    if bounds is None:
        return Interval(mean, None, None, n)
    low, high = float(bounds[0][row]), float(bounds[1][row])
    return Interval(mean, None if np.isnan(low) else low, None if np.isnan(high) else high, n)


def _bootstrap(n: int, statistic: Callable[[NDArray[np.int64]], Array]) -> tuple[Array, Array] | None:
    """BCa bounds of each output of a statistic of resampled cases; percentile bounds where BCa is undefined."""
    from scipy import stats

    if n < MIN_CASES_FOR_INTERVAL:
        return None

    def of_cases(cases: NDArray[np.int64], axis: int = -1) -> Array:
        return statistic(cases)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a degenerate distribution is dealt with below
        result = stats.bootstrap((np.arange(n),), of_cases, vectorized=True, n_resamples=_RESAMPLES, batch=500,
                                 confidence_level=CONFIDENCE, method="BCa", rng=np.random.default_rng(_SEED))
        low, high = np.array(result.confidence_interval.low), np.array(result.confidence_interval.high)
        tail = (1 - CONFIDENCE) / 2
        undefined = ~(np.isfinite(low) & np.isfinite(high))
        if undefined.any():
            drawn = result.bootstrap_distribution[undefined]
            low[undefined], high[undefined] = np.nanquantile(drawn, [tail, 1 - tail], axis=-1)
    return low, high


def _means_of(values: Array, cases: NDArray[np.int64]) -> Array:
    result: Array = values[:, cases].mean(axis=-1)
    return result


def nanmean(values: Array, axis: int) -> Array:
    """NumPy's, without its warning where there is nothing: the mean is NaN then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class without a value has no mean
        result: Array = np.nanmean(values, axis=axis)
    return result
