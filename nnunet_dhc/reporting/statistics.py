# SPDX-License-Identifier: Apache-2.0
"""Means, intervals and paired tests over cases. Cases are the unit: seeds are averaged within a case before."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_CASES_FOR_INTERVAL = 4  # three cases can be drawn in ten ways only, and two often give a width of nearly 0
MIN_CASES_PER_STRUCTURE = 2  # with one, every draw that counts has the same mean of the structure
MIN_CASES_FOR_CLAIM = 6  # with five cases p of a signed-rank test can't fall below 2 / 2^5 = 0.0625
CONFIDENCE = 0.95
ALPHA = 0.05
_RESAMPLES = 4999
_MIN_DEFINED_DRAWS = 0.5  # as a part of all; the others lack a structure, and the fewer are left, the more are alike
_SEED = 20230816


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` cases with its bootstrap interval; the bounds are None where there are too few cases."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def as_json(self) -> dict[str, Any]:
        return vars(self)

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def class_mean_intervals(matrix: Array, sets: Sequence[Sequence[int]]) -> list[Interval]:
    """Interval of the mean over classes of the means over cases, for each set of classes.

    The cases of a set are those with a value in one of its classes. A draw that has no case of a class counts nowhere:
    its mean would be that of the other classes. There is no interval where most draws are such ones, or where a class
    has a value in one case only. Sets with the same cases are resampled together, which is what makes 10 trainers x 15
    classes quick.

    Args:
        matrix: Shape (cases, classes); NaN is left out.
        sets: For each result, the columns that are averaged.

    Returns:
        An interval per set.
    """
    results: list[Interval] = [Interval(None, None, None, 0)] * len(sets)
    present = ~np.isnan(matrix)
    groups: dict[bytes, list[int]] = {}
    for index, columns in enumerate(sets):
        groups.setdefault(present[:, list(columns)].any(axis=1).tobytes(), []).append(index)
    for indices in groups.values():
        used = present[:, list(sets[indices[0]])].any(axis=1)
        n = int(used.sum())
        if n == 0:
            continue
        known = [[column for column in sets[index] if present[used, column].any()] for index in indices]
        means = nanmean(matrix[used], axis=0)
        bounds = _bootstrap(n, partial(_means_of_sets, np.where(present, matrix, 0.0)[used],
                                       present[used].astype(float), known))
        for row, index in enumerate(indices):
            enough = bool((present[:, known[row]].sum(axis=0) >= MIN_CASES_PER_STRUCTURE).all())
            results[index] = _interval(float(means[known[row]].mean()), bounds if enough else None, row, n)
    return results


def wilcoxon_p(differences: Array, mean: float | None) -> float | None:
    """p of the signed-rank test on paired differences; None without a pair, 1 if all are 0.

    It is twice the one-sided p in the direction of ``mean``, at most 1: where most cases differ the other way than the
    mean, as with one structure that few cases have, the test must not confirm it.

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


def cases_for_claim(comparisons: int) -> int:
    """How many cases a claim needs, all of which must point the same way: 2 / 2^n * comparisons < 0.05."""
    return math.floor(math.log2(2 * max(comparisons, 1) / ALPHA)) + 1


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
    """Bounds of each output of a statistic of resampled cases.

    Args:
        n: Number of cases.
        statistic: Function (drawn cases) -> outputs, NaN where a draw counts nowhere.

    Returns:
        BCa bounds, percentile bounds where BCa is undefined, NaN where most draws count nowhere; None below four cases.
    """
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
            bounds = np.nanquantile(drawn, [tail, 1 - tail], axis=-1)
            bounds[:, np.isfinite(drawn).mean(axis=-1) < _MIN_DEFINED_DRAWS] = np.nan
            low[undefined], high[undefined] = bounds
    return low, high


def _means_of_sets(values: Array, present: Array, sets: Sequence[Sequence[int]], cases: NDArray[np.int64]) -> Array:
    """Per set, the mean over its columns of the means over drawn cases; NaN where a draw has no value of a column.

    Args:
        values: (cases, columns), 0 where there is none.
        present: (cases, columns), 1 where there is a value, else 0.
        sets: Columns of each result.
        cases: (..., drawn), indices of cases.
    """
    times = _times_drawn(cases, len(values))
    with np.errstate(invalid="ignore"):
        means = (times @ values) / (times @ present)
    # BCa counts draws below the mean and draws equal to it: how a sum was rounded must not decide between them.
    return np.stack([np.round(means[..., list(columns)].mean(axis=-1), 13) for columns in sets])


def _times_drawn(cases: NDArray[np.int64], n: int) -> Array:
    """How often each of ``n`` cases was drawn, (..., n)."""
    draws = cases.reshape(-1, cases.shape[-1])
    places = draws + n * np.arange(len(draws))[:, np.newaxis]
    return np.bincount(places.ravel(), minlength=n * len(draws)).reshape(*cases.shape[:-1], n).astype(float)


def nanmean(values: Array, axis: int) -> Array:
    """NumPy's, without its warning where there is nothing: the mean is NaN then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class without a value has no mean
        result: Array = np.nanmean(values, axis=axis)
    return result
