# SPDX-License-Identifier: Apache-2.0
"""Voxel counts of the labeled cases: -1 is background, ignored voxels and unlabeled cases do not count."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.splits.labeled_counts import classes_without_labels, labeled_voxel_counts
from nnunet_dhc.nnunet.splits.preprocessed_cases import PreprocessedCase, preprocessed_cases

LABELS = LabelManager({"background": 0, "a": 1, "b": 2, "c": 3}, None)
IGNORING = LabelManager({"background": 0, "a": 1, "ignore": 2}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}, [1, 2, 3])


def cases(**voxels):
    return {name: PreprocessedCase(by_value, (2, 2, 2), None, None) for name, by_value in voxels.items()}


X, Y = {-1: 2, 0: 1, 1: 2, 2: 2, 3: 1}, {-1: 1, 0: 2, 1: 3, 2: 2}


def test_counts_by_hand():
    counts = labeled_voxel_counts(cases(x=X, y=Y), LABELS)
    assert counts.dtype == np.int64
    assert counts.tolist() == [6, 5, 4, 1]
    assert labeled_voxel_counts(cases(y=Y), LABELS).tolist() == [3, 3, 2, 0]


def test_ignored_voxels_do_not_count():
    assert labeled_voxel_counts(cases(x={-1: 3, 0: 3, 1: 5, 2: 400}), IGNORING).tolist() == [6, 5]


def test_regions_overlap_and_index_0_is_in_none():
    assert labeled_voxel_counts(cases(x=X, y=Y), REGIONS).tolist() == [6, 10, 5, 1]


def test_an_undeclared_value_is_one_line_that_names_the_case():
    with pytest.raises(UserError, match=r"case x holds the value\(s\) 3, but dataset.json declares 0, 1, 2 alone"):
        labeled_voxel_counts(cases(x=X, y=Y), LabelManager({"background": 0, "a": 1, "b": 2}, None))


def test_names_classes_that_nobody_labeled():
    assert classes_without_labels(np.array([5, 0, 2, 0]), LABELS) == ["a", "c"]
    assert classes_without_labels(np.array([5, 1]), IGNORING) == []
    assert classes_without_labels(np.array([5, 3, 1, 0]), REGIONS) == ["enhancing"]


def test_agrees_with_the_raw_labels_of_the_tiny_dataset(tiny_dataset):
    import SimpleITK

    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"
    counts = labeled_voxel_counts(preprocessed_cases(folder, ["case_0", "case_3"]), LABELS)
    expected = np.zeros(4, int)
    for case in ("case_0", "case_3"):
        label = SimpleITK.ReadImage(str(tiny_dataset.raw / "labelsTr" / f"{case}.nii.gz"))
        expected += np.bincount(SimpleITK.GetArrayFromImage(label).ravel(), minlength=4)
    assert counts.tolist() == expected.tolist()
