# SPDX-License-Identifier: Apache-2.0
"""Intervals, tests, corrections and claims."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nnunet_dhc.reporting.statistics import (
    ALPHA,
    Interval,
    cases_for_claim,
    claim,
    class_mean_intervals,
    frequency_groups,
    holm,
    mean_and_spread,
    wilcoxon_p,
)


def test_holm_worked_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1 = 0.03, 0.04, 0.04; None is no comparison.
    assert holm([0.04, None, 0.01, 0.02]) == [pytest.approx(0.04), None, pytest.approx(0.03), pytest.approx(0.04)]
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_wilcoxon_is_exact_for_few_cases():
    # Six differences of one sign: 2 / 2**6.
    assert wilcoxon_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), 0.35) == pytest.approx(2 / 64)
    assert wilcoxon_p(np.zeros(8), 0.0) == 1.0
    assert wilcoxon_p(np.array([np.nan]), None) is None


def test_pairs_without_a_difference_add_no_certainty():
    """SciPy's own choice of a method counts them, and takes five differences of one sign for significant."""
    five = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert wilcoxon_p(np.concatenate([five, np.zeros(10)]), 0.1) == pytest.approx(2 / 32)


def test_the_test_confirms_nothing_that_goes_the_other_way():
    values = np.random.default_rng(0).normal(0.1, 0.3, 30)
    two_sided = stats.wilcoxon(values).pvalue
    assert wilcoxon_p(values, values.mean()) == pytest.approx(two_sided)
    assert wilcoxon_p(values, -1.0) == 1.0


def test_five_cases_never_reach_significance():
    # Why six cases are asked for: 2 / 2**5 > 0.05.
    assert wilcoxon_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 3.0) > 0.05


def mean_intervals(columns):
    """Of the mean of each column."""
    return class_mean_intervals(np.stack(columns, axis=1), [[index] for index in range(len(columns))])


