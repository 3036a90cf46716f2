# SPDX-License-Identifier: Apache-2.0
"""Every fault that a scan in imagesUn can have, made on disk, and the one line that names it."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import SimpleITK
import tifffile
from bring_up_to_date import manifest_lines, store_folder, update
from PIL import Image
from tiny_data import make_scan, write_image

from nnunet_dhc import nifti_integrity
from nnunet_dhc.errors import UserError
from nnunet_dhc.nifti_integrity import damage_of_nifti
from nnunet_dhc.nnunet.unlabeled import case_preprocessing
from nnunet_dhc.nnunet.unlabeled.scan_checks import BadScan, read_checked


def add(dataset, name: str, array: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> None:
    write_image(dataset.images_un / f"{name}.nii.gz", array, spacing)


def two_channels(dataset) -> dict:
    """Plans and dataset.json for two channels, and a second channel for the scans that are there."""
    dataset_json = dataset.dataset_json
    dataset_json["channel_names"] = {"0": "T1", "1": "T2"}
    (dataset.preprocessed / "dataset.json").write_text(json.dumps(dataset_json))
    for number, scan in enumerate(dataset.unlabeled):
        add(dataset, f"{scan}_0001", make_scan(200 + number)[0])
    plans = dataset.plans_content("nnUNetPlans")
    configuration = plans["configurations"]["3d_fullres"]
    configuration["normalization_schemes"] *= 2
    configuration["use_mask_for_norm"] *= 2
    intensities = plans["foreground_intensity_properties_per_channel"]
    intensities["1"] = intensities["0"]
    return plans


def refusal(dataset, **options) -> str:
    with pytest.raises(UserError) as error:
        update(dataset, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def make_every_fault(dataset) -> dict[str, str]:
    """Put one scan per fault into imagesUn; returns what must be said about each."""
    image = make_scan(1)[0].astype(np.float32)
    broken = image.copy()
    broken[0, 0, :3] = np.nan
    broken[1, 1, 1] = np.inf
    add(dataset, "nan_0000", broken)
    add(dataset, "constant_0000", np.full_like(image, 7))
    add(dataset, "zero_0000", np.zeros_like(image))
    add(dataset, "flat_0000", image[0])
    add(dataset, "slice_0000", image[:1])
    add(dataset, "time_0000", np.stack([image, image]))
    add(dataset, "plain", image)
    add(dataset, "extra_0000", image)
    add(dataset, "extra_0001", image)
    add(dataset, "gap_0001", image)
    whole = (dataset.images_un / "scan_0_0000.nii.gz").read_bytes()
    (dataset.images_un / "truncated_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (dataset.images_un / "text_0000.nii.gz").write_text("not an image")
    (dataset.images_un / "empty_0000.nii.gz").touch()
    (dataset.images_un / "notes.docx").write_text("x")
    return {
        "nan": "3 NaN and 1 infinite voxels",
        "constant": "every voxel is 7",
        "zero": "every voxel is 0",
        "flat": "is 2D",
        "slice": "is 2D",
        "time": "has 2 channels in 1 file",
        "imagesUn/plain.nii.gz": "rename it to plain_0000.nii.gz",
        "extra": "extra channel",
        "gap": "lacks the channel _0000",
        "truncated": "is truncated",
        "text": "no readable NIfTI file",
        "empty": "empty",
        "imagesUn/notes.docx": "does not end in .nii.gz",
    }


def test_every_bad_scan_is_listed_at_once_and_good_ones_are_kept(tiny_dataset):
    faults = make_every_fault(tiny_dataset)
    message = refusal(tiny_dataset)
    assert f"{len(faults)} bad unlabeled scans" in message
    assert "and 3 more" in message
    assert "--skip-bad" in message and "-d Dataset999_Tiny -c 3d_fullres" in message
    listed = json.loads((store_folder(tiny_dataset) / "bad_cases.json").read_text())
    assert set(listed) == set(faults)
    for name, needle in faults.items():
        assert needle in listed[name], name
    assert [line["identifier"] for line in manifest_lines(tiny_dataset)] == tiny_dataset.unlabeled
    assert not list(store_folder(tiny_dataset).glob(".writing-*"))


def test_skip_bad_excludes_them_for_training_too(tiny_dataset):
    faults = make_every_fault(tiny_dataset)
    pool = update(tiny_dataset, skip_bad=True)
    assert pool.identifiers == tiny_dataset.unlabeled
    assert set(pool.excluded) == set(faults)
    again = update(tiny_dataset)
    assert again.identifiers == tiny_dataset.unlabeled
    assert again.excluded == pool.excluded
    note, = (note for note in again.notes if note.startswith("Bad scans are excluded ("))
    assert f"): {sorted(faults)[0]}, " in note and note.endswith("bad_cases.json lists all.")
    add(tiny_dataset, "later_0000", make_scan(501)[0])
    assert "later" in update(tiny_dataset).identifiers
    assert set(json.loads((store_folder(tiny_dataset) / "bad_cases.json").read_text())) == set(faults)


def test_other_plans_judge_an_excluded_scan_anew(tiny_dataset):
    """What one reader or spacing can't do, another may."""
    add(tiny_dataset, "scan_1_0000", np.zeros((28, 26, 24), np.float32))
    update(tiny_dataset, skip_bad=True)
    plans = tiny_dataset.plans_content("nnUNetPlans")
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 2.0]
    with pytest.raises(UserError, match="1 bad unlabeled scan: imagesUn/scan_1"):
        update(tiny_dataset, plans=plans)
    assert set(update(tiny_dataset, plans=plans, skip_bad=True).excluded) == {"scan_1"}


