# SPDX-License-Identifier: Apache-2.0
"""An unlabeled case that is a labeled or validation case of the fold stops the run; a test case is only noted."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import SimpleITK
from bring_up_to_date import FOLD, SPLIT_FOLD, store_folder, update
from tiny_data import make_scan, write_image

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
from nnunet_dhc.nnunet.unlabeled import case_preprocessing, store_update


def copy_case(dataset, case: str, name: str, folder: str = "imagesUn") -> None:
    shutil.copy(dataset.raw / "imagesTr" / f"{case}_0000.nii.gz", dataset.raw / folder / f"{name}_0000.nii.gz")


@pytest.mark.parametrize(("case", "role"), [("case_0", "training"), ("case_5", "validation")])
def test_by_name(tiny_dataset, case, role):
    write_image(tiny_dataset.images_un / f"{case}_0000.nii.gz", make_scan(77)[0])
    with pytest.raises(UserError, match=f"{case} in .*imagesUn has the name of a labeled {role} case"):
        update(tiny_dataset)


def test_fold_all_knows_every_case(tiny_dataset):
    copy_case(tiny_dataset, "case_2", "case_2")
    fold = FoldCases(tuple(tiny_dataset.labeled), tuple(tiny_dataset.labeled))
    with pytest.raises(UserError, match="case_2 in"):
        update(tiny_dataset, fold)


def test_a_case_named_in_images_un_and_in_the_split(tiny_dataset):
    copy_case(tiny_dataset, "case_3", "case_3")
    with pytest.raises(UserError, match=r"case_3 is in .*imagesUn and also under \"unlabeled\""):
        update(tiny_dataset, SPLIT_FOLD)


@pytest.mark.parametrize(("case", "role"), [("case_1", "training"), ("case_4", "validation")])
def test_by_voxels_under_another_name_and_file_type(tiny_dataset, case, role):
    image = SimpleITK.ReadImage(str(tiny_dataset.raw / "imagesTr" / f"{case}_0000.nii.gz"))
    image = SimpleITK.Cast(image, SimpleITK.sitkFloat32)  # other bytes, same voxels
    image.SetOrigin((3.0, 2.0, 1.0))
    SimpleITK.WriteImage(image, str(tiny_dataset.images_un / "stranger_0000.nii.gz"))
    with pytest.raises(UserError, match=f"imagesUn/stranger = {role} case {case}"):
        update(tiny_dataset)
    with pytest.raises(UserError, match="stranger"):
        update(tiny_dataset)  # the store is up to date now, the leak is still refused


def test_a_leak_that_is_allowed_is_named(tiny_dataset):
    copy_case(tiny_dataset, "case_4", "stranger")
    plans = tiny_dataset.plans_content("nnUNetPlans")
    pool = update(tiny_dataset, plans={**plans, "nnunet_dhc": {"allow_leaks": True}})
    assert "stranger" in pool.identifiers
    assert "LEAK" in pool.notes[0] and "imagesUn/stranger = validation case case_4" in pool.notes[0]
    with pytest.raises(UserError, match="allow_leaks=true"):
        update(tiny_dataset, plans=plans)


def test_a_split_case_with_the_voxels_of_a_labeled_one(tiny_dataset):
    copy_case(tiny_dataset, "case_0", "case_3", "imagesTr")
    with pytest.raises(UserError, match="imagesTr/case_3 = training case case_0"):
        update(tiny_dataset, SPLIT_FOLD)


def test_leaks_are_judged_per_fold(tiny_dataset):
    """An unlabeled case of one fold may be labeled in another."""
    first = FoldCases(("case_0",), ("case_1",), ("case_2",))
    second = FoldCases(("case_2",), ("case_1",), ("case_0",))
    assert update(tiny_dataset, [first, second]).n_from_split == 2


def test_a_test_case_is_noted(tiny_dataset):
    shutil.copy(tiny_dataset.images_un / "scan_1_0000.nii.gz", tiny_dataset.raw / "imagesTs" / "test_9_0000.nii.gz")
    pool = update(tiny_dataset)
    assert len(pool.identifiers) == 3
    assert "Transduction: scan_1 is also in imagesTs" in pool.notes[0]
    (tiny_dataset.raw / "imagesTs" / "test_9_0000.nii.gz").unlink()
    assert update(tiny_dataset).notes == []


def test_a_test_case_is_noted_where_the_raw_data_are_not(tiny_dataset, monkeypatch):
    shutil.copy(tiny_dataset.images_un / "scan_1_0000.nii.gz", tiny_dataset.raw / "imagesTs" / "test_9_0000.nii.gz")
    update(tiny_dataset)
    monkeypatch.delenv("nnUNet_raw")
    assert "Transduction: scan_1 is also in imagesTs" in " ".join(update(tiny_dataset).notes)


def test_a_test_case_with_the_same_name_is_noted(tiny_dataset):
    write_image(tiny_dataset.raw / "imagesTs" / "scan_1_0000.nii.gz", make_scan(77)[0])
    assert "scan_1 names other images in imagesTs" in update(tiny_dataset).notes[0]


def test_a_labeled_case_that_the_fold_lists_nowhere_is_noted(tiny_dataset):
    """It may be kept out for a test: by name, and by voxels under another name."""
    copy_case(tiny_dataset, "case_3", "case_3")
    copy_case(tiny_dataset, "case_5", "stranger")
    fold = FoldCases(("case_0", "case_1"), ("case_2",))
    pool = update(tiny_dataset, fold)
    assert {"case_3", "stranger"} < set(pool.identifiers)
    note, = [note for note in pool.notes if "no list of the fold" in note]
    assert "imagesUn/case_3, imagesUn/stranger = case_5; scores on them" in note
    split = FoldCases(("case_0", "case_1"), ("case_2",), ("case_4", "case_5"))
    assert not any("= case_5" in note for note in update(tiny_dataset, split).notes)


def test_another_reader_reads_the_labeled_images_again(tiny_dataset):
    """Hashes of voxels in another order would miss every copy."""
    plans = tiny_dataset.plans_content("nnUNetPlans")
    update(tiny_dataset, plans=plans)
    plans["image_reader_writer"] = "NibabelIOWithReorient"
    path = tiny_dataset.raw / "imagesTr" / "case_4_0000.nii.gz"
    image = SimpleITK.ReadImage(str(path))
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(path))
    os.utime(path, ns=(1, 1))
    update(tiny_dataset, plans=plans)
    copy_case(tiny_dataset, "case_1", "stranger")
    with pytest.raises(UserError, match="imagesUn/stranger = training case case_1"):
        update(tiny_dataset, plans=plans)


def test_twins_among_unlabeled_cases_are_noted(tiny_dataset):
    shutil.copy(tiny_dataset.images_un / "scan_1_0000.nii.gz", tiny_dataset.images_un / "twin_0000.nii.gz")
    assert "scan_1 = twin" in update(tiny_dataset).notes[0]


def test_labeled_images_are_read_once(tiny_dataset, monkeypatch):
    update(tiny_dataset)
    assert len(json.loads((store_folder(tiny_dataset) / "labeled_hashes.json").read_text())["images"]) == 6
    monkeypatch.setattr(case_preprocessing, "voxel_hash", None)
    update(tiny_dataset)
    write_image(tiny_dataset.raw / "imagesTr" / "case_0_0000.nii.gz", make_scan(55)[0])
    with pytest.raises(TypeError):
        update(tiny_dataset)


@pytest.mark.parametrize("content", ["{", "[]", '{"case_0": 1}', '{"reader": "SimpleITKIO", "images": {"case_0": 1}}'])
def test_a_broken_hash_file_is_made_again(tiny_dataset, content):
    update(tiny_dataset)
    path = store_folder(tiny_dataset) / "labeled_hashes.json"
    path.write_text(content)
    update(tiny_dataset)
    assert len(json.loads(path.read_text())["images"]) == 6


def test_labeled_images_that_are_gone_or_broken_are_noted(tiny_dataset):
    (tiny_dataset.raw / "imagesTr" / "case_0_0000.nii.gz").unlink()
    (tiny_dataset.raw / "imagesTr" / "case_1_0000.nii.gz").write_text("broken")
    (tiny_dataset.raw / "imagesTs" / "bad_0000.nii.gz").write_text("broken")
    for _ in range(2):
        assert "2 of 6 labeled cases could not be compared" in update(tiny_dataset).notes[0]


def test_a_labeled_image_that_was_away_once_is_compared_later(tiny_dataset, monkeypatch):
    """Neither its size nor its time tells that it can be read again."""
    copy_case(tiny_dataset, "case_0", "stranger")
    with monkeypatch.context() as patch:
        patch.setattr(case_preprocessing, "hash_case", hash_of_none)
        patch.setattr(store_update, "hash_case", hash_of_none)
        assert "could not be compared" in update(tiny_dataset).notes[0]
    with pytest.raises(UserError, match="imagesUn/stranger = training case case_0"):
        update(tiny_dataset)


def hash_of_none(_, task):
    return case_preprocessing.HashResult(task.key)


def test_hashes_survive_the_raw_data(tiny_dataset, monkeypatch):
    copy_case(tiny_dataset, "case_4", "stranger")
    other = FoldCases(FOLD.labeled, ("case_5",))
    update(tiny_dataset, [other, FoldCases(("case_1",), ("case_2",))])
    with pytest.raises(UserError, match="stranger"):
        update(tiny_dataset)
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(UserError, match="stranger"):
        update(tiny_dataset)


def test_a_read_only_folder_is_compared_without_remembering(tiny_dataset, monkeypatch):
    update(tiny_dataset)
    path = store_folder(tiny_dataset) / "labeled_hashes.json"
    path.unlink()
    monkeypatch.setattr("nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing.os.access", lambda *_arguments: False)
    assert update(tiny_dataset).notes == []
    assert not path.exists()
