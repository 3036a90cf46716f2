# SPDX-License-Identifier: Apache-2.0
"""The slices on which label maps differ most."""

from __future__ import annotations

import numpy as np

from nnunet_dhc.disagreement import Disagreement


def test_the_small_structure_that_one_map_misses_decides():
    one = np.zeros((6, 7, 8), np.uint8)
    one[1:5, 1:6, 1:6] = 1
    other = one.copy()
    other[1, 1, 1:3] = 0  # two voxels of 100
    one[2, 3, 4] = 2
    cuts = Disagreement([one, other]).cuts((1.0, 1.0, 1.0), 100.0)
    assert [(cut.plane, cut.index, cut.slices, cut.subject) for cut in cuts] == [
        ("axial", 2, 6, 2), ("coronal", 3, 7, 2), ("sagittal", 4, 8, 2)]


def test_the_reference_counts_for_sizes_and_where_the_others_agree():
    reference, map_ = np.zeros((2, 4, 5, 5), np.uint8)
    reference[3, 2:4, 2:4] = 1
    cut = Disagreement([map_, map_], reference).cuts((1.0, 1.0, 1.0), 10.0)[0]
    assert (cut.index, cut.subject) == (3, 1)
    assert Disagreement([map_, map_], reference).weight_on(cut, 1) > 0 == Disagreement([map_, map_]).weight_on(cut, 1)


def test_without_structures_the_middle_is_shown():
    empty = np.zeros((9, 7, 5), np.uint8)
    assert [cut.index for cut in Disagreement([empty, empty]).cuts((1.0, 1.0, 1.0), 10.0)] == [4, 3, 2]


def test_a_flat_volume_has_one_slice():
    flat = np.zeros((1, 6, 6), np.uint8)
    (cut,) = Disagreement([flat, flat]).cuts((5.0, 1.0, 1.0), 10.0)
    assert (cut.plane, cut.index) == ("slice", 0)
    assert cut.of(flat).shape == (6, 6)


def test_the_window_is_as_large_as_asked_in_mm_and_lies_on_the_structure():
    one, other = np.zeros((2, 4, 40, 80), np.uint8)
    one[2, 30:33, 60:63] = 1
    cut = Disagreement([one, other]).cuts((3.0, 2.0, 1.0), 20.0)[0]
    assert [part.stop - part.start for part in cut.window] == [10, 20]
    assert all(part.start < place < part.stop for part, place in zip(cut.window, (31, 61), strict=True))


def test_the_head_is_up():
    one, other = np.zeros((2, 6, 6, 6), np.uint8)
    one[5, 2, 3] = 1  # at the head
    axial, coronal, sagittal = Disagreement([one, other]).cuts((1.0, 1.0, 1.0), 100.0)
    assert np.argwhere(axial.of(one)).tolist() == [[2, 3]]
    assert np.argwhere(coronal.of(one)).tolist() == [[0, 3]]
    assert np.argwhere(sagittal.of(one)).tolist() == [[0, 2]]