def test_a_repaired_scan_comes_back(tiny_dataset):
    add(tiny_dataset, "scan_1_0000", np.zeros((28, 26, 24), np.float32))
    assert update(tiny_dataset, skip_bad=True).identifiers == ["scan_0", "scan_2"]
    add(tiny_dataset, "scan_1_0000", make_scan(500)[0])
    assert update(tiny_dataset).identifiers == tiny_dataset.unlabeled
    assert not (store_folder(tiny_dataset) / "bad_cases.json").exists()


def test_all_scans_excluded_is_an_error(tiny_dataset):
    for scan in tiny_dataset.unlabeled:
        add(tiny_dataset, f"{scan}_0000", np.zeros((28, 26, 24), np.float32))
    assert "All 3 unlabeled cases are excluded" in refusal(tiny_dataset, skip_bad=True)


def test_channels_must_be_complete_and_agree(tiny_dataset):
    plans = two_channels(tiny_dataset)
    assert len(update(tiny_dataset, plans=plans).identifiers) == 3
    image = make_scan(3)[0]
    add(tiny_dataset, "one_0000", image)
    add(tiny_dataset, "shape_0000", image)
    add(tiny_dataset, "shape_0001", image[:, :20])
    add(tiny_dataset, "spacing_0000", image)
    add(tiny_dataset, "spacing_0001", make_scan(4)[0], (1, 1, 2))
    add(tiny_dataset, "three_0000", image)
    add(tiny_dataset, "three_0001", image)
    add(tiny_dataset, "three_0002", image)
    message = refusal(tiny_dataset, plans=plans)
    assert "imagesUn/one lacks the channel _0001; dataset.json names 2" in message
    assert "imagesUn/shape has channels that differ in shape" in message
    assert "imagesUn/spacing has channels that differ in spacing" in message
    assert "imagesUn/three has an extra channel" in message


def test_channels_at_another_origin_are_a_note_as_for_nnunet(tiny_dataset, capsys):
    plans = two_channels(tiny_dataset)
    path = str(tiny_dataset.images_un / "scan_1_0001.nii.gz")
    image = SimpleITK.ReadImage(path)
    image.SetOrigin((5.0, 0.0, 0.0))
    SimpleITK.WriteImage(image, path)
    capsys.readouterr()
    pool = update(tiny_dataset, plans=plans)
    assert pool.notes == ["Its channels differ in origin in 1 scan: scan_1."]
    assert "WARNING" not in capsys.readouterr().out


def test_a_volume_in_a_2d_dataset(tiny_dataset):
    plans = tiny_dataset.plans_content("nnUNetPlans")
    plans["original_median_shape_after_transp"] = [1, 26, 24]
    assert "imagesUn/scan_0 is 3D (shape 28x26x24), but the dataset is 2D" in refusal(
        tiny_dataset, plans=plans, configuration="2d"
    )


def test_scans_of_the_split_are_checked_too(tiny_dataset):
    from bring_up_to_date import SPLIT_FOLD

    (tiny_dataset.raw / "imagesTr" / "case_3_0000.nii.gz").write_text("broken")
    with pytest.raises(UserError, match="imagesTr/case_3 is no readable NIfTI"):
        update(tiny_dataset, SPLIT_FOLD)


def test_what_a_preprocessor_can_not_do_is_a_bad_scan(tiny_dataset):
    image = make_scan(2)[0].astype(np.float32)
    image[0, 0, 0] = -5
    plans = tiny_dataset.plans_content("nnUNetPlans")
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["RGBTo01Normalization"]
    message = refusal(tiny_dataset, plans=plans)
    assert "can't be preprocessed (AssertionError: RGB images" in message


