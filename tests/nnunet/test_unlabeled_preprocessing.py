# SPDX-License-Identifier: Apache-2.0
"""Bringing the store up to date: what is made, what is made again, what is shared and what is never read."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
import SimpleITK
from bring_up_to_date import FOLD, SPLIT_FOLD, manifest_lines, store_folder, update
from filelock import FileLock
from tiny_data import make_scan, write_image

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import LOCK_FILE


def said(dataset, *arguments, **options) -> tuple[object, list[str]]:
    messages: list[str] = []
    return update(dataset, *arguments, say=messages.append, **options), messages


def test_voxels_are_those_of_nnunet_itself(tiny_dataset):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    pool = update(tiny_dataset, SPLIT_FOLD)
    assert pool.identifiers == ["case_3", "case_4", "scan_0", "scan_1", "scan_2"]
    assert (pool.n_from_images_un, pool.n_from_split, pool.excluded, pool.notes) == (3, 2, {}, [])
    stock = nnUNetDatasetBlosc2(str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"))
    for case in SPLIT_FOLD.unlabeled:
        expected = stock.load_case(case)[0]
        ours = blosc2.open(f"{pool.folder}/{case}.b2nd", mode="r")
        assert ours.dtype == np.float32
        assert (ours.chunks, ours.blocks) == (expected.chunks, expected.blocks)
        np.testing.assert_array_equal(ours[:], expected[:])


def test_nothing_is_written_into_folders_of_nnunet(tiny_dataset):
    def listing():
        folders = [tiny_dataset.raw, tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres", tiny_dataset.results]
        return sorted(str(path) for folder in folders for path in folder.rglob("*"))

    before = listing()
    update(tiny_dataset)
    assert listing() == before
    assert [path.name for path in tiny_dataset.preprocessed.glob("*_unlabeled")] == ["nnUNetPlans_3d_fullres_unlabeled"]
    assert not list(store_folder(tiny_dataset).glob("*.pkl"))


def test_second_run_does_and_writes_nothing(tiny_dataset, monkeypatch):
    update(tiny_dataset)
    before = {path: path.stat().st_mtime_ns for path in store_folder(tiny_dataset).iterdir()}
    monkeypatch.setattr("nnunet_dhc.nnunet.unlabeled.store_update.StoreUpdate.run", None)
    _, messages = said(tiny_dataset)
    assert messages == []
    assert before == {path: path.stat().st_mtime_ns for path in store_folder(tiny_dataset).iterdir()}


def test_only_new_and_changed_cases_are_made(tiny_dataset):
    update(tiny_dataset)
    write_image(tiny_dataset.images_un / "scan_9_0000.nii.gz", make_scan(9000)[0])
    write_image(tiny_dataset.images_un / "scan_1_0000.nii.gz", make_scan(9001)[0])
    (store_folder(tiny_dataset) / "scan_2.b2nd").unlink()
    pool, messages = said(tiny_dataset)
    assert len(pool.identifiers) == 4
    assert [line["identifier"] for line in manifest_lines(tiny_dataset)[3:]] == ["scan_1", "scan_2", "scan_9"]
    assert "3 unlabeled cases" in messages[0]
    assert "1 new" in messages[0] and "1 whose image changed" in messages[0] and "1 with missing" in messages[0]


def test_a_touched_scan_is_read_but_not_preprocessed_again(tiny_dataset, monkeypatch):
    update(tiny_dataset)
    files = {path: path.stat().st_mtime_ns for path in store_folder(tiny_dataset).glob("*.b2nd")}
    os.utime(tiny_dataset.images_un / "scan_0_0000.nii.gz", (1, 1))
    _, messages = said(tiny_dataset)
    assert "same voxels" in messages[-1]
    assert files == {path: path.stat().st_mtime_ns for path in store_folder(tiny_dataset).glob("*.b2nd")}
    assert said(tiny_dataset)[1] == []


def test_a_new_direction_alone_is_a_change(tiny_dataset):
    """As when a header is repaired: what is said of the scan's axes, and its pictures, must follow."""
    update(tiny_dataset)
    path = tiny_dataset.images_un / "scan_0_0000.nii.gz"
    image = SimpleITK.ReadImage(str(path))
    image.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    SimpleITK.WriteImage(image, str(path))
    pool, _ = said(tiny_dataset)
    assert any("scan_0 (axes RAS, labeled ones LPS)" in note for note in pool.notes)
    properties = json.loads((store_folder(tiny_dataset) / "scan_0.json").read_text())
    assert properties["sitk_stuff"]["direction"][0] == -1


