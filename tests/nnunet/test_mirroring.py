# SPDX-License-Identifier: Apache-2.0
"""Labels that name two sides of the body, and what follows for mirroring."""

from __future__ import annotations

import pytest

from nnunet_dhc.nnunet.training.mirroring import mirror_axes_of, mirroring_note, opposite_labels


@pytest.mark.parametrize("names", [
    ["background", "left_kidney", "right_kidney"],
    ["kidneyRight", "kidneyLeft"],
    ["Kidney_L", "liver", "Kidney_R"],
    ["L adrenal", "R adrenal"],
    ["Anterior", "Posterior"],
    ["lung_upper_lobe_left", "lung_lower_lobe_left"],
    ["Left-Hippocampus", "Right-Hippocampus"],
    ["rib_left_1", "rib_right_1"],
])
def test_pairs(names) -> None:
    assert set(opposite_labels(names)) == set(names) - {"background", "liver"}


@pytest.mark.parametrize("names", [
    [],
    ["inferior_vena_cava", "aorta"],
    ["left ventricle", "right atrium"],
    ["left_kidney", "left_lung"],
    ["rib_left_1", "rib_right_2"],
    ["edema", "non_enhancing_tumor", "tumor"],
])
def test_no_pair(names) -> None:
    assert opposite_labels(names) is None


def test_axes() -> None:
    pair, single = ["left_kidney", "right_kidney"], ["liver"]
    assert mirror_axes_of("auto", (0, 1, 2), pair) == ()
    assert mirror_axes_of("auto", (0, 1, 2), single) == (0, 1, 2)
    assert mirror_axes_of(None, (0, 1, 2), pair) == (0, 1, 2)
    assert mirror_axes_of([0, 1], (0, 1, 2), pair) == (0, 1)
    assert mirror_axes_of([], (0, 1), pair) == ()
    assert mirror_axes_of([2], (0, 1), single) == ()


def test_axes_of_a_slice_are_the_last_two_of_the_scan() -> None:
    assert mirror_axes_of([0, 1], (0, 1), ["liver"], dimensions=2) == (0,)
    assert mirror_axes_of([1, 2], (0, 1), ["liver"], dimensions=2) == (0, 1)
    assert mirror_axes_of([0], (0, 1), ["liver"], dimensions=2) == ()
    assert mirror_axes_of("auto", (0, 1), ["liver"], dimensions=2) == (0, 1)


def test_note() -> None:
    pair, single = ["left_kidney", "right_kidney"], ["liver"]
    note = mirroring_note("auto", pair)
    assert "left_kidney and right_kidney" in note and "mirror_axes=null" in note
    for setting, names in (("auto", single), (None, pair), ([0, 1], pair), ([], pair), ([2], single)):
        assert mirroring_note(setting, names) is None