def test_full_disk_is_one_line_and_keeps_what_is_finished(tiny_dataset, monkeypatch):
    written = []
    write = case_preprocessing.write_and_sync

    def until_full(path, content):
        if len(written) == 3:  # image and properties of the first case, image of the second
            path.write_bytes(content[:10])
            path.unlink()
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, content)

    monkeypatch.setattr(case_preprocessing, "write_and_sync", until_full)
    message = refusal(tiny_dataset)
    assert "disk is full" in message and str(store_folder(tiny_dataset)) in message
    assert "1 of 3 cases are finished and kept" in message
    assert not list(store_folder(tiny_dataset).glob(".writing-*"))
    monkeypatch.setattr(case_preprocessing, "write_and_sync", write)
    assert len(update(tiny_dataset).identifiers) == 3
    assert len(manifest_lines(tiny_dataset)) == 3


@pytest.mark.parametrize("keep", [0.5, 0.99])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_truncated_files_that_itk_reads_as_zeros(tmp_path, ending, keep):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    path = tmp_path / f"a_0000{ending}"
    write_image(path, make_scan(1)[0])
    assert read_checked(SimpleITKIO(), [str(path)], 1, False, [])[0].shape == (1, 28, 26, 24)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(BadScan, match=r"truncated|can't be read"):
        read_checked(SimpleITKIO(), [str(path)], 1, False, [])


def test_single_slices_lie_along_the_axis_that_the_plans_put_first(tmp_path):
    """A sagittal slice has its single layer along the last axis of the file."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    path = tmp_path / "a_0000.nii.gz"
    write_image(path, make_scan(1)[0][:, :, 12:13])
    assert read_checked(SimpleITKIO(), [str(path)], 1, True, [], slice_axis=2)[0].shape == (1, 28, 26, 1)
    with pytest.raises(BadScan, match="is 2D"):
        read_checked(SimpleITKIO(), [str(path)], 1, False, [], slice_axis=2)
    with pytest.raises(BadScan, match="is 3D"):
        read_checked(SimpleITKIO(), [str(path)], 1, True, [], slice_axis=0)


def test_flipped_bits_in_a_compressed_file(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_image(path, make_scan(1)[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert "damaged" in (damage_of_nifti(str(path)) or "") or "truncated" in (damage_of_nifti(str(path)) or "")


def test_a_scan_that_the_disk_does_not_give_is_named(tmp_path, monkeypatch):
    """Else the store would be said to be unwritable, and no scan would be named."""
    path = tmp_path / "a.nii.gz"
    write_image(path, make_scan(1)[0])

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(nifti_integrity, "_scan", fail)
    assert damage_of_nifti(str(path)) == "can't be read (Input/output error)"


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha"])
def test_numbers_that_are_none_are_counted_in_every_format(tmp_path, ending):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    image = make_scan(1)[0].astype(np.float32)
    image[3, 4, :2] = np.nan
    image[5, 6, 7] = -np.inf
    write_image(tmp_path / f"a{ending}", image)
    with pytest.raises(BadScan, match="has 2 NaN and 1 infinite voxels of 17472"):
        read_checked(SimpleITKIO(), [str(tmp_path / f"a{ending}")], 1, False, [])


def test_a_really_full_device_is_an_os_error(tmp_path):
    from nnunet_dhc.nnunet.host.atomic_files import write_and_sync

    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        write_and_sync(tmp_path / "full", b"x" * 100)
    assert error.value.errno == errno.ENOSPC


def test_no_memory_is_one_line_with_advice(tiny_dataset, monkeypatch):
    def hungry(*_arguments, **_options):
        raise MemoryError

    monkeypatch.setattr(case_preprocessing, "read_checked", hungry)
    message = refusal(tiny_dataset)
    assert "out of memory" in message and "-np 1" in message


def test_a_scan_may_have_an_empty_channel_and_it_is_said(tiny_dataset):
    plans = two_channels(tiny_dataset)
    add(tiny_dataset, "scan_1_0001", np.zeros((28, 26, 24), np.float32))
    pool = update(tiny_dataset, plans=plans)
    assert pool.identifiers == tiny_dataset.unlabeled
    assert "Channel _0001 is constant, as if it were missing, in 1 scan: scan_1." in pool.notes


def test_a_tiff_without_its_spacing_is_named(tmp_path):
    from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

    path = tmp_path / "scan_0000.tif"
    tifffile.imwrite(path, make_scan(1)[0].astype(np.float32))
    warnings: list[str] = []
    read_checked(Tiff3DIO(), [str(path)], 1, False, warnings)
    assert warnings == ["no .json with the spacing, so 1 mm is assumed,"]
    (tmp_path / "scan.json").write_text('{"spacing": [2, 1, 1]}')
    warnings.clear()
    assert read_checked(Tiff3DIO(), [str(path)], 1, False, warnings)[1]["spacing"] == [2, 1, 1] and not warnings


def test_a_gray_picture_in_a_dataset_of_colors(tmp_path):
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a_0000.png")
    with pytest.raises(BadScan, match=r"has 1 channel in 1 file, dataset.json names 3: convert it to colors"):
        read_checked(NaturalImage2DIO(), [str(tmp_path / "a_0000.png")], 3, True, [])
