# SPDX-License-Identifier: Apache-2.0
"""Voxel counts of the labeled cases: -1 is background, ignored voxels and unlabeled cases do not count."""

from __future__ import annotations

import json
import os

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.splits import labeled_counts
from nnunet_dhc.nnunet.splits.labeled_counts import classes_without_labels, labeled_voxel_counts

LABELS = LabelManager({"background": 0, "a": 1, "b": 2, "c": 3}, None)
IGNORING = LabelManager({"background": 0, "a": 1, "ignore": 2}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}, [1, 2, 3])


@pytest.fixture
def folder(tmp_path):
    """Two cases of 8 voxels; counts by hand: -1: 3, 0: 3, 1: 5, 2: 4, 3: 1."""
    folder = tmp_path / "nnUNetPlans_3d_fullres"
    folder.mkdir()
    for name, values in (("x", [-1, -1, 0, 1, 1, 2, 2, 3]), ("y", [-1, 0, 0, 1, 1, 1, 2, 2])):
        seg = np.array(values, np.int16).reshape(1, 2, 2, 2)
        blosc2.asarray(seg, urlpath=str(folder / f"{name}_seg.b2nd"))
        blosc2.asarray(seg.astype(np.float32), urlpath=str(folder / f"{name}.b2nd"))
        (folder / f"{name}.pkl").write_bytes(b"\x80\x04}\x94.")  # an empty dictionary
    return folder


def test_counts_by_hand(folder):
    counts = labeled_voxel_counts(folder, ["x", "y"], LABELS)
    assert counts.dtype == np.int64
    assert counts.tolist() == [6, 5, 4, 1]
    assert labeled_voxel_counts(folder, ["y"], LABELS).tolist() == [3, 3, 2, 0]


def test_ignored_voxels_do_not_count(folder, monkeypatch):
    monkeypatch.setattr(labeled_counts, "_count_values", lambda *_arguments: {-1: 3, 0: 3, 1: 5, 2: 400})
    assert labeled_voxel_counts(folder, ["x"], IGNORING).tolist() == [6, 5]


def test_regions_overlap_and_index_0_is_in_none(folder):
    assert labeled_voxel_counts(folder, ["x", "y"], REGIONS).tolist() == [6, 10, 5, 1]


def test_slabs_make_no_difference(folder, monkeypatch):
    monkeypatch.setattr(labeled_counts, "_VOXELS_AT_ONCE", 3)
    assert labeled_voxel_counts(folder, ["x", "y"], LABELS).tolist() == [6, 5, 4, 1]


def test_counted_once_and_beside_the_folder_of_nnunet(folder, monkeypatch):
    before = sorted(folder.iterdir())
    first = labeled_voxel_counts(folder, ["x", "y"], LABELS)
    assert sorted(folder.iterdir()) == before
    cache = folder.parent / "nnUNetPlans_3d_fullres_unlabeled" / "labeled_counts.json"
    assert list(json.loads(cache.read_text()).values()) == [[6, 5, 4, 1]]
    monkeypatch.setattr(labeled_counts, "_count_values", None)
    np.testing.assert_array_equal(labeled_voxel_counts(folder, ["y", "x"], LABELS), first)
    with pytest.raises(TypeError):
        labeled_voxel_counts(folder, ["x"], LABELS)


def test_changed_labels_are_counted_again(folder):
    labeled_voxel_counts(folder, ["x"], LABELS)
    (folder / "x_seg.b2nd").unlink()
    blosc2.asarray(np.full((1, 2, 2, 4), 3, np.int16), urlpath=str(folder / "x_seg.b2nd"))
    assert labeled_voxel_counts(folder, ["x"], LABELS).tolist() == [0, 0, 0, 16]


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_cache_is_made_again(folder, content, tmp_path):
    (tmp_path / "labeled_counts.json").write_text(content)
    assert labeled_voxel_counts(folder, ["x"], LABELS, tmp_path).tolist() == [3, 2, 2, 1]
    assert len(json.loads((tmp_path / "labeled_counts.json").read_text())) == 1


def test_a_place_that_can_not_be_written_to_is_no_error(folder, tmp_path):
    (tmp_path / "file").touch()
    assert labeled_voxel_counts(folder, ["x"], LABELS, tmp_path / "file").tolist() == [3, 2, 2, 1]


def test_npz_folders_work_too(tmp_path):
    folder = tmp_path / "npz"
    folder.mkdir()
    seg = np.array([-1, 0, 1, 1], np.int16).reshape(1, 1, 2, 2)
    nnUNetDatasetNumpy.save_case(seg.astype(np.float32), seg, {}, str(folder / "x"))
    assert labeled_voxel_counts(folder, ["x"], LABELS).tolist() == [2, 2, 0, 0]


def test_missing_damaged_and_undeclared_are_one_line(folder):
    with pytest.raises(UserError, match="gone is not preprocessed"):
        labeled_voxel_counts(folder, ["x", "gone"], LABELS)
    with pytest.raises(UserError, match=r"case x holds the value\(s\) 3, but dataset.json declares 0, 1, 2 alone"):
        labeled_voxel_counts(folder, ["x"], LabelManager({"background": 0, "a": 1, "b": 2}, None))
    (folder / "y_seg.b2nd").write_bytes(b"x")
    with pytest.raises(UserError, match="case y"):
        labeled_voxel_counts(folder, ["y"], LABELS)


def test_names_classes_that_nobody_labeled():
    assert classes_without_labels(np.array([5, 0, 2, 0]), LABELS) == ["a", "c"]
    assert classes_without_labels(np.array([5, 1]), IGNORING) == []
    assert classes_without_labels(np.array([5, 3, 1, 0]), REGIONS) == ["enhancing"]


def test_agrees_with_the_raw_labels_of_the_tiny_dataset(tiny_dataset):
    import SimpleITK

    counts = labeled_voxel_counts(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres", ["case_0", "case_3"], LABELS)
    expected = np.zeros(4, int)
    for case in ("case_0", "case_3"):
        label = SimpleITK.ReadImage(str(tiny_dataset.raw / "labelsTr" / f"{case}.nii.gz"))
        expected += np.bincount(SimpleITK.GetArrayFromImage(label).ravel(), minlength=4)
    assert counts.tolist() == expected.tolist()


def test_labels_of_the_same_size_and_another_time_are_counted_again(folder, monkeypatch):
    labeled_voxel_counts(folder, ["x"], LABELS)
    os.utime(folder / "x_seg.b2nd", ns=(1, 1))
    monkeypatch.setattr(labeled_counts, "_count_values", None)
    with pytest.raises(TypeError):
        labeled_voxel_counts(folder, ["x"], LABELS)