def test_a_new_spacing_alone_is_a_change(tiny_dataset):
    update(tiny_dataset)
    write_image(tiny_dataset.images_un / "scan_0_0000.nii.gz", make_scan(100)[0], (1.0, 1.0, 2.0))
    _, messages = said(tiny_dataset)
    assert len(messages) == 1
    assert manifest_lines(tiny_dataset)[-1]["spacing"] == [1.0, 1.0, 2.0]


def test_plans_that_preprocess_alike_share_the_folder(tiny_dataset):
    first = update(tiny_dataset)
    second, messages = said(tiny_dataset, plans=tiny_dataset.plans_content("nnUNetPlansTiny"))
    assert messages == []
    assert second.folder == first.folder


def test_plans_that_preprocess_otherwise_make_the_cases_again(tiny_dataset):
    update(tiny_dataset)
    plans = tiny_dataset.plans_content("nnUNetPlans")
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 2.0]
    _, messages = said(tiny_dataset, plans=plans)
    assert "3 made with other plans" in messages[0]
    assert manifest_lines(tiny_dataset)[-1]["shape"][3] == 12


def test_configurations_have_folders_of_their_own(tiny_dataset):
    pool = update(tiny_dataset, configuration="2d")
    assert pool.folder == str(store_folder(tiny_dataset, "2d"))
    assert not store_folder(tiny_dataset).exists()


def test_training_goes_on_without_raw_data(tiny_dataset, monkeypatch):
    expected = update(tiny_dataset, SPLIT_FOLD)
    shutil.rmtree(tiny_dataset.raw)
    gone = update(tiny_dataset, SPLIT_FOLD)
    monkeypatch.delenv("nnUNet_raw")
    unset = update(tiny_dataset, SPLIT_FOLD)
    assert gone.identifiers == unset.identifiers == expected.identifiers
    assert "3 cases preprocessed from it are used" in gone.notes[0]


def test_without_raw_data_stale_cases_are_an_error(tiny_dataset, monkeypatch):
    update(tiny_dataset)
    monkeypatch.delenv("nnUNet_raw")
    plans = tiny_dataset.plans_content("nnUNetPlans")
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 2.0]
    with pytest.raises(UserError, match=r"scan_0, scan_1, scan_2 are not preprocessed .* nnUNet_raw is not set"):
        update(tiny_dataset, plans=plans)


def test_without_raw_data_missing_split_cases_are_an_error(tiny_dataset, monkeypatch):
    update(tiny_dataset)
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(UserError, match="case_3, case_4 are not preprocessed"):
        update(tiny_dataset, SPLIT_FOLD)


def test_cases_taken_out_of_images_un_are_no_longer_used(tiny_dataset):
    update(tiny_dataset)
    (tiny_dataset.images_un / "scan_1_0000.nii.gz").unlink()
    pool = update(tiny_dataset)
    assert pool.identifiers == ["scan_0", "scan_2"]
    assert "no longer in imagesUn" in pool.notes[0]


def test_cases_taken_out_of_images_un_stay_out_where_the_raw_data_are_not(tiny_dataset, monkeypatch, capsys):
    """An annotated scan is moved to imagesTr, then the preprocessed data travel to a node without raw data."""
    update(tiny_dataset)
    path = tiny_dataset.images_un / "scan_1_0000.nii.gz"
    path.rename(elsewhere := tiny_dataset.root / path.name)
    update(tiny_dataset)
    with monkeypatch.context() as patch:
        patch.delenv("nnUNet_raw")
        assert update(tiny_dataset).identifiers == ["scan_0", "scan_2"]
        annotated = FoldCases((*FOLD.labeled, "scan_1"), FOLD.validation)
        assert update(tiny_dataset, annotated).identifiers == ["scan_0", "scan_2"]
    elsewhere.rename(path)
    capsys.readouterr()
    assert update(tiny_dataset).identifiers == ["scan_0", "scan_1", "scan_2"]
    assert "Preprocessing" not in capsys.readouterr().out  # its files were still there
    monkeypatch.delenv("nnUNet_raw")
    assert update(tiny_dataset).identifiers == ["scan_0", "scan_1", "scan_2"]


