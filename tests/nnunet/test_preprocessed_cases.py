# SPDX-License-Identifier: Apache-2.0
"""What is known of preprocessed labeled cases: right, read once, read again when a file changes."""

from __future__ import annotations

import json
import os

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.splits import preprocessed_cases as module
from nnunet_dhc.nnunet.splits import remembered_cases
from nnunet_dhc.nnunet.splits.preprocessed_cases import PreprocessedCase, preprocessed_cases


@pytest.fixture
def folder(tmp_path):
    """Two cases of 8 voxels each."""
    folder = tmp_path / "nnUNetPlans_3d_fullres"
    folder.mkdir()
    for name, values in (("x", [-1, -1, 0, 1, 1, 2, 2, 3]), ("y", [-1, 0, 0, 1, 1, 1, 2, 2])):
        seg = np.array(values, np.int16).reshape(1, 2, 2, 2)
        blosc2.asarray(seg, urlpath=str(folder / f"{name}_seg.b2nd"))
        blosc2.asarray(seg.astype(np.float32), urlpath=str(folder / f"{name}.b2nd"))
        (folder / f"{name}.pkl").write_bytes(b"\x80\x04}\x94.")  # an empty dictionary
    return folder


X = PreprocessedCase({-1: 2, 0: 1, 1: 2, 2: 2, 3: 1}, (2, 2, 2), None, None)
Y = PreprocessedCase({-1: 1, 0: 2, 1: 3, 2: 2}, (2, 2, 2), None, None)


@pytest.fixture
def reads(monkeypatch):
    """Identifiers of the cases that were read, in order."""
    read, original = [], module._read
    monkeypatch.setattr(module, "_read", lambda folder, case: read.append(case) or original(folder, case))
    return read


def test_read_by_hand(folder):
    assert preprocessed_cases(folder, ["y", "x", "x"]) == {"x": X, "y": Y}


def test_slabs_make_no_difference(folder, monkeypatch):
    monkeypatch.setattr(module, "_VOXELS_AT_ONCE", 3)
    assert preprocessed_cases(folder, ["x", "y"]) == {"x": X, "y": Y}


def test_each_case_is_read_once_whatever_the_fold_and_remembered_beside_the_folder_of_nnunet(folder, reads):
    before = sorted(folder.iterdir())
    preprocessed_cases(folder, ["x"])
    assert preprocessed_cases(folder, ["x", "y"]) == {"x": X, "y": Y}
    assert preprocessed_cases(folder, ["y"]) == {"y": Y}
    assert reads == ["x", "y"]
    assert sorted(folder.iterdir()) == before
    assert (folder.parent / "nnUNetPlans_3d_fullres_unlabeled" / "labeled_cases.json").is_file()


def test_a_changed_label_is_read_again(folder, reads):
    preprocessed_cases(folder, ["x", "y"])
    (folder / "x_seg.b2nd").unlink()
    blosc2.asarray(np.full((1, 2, 2, 4), 3, np.int16), urlpath=str(folder / "x_seg.b2nd"))
    assert preprocessed_cases(folder, ["x", "y"])["x"] == PreprocessedCase({3: 16}, (2, 2, 4), None, None)
    assert reads == ["x", "y", "x"]


@pytest.mark.parametrize("name", ["x_seg.b2nd", "x.pkl"])
def test_a_file_of_the_same_size_and_another_time_is_read_again(folder, reads, name):
    preprocessed_cases(folder, ["x"])
    os.utime(folder / name, ns=(1, 1))
    preprocessed_cases(folder, ["x"])
    assert reads == ["x", "x"]


@pytest.mark.parametrize("content", ["{", "[]", '{"0123abcd": [6, 5, 4, 1]}'])
def test_a_broken_cache_is_made_again(folder, content):
    cache = folder.with_name(f"{folder.name}_unlabeled") / "labeled_cases.json"
    cache.parent.mkdir()
    cache.write_text(content)
    assert preprocessed_cases(folder, ["x"]) == {"x": X}
    assert "x" in json.loads(cache.read_text())


def test_a_place_that_can_not_be_written_to_is_no_error(folder):
    folder.with_name(f"{folder.name}_unlabeled").touch()
    assert preprocessed_cases(folder, ["x"]) == {"x": X}


def test_processes_read_the_same(folder, monkeypatch):
    monkeypatch.setattr(remembered_cases, "sensible_processes", lambda *_: 2)
    assert preprocessed_cases(folder, ["x", "y"], num_processes=2) == {"x": X, "y": Y}


def test_npz_folders_work_too(tmp_path):
    folder = tmp_path / "npz"
    folder.mkdir()
    seg = np.array([-1, 0, 1, 1], np.int16).reshape(1, 1, 2, 2)
    nnUNetDatasetNumpy.save_case(seg.astype(np.float32), seg, {}, str(folder / "x"))
    assert preprocessed_cases(folder, ["x"])["x"].voxels == {-1: 1, 0: 1, 1: 2}


def test_missing_and_damaged_are_one_line(folder):
    with pytest.raises(UserError, match="gone is not preprocessed"):
        preprocessed_cases(folder, ["x", "gone"])
    (folder / "y_seg.b2nd").write_bytes(b"x")
    with pytest.raises(UserError, match=r"case y .* can't be read"):
        preprocessed_cases(folder, ["y"])
    (folder / "x.pkl").write_bytes(b"x")
    with pytest.raises(UserError, match=r"case x .* can't be read"):
        preprocessed_cases(folder, ["x"])


def test_a_damaged_case_costs_nothing_of_the_others(folder, reads):
    (folder / "y_seg.b2nd").write_bytes(b"x")
    with pytest.raises(UserError, match="case y"):
        preprocessed_cases(folder, ["x", "y"])
    assert preprocessed_cases(folder, ["x"]) == {"x": X}
    assert reads == ["x", "y"]


def test_a_case_keeps_the_settings_that_it_was_first_read_with(folder):
    """Until nnU-Net writes it anew."""
    for settings in ("first", "second"):
        assert preprocessed_cases(folder, ["x"], preprocessing=settings)["x"].preprocessing == "first"
    os.utime(folder / "x.pkl", ns=(0, 0))
    assert preprocessed_cases(folder, ["x"], preprocessing="second")["x"].preprocessing == "second"


def test_shapes_of_the_tiny_dataset(tiny_dataset):
    case = preprocessed_cases(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres", ["case_0"])["case_0"]
    assert case.spacing is not None and len(case.spacing) == 3
    assert case.shape_before_resampling == case.shape  # its spacing is that of the plans