def test_interval_is_close_to_that_of_students_t():
    values = np.random.default_rng(0).normal(3.0, 1.0, size=60)
    found = mean_intervals([values])[0]
    low, high = stats.t.interval(0.95, 59, values.mean(), stats.sem(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(low, abs=0.06)
    assert found.high == pytest.approx(high, abs=0.06)


def test_intervals_of_a_skewed_sample_are_bias_corrected():
    values = np.array([0.1, 0.12, 0.15, 0.2, 0.2, 0.3, 0.35, 0.5, 0.9, 2.5])
    drawn = np.random.default_rng(0).choice(values, (20000, len(values))).mean(axis=1)
    found = mean_intervals([values])[0]
    percentile = np.quantile(drawn, [0.025, 0.975])
    assert found.low > percentile[0] + 0.02 and found.high > percentile[1] + 0.05  # BCa leans to the long tail


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    columns = [rng.normal(0.0, 1.0, size=25) for _ in range(300)]
    covered = np.mean([not found.excludes_zero for found in mean_intervals(columns)])
    assert 0.89 < covered < 0.98  # 0.95 but for few cases and 300 repetitions


def test_missing_values_are_left_out_column_by_column():
    first, second = mean_intervals([np.array([1.0, 2.0, np.nan, 3.0]), np.array([np.nan] * 4)])
    assert (first.mean, first.n) == (2.0, 3)
    assert (second.mean, second.low, second.n) == (None, None, 0)


def test_constant_and_single_values():
    constant, single = mean_intervals([np.full(7, 2.0), np.array([2.0, *[np.nan] * 6])])
    assert (constant.low, constant.high) == (2.0, 2.0)
    assert (single.mean, single.low, single.high, single.n) == (2.0, None, None, 1)


def test_three_cases_have_no_interval():
    three, four = mean_intervals([np.array([0.1, 0.2, 0.3, np.nan]), np.array([0.1, 0.2, 0.3, 0.4])])
    assert three.low is None and four.low < four.mean < four.high
    matrix = np.random.default_rng(3).random((10, 2))
    matrix[3:, 1] = np.nan
    both, second = class_mean_intervals(matrix, [[0, 1], [1]])
    assert both.low is not None and (second.n, second.low) == (3, None)


def test_class_means_are_averaged_over_classes_not_over_values():
    # Class 1 has one value only: (mean(0, 0, 0) + 1) / 2, not 1 / 4.
    matrix = np.array([[0.0, 1.0], [0.0, np.nan], [0.0, np.nan]])
    assert class_mean_intervals(matrix, [[0, 1]])[0].mean == pytest.approx(0.5)


def test_intervals_of_complete_scores_are_scipys():
    matrix = np.random.default_rng(5).random((30, 4))
    drawn = stats.bootstrap((np.arange(30),), lambda cases, axis: np.stack(
        [matrix[cases][..., columns].mean(axis=-2).mean(axis=-1) for columns in ([0, 1, 2, 3], [0, 1], [3])]),
        vectorized=True, n_resamples=4999, batch=500, method="BCa", rng=np.random.default_rng(20230816))
    found = class_mean_intervals(matrix, [[0, 1, 2, 3], [0, 1], [3]])
    assert [item.low for item in found] == pytest.approx(drawn.confidence_interval.low, abs=1e-12)
    assert [item.high for item in found] == pytest.approx(drawn.confidence_interval.high, abs=1e-12)
    assert found[2] == mean_intervals(list(matrix.T))[3]


def test_a_draw_without_a_structure_is_no_mean_of_the_others():
    matrix = np.full((8, 2), np.nan)
    matrix[:, 0] = np.random.default_rng(1).normal(0.9, 0.01, 8)
    matrix[:2, 1] = 0.1, 0.2
    found = class_mean_intervals(matrix, [[0, 1]])[0]
    assert found.low < found.mean < found.high < 0.6


def test_a_structure_that_some_draws_lack_has_the_percentiles_of_the_others():
    values = np.array([0.1, 0.2, 0.4, 0.6, 0.9, *[np.nan] * 7])
    draws = np.random.default_rng(0).choice(values, (20000, len(values)))
    means = np.nanmean(draws[~np.isnan(draws).all(axis=1)], axis=1)
    other = np.random.default_rng(1).normal(0.5, 0.001, len(values))  # so that all twelve cases are drawn
    found = class_mean_intervals(np.stack([values, other], axis=1), [[0, 1]])[0]
    low, high = (np.quantile(means, [0.025, 0.975]) + 0.5) / 2
    assert (found.low, found.high) == (pytest.approx(low, abs=0.008), pytest.approx(high, abs=0.008))


def test_a_structure_of_a_single_case_leaves_no_interval():
    """Each draw that has it has the same value of it, however many others there are."""
    matrix = np.random.default_rng(1).random((12, 2))
    matrix[1:, 1] = np.nan
    both, first = class_mean_intervals(matrix, [[0, 1], [0]])
    assert both.mean == pytest.approx((matrix[:, 0].mean() + matrix[0, 1]) / 2) and both.n == 12
    assert (both.low, both.high) == (None, None) and first.low is not None


@pytest.mark.parametrize(("structures", "given"), [(2, True), (8, False)])
def test_no_interval_where_most_draws_lack_a_structure(structures, given):
    """Each structure is in two cases of its own: 0.88 of the draws have both of two, next to none all of eight."""
    matrix = np.full((2 * structures, structures), np.nan)
    for column in range(structures):
        matrix[2 * column:2 * column + 2, column] = 0.1, 0.2
    found = class_mean_intervals(matrix, [range(structures)])[0]
    assert found.mean == pytest.approx(0.15)
    assert (found.low is not None, found.high is not None) == (given, given)


def test_a_structure_that_no_case_has_changes_no_mean():
    values = np.random.default_rng(1).random(8)
    matrix = np.stack([values, np.full(8, np.nan)], axis=1)
    with_it, without = class_mean_intervals(matrix, [[0, 1]])[0], mean_intervals([values])[0]
    assert with_it.mean == pytest.approx(without.mean) and (with_it.low, with_it.high) == (without.low, without.high)


def test_a_group_of_one_structure_has_the_interval_of_the_structure():
    matrix = np.random.default_rng(1).random((12, 2))
    matrix[6:, 1] = np.nan
    assert class_mean_intervals(matrix, [[0, 1], [1]])[1] == mean_intervals(list(matrix.T))[1]


def test_the_rounding_of_sums_changes_no_interval():
    """Of six cases, draws with the mean of all are frequent, and BCa counts those below it and those equal to it."""
    values = np.random.default_rng(0).random(6)
    first, second = mean_intervals([values, values * 3.0])
    assert (3 * first.low, 3 * first.high) == pytest.approx((second.low, second.high), abs=1e-12)


def test_the_same_numbers_give_the_same_interval():
    values = np.random.default_rng(2).normal(size=20)
    assert mean_intervals([values]) == mean_intervals([values])


@pytest.mark.parametrize(("interval", "p", "up", "expected"), [
    (Interval(0.1, 0.05, 0.15, 10), 0.01, True, "better"),
    (Interval(0.1, 0.05, 0.15, 10), 0.01, False, "worse"),
    (Interval(-0.1, -0.15, -0.05, 10), 0.01, False, "better"),
    (Interval(0.1, -0.01, 0.15, 10), 0.001, True, "no claim"),
    (Interval(0.1, 0.05, 0.15, 10), 0.2, True, "no claim"),
    (Interval(0.1, 0.05, 0.15, 10), 0.05, True, "no claim"),
    (Interval(0.1, 0.05, 0.15, 6), 0.049, True, "better"),
    (Interval(0.1, 0.05, 0.15, 5), 0.001, True, "too few cases"),
    (Interval(None, None, None, 8), None, True, "no claim"),
])
def test_claims(interval, p, up, expected):
    assert claim(interval, p, up) == expected


def test_frequency_groups_are_terciles_of_volume():
    assert frequency_groups([50.0, 1.0, 1000.0, 2.0, 60.0, 900.0]) == [
        "medium", "rare", "frequent", "rare", "medium", "frequent"]
    assert frequency_groups([1.0, 2.0]) == ["all", "all"]
    assert frequency_groups([0.0, 5.0, 0.0, 50.0, 10.0]) == ["absent", "rare", "absent", "frequent", "medium"]
    assert frequency_groups([0.0, 3.0]) == ["absent", "all"]


def test_spread_needs_two():
    assert mean_and_spread([0.5])["standard_deviation"] is None
    assert mean_and_spread([0.0, 1.0, None]) == {"mean": 0.5, "standard_deviation": pytest.approx(0.5**0.5), "n": 2}
    assert mean_and_spread([0.0, 1.0], ddof=0)["standard_deviation"] == 0.5  # the paper's


def test_an_interval_that_ends_at_0_claims_nothing():
    assert claim(Interval(0.1, 0.0, 0.15, 10), 0.01, True) == "no claim"


@pytest.mark.parametrize("comparisons", [1, 2, 3, 4, 13, 39])
def test_the_fewest_cases_for_a_claim_are_just_enough_for_a_test_of_that_many(comparisons):
    def smallest_p(n):
        return holm([wilcoxon_p(np.arange(1.0, n + 1), 1.0)] * comparisons)[0]

    needed = cases_for_claim(comparisons)
    assert smallest_p(needed) < ALPHA <= smallest_p(needed - 1)