def test_no_unlabeled_case_says_where_to_put_them(tiny_dataset):
    shutil.rmtree(tiny_dataset.images_un)
    with pytest.raises(UserError) as error:
        update(tiny_dataset)
    for needle in (str(tiny_dataset.images_un), '"unlabeled"', "splits_final.json", "nnUNetTrainerPairSupervised"):
        assert needle in str(error.value)


def test_a_case_of_the_split_without_its_image_is_named(tiny_dataset):
    """Before anything was preprocessed, so that there is no folder for it yet."""
    shutil.rmtree(tiny_dataset.images_un)
    for case in SPLIT_FOLD.unlabeled:
        (tiny_dataset.raw / "imagesTr" / f"{case}_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=f"{SPLIT_FOLD.unlabeled[0]}.* bring the images back"):
        update(tiny_dataset, SPLIT_FOLD)


def test_only_split_cases_is_enough(tiny_dataset):
    shutil.rmtree(tiny_dataset.images_un)
    pool = update(tiny_dataset, SPLIT_FOLD)
    assert (pool.n_from_images_un, pool.n_from_split) == (0, 2)


def test_labels_of_unlabeled_cases_are_never_opened(tiny_dataset):
    """Their labels, preprocessed labels and class_locations are garbage and unreadable, and nothing changes."""
    reference = update(tiny_dataset, SPLIT_FOLD)
    images = {case: blosc2.open(f"{reference.folder}/{case}.b2nd", mode="r")[:] for case in reference.identifiers}
    shutil.rmtree(reference.folder)
    stock = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"
    for case in SPLIT_FOLD.unlabeled:
        for path in (
            tiny_dataset.raw / "labelsTr" / f"{case}.nii.gz",
            tiny_dataset.preprocessed / "gt_segmentations" / f"{case}.nii.gz",
            stock / f"{case}_seg.b2nd",
            stock / f"{case}.pkl",
            stock / f"{case}.b2nd",
        ):
            path.write_bytes(b"garbage")
    pool = update(tiny_dataset, SPLIT_FOLD)
    assert pool.identifiers == reference.identifiers
    for case, image in images.items():
        np.testing.assert_array_equal(blosc2.open(f"{pool.folder}/{case}.b2nd", mode="r")[:], image)
        assert "class_locations" not in (store_folder(tiny_dataset) / f"{case}.json").read_text()


def test_names_with_spaces_unicode_and_links(tiny_dataset, tmp_path):
    write_image(tmp_path / "elsewhere.nii.gz", make_scan(7)[0])
    (tiny_dataset.images_un / "Patient Ä 1_0000.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    write_image(tiny_dataset.images_un / "labeled_cases_0000.nii.gz", make_scan(8)[0])
    pool = update(tiny_dataset)
    assert {"Patient Ä 1", "labeled_cases"} < set(pool.identifiers)
    assert (store_folder(tiny_dataset) / "Patient Ä 1.b2nd").is_file()


def test_nonzero_mask_is_kept_where_normalization_uses_it(tiny_dataset):
    image = make_scan(50)[0]
    image[:, :10] = 0
    image[4, 12, 12] = 0  # a hole, which nnU-Net fills
    write_image(tiny_dataset.images_un / "masked_0000.nii.gz", image)
    image[0, 0, 0] = 1  # keeps the box of nonzero voxels at full size
    write_image(tiny_dataset.images_un / "masked_0000.nii.gz", image)
    plans = tiny_dataset.plans_content("nnUNetPlans")
    plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True]
    pool = update(tiny_dataset, plans=plans)
    assert pool.with_nonzero_mask
    mask = blosc2.open(f"{pool.folder}/masked_nonzero.b2nd", mode="r")[:]
    assert mask.dtype == np.int8
    expected = np.where(image != 0, 0, -1)[None]
    expected[0, 4, 12, 12] = 0
    np.testing.assert_array_equal(mask, expected)
    without = update(tiny_dataset)
    assert not without.with_nonzero_mask
    assert not (store_folder(tiny_dataset) / "masked_nonzero.b2nd").exists()


def test_several_channels_and_several_folds(tiny_dataset):
    folds = [
        FoldCases(("case_0",), ("case_1",), ("case_2", "case_3")),
        FoldCases(("case_2",), ("case_1",), ("case_0", "case_3")),
    ]
    pool = update(tiny_dataset, folds)
    assert pool.identifiers == ["case_0", "case_2", "case_3", "scan_0", "scan_1", "scan_2"]


def _wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def test_waits_for_another_process_and_says_so_once(tiny_dataset):
    folder = store_folder(tiny_dataset)
    folder.mkdir()
    messages: list[str] = []
    lock = FileLock(folder / LOCK_FILE, thread_local=False)
    with lock:
        thread = threading.Thread(target=lambda: update(tiny_dataset, say=messages.append))
        thread.start()
        _wait_until(lambda: messages)
        time.sleep(1)  # in which a second message could follow
        assert [message for message in messages if "waiting" in message] == messages
        assert len(messages) == 1
        assert not (folder / "manifest.jsonl").exists()
    thread.join(60)
    assert not thread.is_alive()
    assert len(manifest_lines(tiny_dataset)) == 3


def test_after_waiting_the_others_work_is_not_repeated(tiny_dataset, tmp_path):
    update(tiny_dataset)
    folder = store_folder(tiny_dataset)
    shutil.move(folder, tmp_path / "made_by_the_other")
    folder.mkdir()
    messages: list[str] = []
    with FileLock(folder / LOCK_FILE, thread_local=False):
        thread = threading.Thread(target=lambda: update(tiny_dataset, say=messages.append))
        thread.start()
        _wait_until(lambda: messages)
        for path in (tmp_path / "made_by_the_other").iterdir():
            if path.name != LOCK_FILE:
                shutil.move(path, folder)
    thread.join(60)
    assert not thread.is_alive()
    assert len(messages) == 1 and "waiting" in messages[0]
    assert len(manifest_lines(tiny_dataset)) == 3


def test_leftovers_of_a_killed_run_go_away(tiny_dataset):
    folder = store_folder(tiny_dataset)
    folder.mkdir()
    (folder / ".writing-1234.b2nd").write_bytes(b"half")
    update(tiny_dataset)
    assert not list(folder.glob(".writing-*"))


def test_a_folder_that_can_not_be_written_to_is_named(tiny_dataset):
    store_folder(tiny_dataset).write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"_unlabeled.* can't be"):
        update(tiny_dataset)


def test_many_links_are_listed_in_linear_time(tiny_dataset, monkeypatch):
    """Listing opens no scan; scripts/benchmark_startup.py measures 100,000."""
    monkeypatch.setattr("nnunet_dhc.nnunet.unlabeled.store_update.StoreUpdate.run", lambda *arguments: None)
    target = tiny_dataset.images_un / "scan_0_0000.nii.gz"
    for number in range(3000):
        os.symlink(target, tiny_dataset.images_un / f"link_{number}_0000.nii.gz")
    start = time.process_time()
    with pytest.raises(UserError, match=r"link_0, .* and 2993 more"):
        update(tiny_dataset)
    assert time.process_time() - start < 2  # 0.1 s on one core; quadratic listing takes far longer


def test_little_space_is_said_before_the_work(tiny_dataset, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    pool, messages = said(tiny_dataset)
    assert any(message.startswith("0.0 GB are free for ") for message in messages)
    assert pool.identifiers == ["scan_0", "scan_1", "scan_2"]  # it was a warning
    assert not any("GB are free" in message for message in said(tiny_dataset)[1])  # nothing is left to do


def test_enough_space_is_no_topic(tiny_dataset):
    assert not any("GB are free" in message for message in said(tiny_dataset)[1])
