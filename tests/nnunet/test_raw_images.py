# SPDX-License-Identifier: Apache-2.0
"""Listing scans: grouping by case and channel, and every fault that file names alone show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunet_dhc.nnunet.host.raw_images import list_image_folder, list_training_images, training_identifiers

TWO_CHANNELS = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "imagesUn"
    folder.mkdir()
    return folder


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")


def problems(folder: Path, dataset_json=TWO_CHANNELS) -> dict[str, str | None]:
    return {name: case.problem for name, case in list_image_folder(folder, dataset_json).items()}


def test_groups_channels_in_order_whatever_the_names(images):
    touch(images, "b_0001.nii.gz", "b_0000.nii.gz", "ä ö_0000.nii.gz", "ä ö_0001.nii.gz", "x.y_1_0000.nii.gz",
          "x.y_1_0001.nii.gz")
    cases = list_image_folder(images, TWO_CHANNELS)
    assert set(cases) == {"b", "ä ö", "x.y_1"}
    assert [Path(file).name for file in cases["b"].files] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert [name for name, _, _ in cases["b"].sources] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert all(case.problem is None and case.origin == "imagesUn" for case in cases.values())


def test_names_every_fault_that_names_show(images):
    touch(images, "gap_0001.nii.gz", "more_0000.nii.gz", "more_0001.nii.gz", "more_0002.nii.gz", "plain.nii.gz",
          "scan_0000.nrrd", "photo.dcm")
    (images / "empty_0000.nii.gz").touch()
    (images / "series").mkdir()
    (images / "folder_0000.nii.gz").mkdir()
    (images / "link_0000.nii.gz").symlink_to(images / "nowhere")
    found = problems(images)
    assert "lacks the channel _0000" in found["gap"]
    assert "extra channel (_0002.nii.gz)" in found["more"]
    assert "rename it to plain_0000.nii.gz" in found["imagesUn/plain.nii.gz"]
    assert "does not end in .nii.gz" in found["imagesUn/scan_0000.nrrd"]
    assert "does not end in .nii.gz" in found["imagesUn/photo.dcm"]
    assert "empty" in found["empty"]
    assert "is a folder" in found["imagesUn/series"]
    assert "is no file" in found["folder"]
    assert "broken link" in found["link"]


def test_a_name_that_is_no_text_is_a_fault_and_not_the_end(images):
    """As from a disk of another system; SimpleITK ends the process at such a path."""
    with open(os.fsencode(images) + b"/caf\xe9_0000.nii.gz", "wb") as file:
        file.write(b"x")
    assert "no valid UTF-8" in problems(images)[os.fsdecode(b"caf\xe9")]


def test_hidden_and_system_files_are_no_scans(images):
    touch(images, ".DS_Store", "._a_0000.nii.gz", "Thumbs.db", "desktop.ini")
    assert problems(images) == {}


def test_follows_links_to_scans(images, tmp_path):
    (tmp_path / "elsewhere.nii.gz").write_bytes(b"1234")
    (images / "a_0000.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    case = list_image_folder(images, {**TWO_CHANNELS, "channel_names": {"0": "CT"}})["a"]
    assert case.problem is None
    assert case.sources[0][1] == 4


def test_tiff_spacing_files_belong_to_their_case(images):
    dataset_json = {"channel_names": {"0": "EM"}, "file_ending": ".tif"}
    touch(images, "a_0000.tif", "a.json")
    case = list_image_folder(images, dataset_json)["a"]
    assert [Path(file).name for file in case.files] == ["a_0000.tif"]
    assert [name for name, _, _ in case.sources] == ["a_0000.tif", "a.json"]


def test_training_images_from_the_folder_and_from_the_mapping(tmp_path, monkeypatch):
    folder = tmp_path / "imagesTr"
    folder.mkdir()
    touch(folder, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    assert training_identifiers(tmp_path, TWO_CHANNELS) == ["a", "b"]
    assert set(list_training_images(tmp_path, TWO_CHANNELS, ["a", "gone"])) == {"a"}
    monkeypatch.setenv("ELSEWHERE", str(folder))
    mapping = {
        "m": {"images": ["imagesTr/a_0000.nii.gz", "$ELSEWHERE/b_0001.nii.gz"], "label": "labelsTr/m.nii.gz"},
        "n": {"images": ["imagesTr/gone_0000.nii.gz"], "label": "labelsTr/n.nii.gz"},
    }
    cases = list_training_images(tmp_path, {**TWO_CHANNELS, "dataset": mapping}, ["m", "n"])
    assert set(cases) == {"m"}
    assert [os.path.basename(file) for file in cases["m"].files] == ["a_0000.nii.gz", "b_0001.nii.gz"]
    assert training_identifiers(tmp_path, {**TWO_CHANNELS, "dataset": mapping}) == ["m", "n"]
