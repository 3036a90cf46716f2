# SPDX-License-Identifier: Apache-2.0
"""Drawing folds and labeled cases: coverage, nesting, groups, disjoint validation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.splits.split_drawing import (
    draw_folds,
    labeled_order,
    make_units,
    missing_classes,
    smallest_cover,
    take_labeled,
)

CLASSES = "abcdef"
presence = st.lists(st.frozensets(st.sampled_from(CLASSES)), min_size=1, max_size=9)


def _cases(units):
    return [case for unit in units for case in unit]


def _dataset(contents):
    classes_of = {f"case_{number}": classes for number, classes in enumerate(contents)}
    return make_units(list(classes_of)), classes_of


@settings(max_examples=150, deadline=None)
@given(presence, st.integers(0, 5))
def test_cover_is_a_smallest_one(contents, seed):
    units, classes_of = _dataset(contents)
    everything = frozenset().union(*classes_of.values())
    cover = smallest_cover(units, classes_of)
    assert frozenset().union(*(classes_of[case] for case in _cases(cover))) == everything
    # Origin: brute force over all smaller sets.
    for size in range(len(cover)):
        for chosen in combinations(units, size):
            assert frozenset().union(*(classes_of[case] for case in _cases(chosen))) != everything


def test_a_part_of_the_cover_has_as_many_classes_as_it_can():
    """Whoever takes the most classes at once, 1 2 3 4 6, comes to three cases; of the two that are enough."""
    units, classes_of = _dataset([frozenset("125"), frozenset("3467"), frozenset("12346")])
    assert _cases(smallest_cover(units, classes_of)) == ["case_1", "case_0"]


@settings(max_examples=60, deadline=None)
@given(presence, st.integers(0, 20))
def test_every_class_is_labeled_where_possible_and_draws_are_nested(contents, seed):
    units, classes_of = _dataset(contents)
    order = labeled_order(units, seed, 0, classes_of)
    assert sorted(order) == sorted(units)
    needed = len(smallest_cover(units, classes_of))
    present = sorted(frozenset().union(*classes_of.values()))
    previous: set[str] = set()
    for count in range(1, len(units) + 1):
        labeled = _cases(take_labeled(order, count, len(units)))
        assert len(labeled) == count
        assert previous <= set(labeled)
        previous = set(labeled)
        assert count < needed or missing_classes(labeled, classes_of, present) == []


def test_ten_percent_are_among_twenty():
    units, classes_of = _dataset([frozenset("ab")] * 40)
    order = labeled_order(units, 3, 1, classes_of)
    ten, twenty = (set(_cases(take_labeled(order, part, 40))) for part in (0.1, 0.2))
    assert (len(ten), len(twenty)) == (4, 8)
    assert ten < twenty


def test_seeds_and_folds_draw_differently():
    units, classes_of = _dataset([frozenset("a")] * 20)
    draws = {tuple(labeled_order(units, seed, fold, classes_of)) for seed in range(4) for fold in range(4)}
    assert len(draws) == 16
    assert labeled_order(units, 1, 2, classes_of) == labeled_order(units, 1, 2, classes_of)


def test_each_seed_has_folds_of_its_own():
    units, classes_of = _dataset([frozenset("a")] * 20)
    draws = [draw_folds(units, 4, seed, classes_of) for seed in (0, 1, 2, 0)]
    assert len({tuple(sorted(draw[0])) for draw in draws}) == 3 and draws[0] == draws[3]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(5, 30), st.integers(0, 9))
def test_folds_are_a_partition_of_equal_sizes(num_folds, num_cases, seed):
    rng = np.random.default_rng(seed)
    units, classes_of = _dataset([frozenset(c for c in CLASSES if rng.random() < 0.6) for _ in range(num_cases)])
    folds = draw_folds(units, num_folds, seed, classes_of)
    assert sorted(_cases([unit for fold in folds for unit in fold])) == sorted(classes_of)
    sizes = [len(_cases(fold)) for fold in folds]
    assert max(sizes) <= -(-num_cases // num_folds)
    assert min(sizes) >= 1


def test_rare_class_is_spread_over_the_folds():
    units, classes_of = _dataset([frozenset("ab") if number < 5 else frozenset("a") for number in range(25)])
    for seed in range(10):
        folds = draw_folds(units, 5, seed, classes_of)
        assert [sum("b" in classes_of[case] for case in _cases(fold)) for fold in folds] == [1] * 5


def test_groups_stay_together():
    cases = [f"case_{number}" for number in range(12)]
    groups = {case: f"patient_{number // 3}" for number, case in enumerate(cases[:9])}
    units = make_units(cases, groups)
    assert sorted(map(len, units)) == [1, 1, 1, 3, 3, 3]
    for fold in draw_folds(units, 3, 0, {}):
        for unit in fold:
            assert unit in units
    order = labeled_order(units, 0, 0, {})
    sizes = [len(_cases(take_labeled(order, count, 12))) for count in range(1, 13)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 12


def test_group_may_be_named_like_a_case():
    assert make_units(["a", "b", "c"], {"b": "a", "c": "a"}) == [("a",), ("b", "c")]


@pytest.mark.parametrize("wanted", [0, 6, -1])
def test_impossible_count_is_refused(wanted):
    units, _ = _dataset([frozenset("a")] * 5)
    with pytest.raises(UserError, match="choose between 1 and the 5 training cases"):
        take_labeled(units, wanted, 5)


def test_more_folds_than_cases_is_refused():
    units, _ = _dataset([frozenset("a")] * 3)
    with pytest.raises(UserError, match="only 3 cases"):
        draw_folds(units, 5, 0, {})
