# SPDX-License-Identifier: Apache-2.0
"""Scores of a case: golden values, empty structures, regions, ignored voxels, crops."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from made_up import SPACING_ZYX, boxes, dataset_json, write_volume
from PIL import Image
from scipy import ndimage

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting import metrics
from nnunet_dhc.reporting.image_files import read_label_map
from nnunet_dhc.reporting.metrics import score_arrays, score_files
from nnunet_dhc.reporting.oriented_volumes import read_oriented
from nnunet_dhc.reporting.protocols import DHC, STANDARD
from nnunet_dhc.reporting.structures import label_space

LABELS = label_space(dataset_json())


def _scores(prediction, reference, labels=LABELS, protocol=STANDARD, spacing=SPACING_ZYX):
    return score_arrays(prediction, reference, spacing, labels, protocol)


def test_a_box_moved_by_one_voxel():
    found = _scores(boxes(shift=1), boxes())["1"]
    # 4 x 6 x 6 voxels, 4 x 6 x 5 in common.
    assert found["dice"] == pytest.approx(2 * 120 / (144 + 144))
    # 144 voxels of 2 mm3.
    assert found["volume_reference_ml"] == pytest.approx(0.288)
    # Moved by 1 mm along a face: no surface voxel is farther than 1 mm from the other surface.
    assert found["hd95_mm"] == pytest.approx(1.0)
    assert not found["missed"]
    assert not found["spurious"]


def test_a_missed_a_spurious_and_an_absent_structure():
    missed = _scores(boxes(rare=False), boxes())["3"]
    assert (missed["dice"], missed["hd95_mm"], missed["missed"], missed["spurious"]) == (0.0, None, True, False)
    spurious = _scores(boxes(), boxes(rare=False))["3"]
    assert (spurious["dice"], spurious["assd_mm"], spurious["missed"], spurious["spurious"]) == (0.0, None, False, True)
    absent = _scores(boxes(rare=False), boxes(rare=False))["3"]
    assert (absent["dice"], absent["hd95_mm"], absent["missed"], absent["spurious"]) == (None, None, False, False)


@pytest.mark.parametrize("dtype", [np.uint64, np.uint32, np.int8])
def test_any_integer_type_scores_alike(dtype):
    assert _scores(boxes(shift=1).astype(dtype), boxes()) == _scores(boxes(shift=1), boxes())
    assert _scores(boxes(shift=1), boxes().astype(dtype)) == _scores(boxes(shift=1), boxes())


def test_empty_label_maps():
    empty = np.zeros((4, 5, 6), dtype=np.uint8)
    assert all(values["dice"] is None for values in _scores(empty, empty).values())


@pytest.mark.parametrize(("prediction", "reference", "expected"), [
    # The table of the released evaluation code: 100 Dice, one-directional distance in voxels, 0/128, 0/128 and 1/0.
    (boxes(rare=False), boxes(), (0.0, 128.0)),
    (boxes(), boxes(rare=False), (0.0, 128.0)),
    (boxes(rare=False), boxes(rare=False), (1.0, 0.0)),
    # 1 x 2 x 2 voxels moved by one: 2 in common; two of the four surface voxels are 1 voxel away.
    (boxes(shift=1), boxes(), (50.0, 0.5)),
])
def test_protocol_of_the_paper(prediction, reference, expected):
    found = _scores(prediction, reference, protocol=DHC)["3"]
    assert (found["dice_dhc"], found["asd_voxels"]) == expected


def test_protocol_of_the_paper_ignores_spacing_and_looks_one_way():
    reference = np.zeros((6, 6, 6), dtype=np.uint8)
    reference[1, 1, 1] = reference[5, 5, 5] = 3
    prediction = np.zeros_like(reference)
    prediction[3, 1, 1] = 3
    found = _scores(prediction, reference, protocol=DHC, spacing=(9.0, 9.0, 9.0))["3"]
    assert found["asd_voxels"] == 2.0  # the far voxel of the reference is not looked at


def test_protocol_of_the_paper_is_medpys_asd():
    binary = pytest.importorskip("medpy.metric.binary")  # what the authors call
    rng = np.random.default_rng(3)
    reference = (ndimage.gaussian_filter(rng.normal(size=(16, 20, 20)), 2) > 0.05).astype(np.uint8)
    prediction = np.roll(reference, (1, 2, 0), axis=(0, 1, 2))
    found = _scores(prediction, reference, protocol=DHC)["1"]
    assert found["asd_voxels"] == pytest.approx(binary.asd(prediction, reference), abs=1e-9)
    assert found["dice_dhc"] == pytest.approx(100 * binary.dc(prediction, reference), abs=1e-9)


def test_regions_are_unions_of_labels():
    labels = label_space(dataset_json(labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rare": [3]},
                                      regions_class_order=[1, 2, 3]))
    assert [item.key for item in labels.structures] == ["(1, 2, 3)", "(2, 3)", "3"]
    swapped = boxes()
    swapped[boxes() == 2] = 3  # another label of the same regions
    found = _scores(swapped, boxes(), labels)
    assert found["(1, 2, 3)"]["dice"] == 1.0
    assert found["(2, 3)"]["dice"] == 1.0
    assert found["3"]["dice"] < 1.0


def test_ignored_voxels_count_nowhere():
    labels = label_space(dataset_json(labels={"background": 0, "large_box": 1, "small_box": 2, "ignore": 3}))
    assert labels.ignore_label == 3
    reference = boxes(rare=False)
    reference[:, :, 8:] = 3
    prediction = boxes(rare=False)
    prediction[0:8, 0:16, 10:16] = 1  # all of it ignored
    found = _scores(prediction, reference, labels)
    assert found["1"]["dice"] == 1.0
    assert found["1"]["hd95_mm"] == 0.0


@pytest.mark.parametrize("labels_of_file", [
    {"background": 0, "a": 1, "b": 2, "c": 3},
    {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rare": [3]},
    {"background": 0, "a": 1, "b": 2, "ignore": 3},
])
def test_dice_is_nnunets(tmp_path, labels_of_file):
    """The same Dice, NaN included, as nnU-Net's own evaluation."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    rng = np.random.default_rng(0)
    reference = rng.integers(0, 4, size=(6, 9, 9)).astype(np.uint8)
    prediction = np.where(rng.random(reference.shape) < 0.3, rng.integers(0, 3, size=reference.shape), reference)
    prediction[prediction == 3] = 1
    files = [str(write_volume(tmp_path / name, voxels.astype(np.uint8)))
             for name, voxels in (("reference.nii.gz", reference), ("prediction.nii.gz", prediction))]
    labels = label_space(dataset_json(labels=labels_of_file))
    keys = [item.labels if len(item.labels) > 1 else item.labels[0] for item in labels.structures]
    expected = compute_metrics(files[0], files[1], SimpleITKIO(), keys, labels.ignore_label)["metrics"]
    found = score_arrays(prediction, reference, SPACING_ZYX, labels, STANDARD)
    for key, item in zip(keys, labels.structures, strict=True):
        value = found[item.key]["dice"]
        assert (np.nan if value is None else value) == pytest.approx(expected[key]["Dice"], nan_ok=True)


def test_where_the_structures_lie_does_not_matter():
    """The crops: the same boxes in a corner of a large image, and filling a tight one, score the same."""
    tight = np.s_[1:7, 1:12, 1:14]
    inside = _scores(boxes(shift=1)[tight], boxes()[tight])
    large = [np.pad(voxels, 20) for voxels in (boxes(shift=1), boxes())]
    outside = _scores(*large)
    for key in inside:
        assert inside[key]["hd95_mm"] == pytest.approx(outside[key]["hd95_mm"])
        assert inside[key]["assd_mm"] == pytest.approx(outside[key]["assd_mm"])
        assert inside[key]["dice"] == outside[key]["dice"]


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_slabs_make_no_difference(monkeypatch, rows):
    expected = _scores(boxes(shift=1), boxes())
    monkeypatch.setattr(metrics, "_SLAB_VOXELS", rows * 11 * 12)  # the foreground has 6 x 11 x 12 voxels
    assert _scores(boxes(shift=1), boxes()) == expected


def test_a_structure_in_one_slice_of_a_3d_image_stays_3d():
    reference = np.zeros((6, 9, 9), dtype=np.uint8)
    reference[3, 2:7, 2:7] = 1
    prediction = reference.copy()
    prediction[3, 4, 4] = 0  # its middle: a surface in 3D, where a slice has no inside
    found = _scores(prediction, reference)["1"]
    assert found["assd_mm"] == pytest.approx(1.0 / (24 + 25))  # one voxel of 25 lies 1 mm off


def test_files_of_other_shapes_are_refused(tmp_path):
    one = write_volume(tmp_path / "a.nii.gz", boxes())
    other = write_volume(tmp_path / "b.nii.gz", boxes()[1:])
    with pytest.raises(UserError, match=r"a\.nii\.gz has shape"):
        score_files(one, other, LABELS, STANDARD)


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.nii.gz"
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.nii\.gz"):
        read_label_map(path)


@pytest.mark.parametrize(("ending", "message"), [
    (".nii.gz", "is truncated"), (".nii", "is truncated .8312 of 8352 bytes"),
    (".nrrd.gz", "is truncated"),
    (".mha", "can't be read .* is the file complete"), (".nrrd", "can't be read .* is the file complete"),
])
def test_a_file_that_was_cut_off_is_named(tmp_path, ending, message):
    """ITK gives NIfTI files without an error, the rest as background."""
    voxels = np.random.default_rng(0).integers(0, 4, (20, 20, 20), dtype=np.uint8)
    if ending == ".nrrd.gz":
        path = tmp_path / f"cut{ending}"
        path.write_bytes(gzip.compress(write_volume(tmp_path / "whole.nrrd", voxels).read_bytes()))
    else:
        path = write_volume(tmp_path / f"cut{ending}", voxels)
        read_label_map(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"cut\{ending} {message}"):
        read_label_map(path)


def test_a_file_that_was_cut_before_it_was_compressed(tmp_path):
    """Its checksum is right, its length is not that of the header."""
    content = write_volume(tmp_path / "whole.nii", boxes()).read_bytes()
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(gzip.compress(content[:-40]))
    with pytest.raises(UserError, match=rf"cut\.nii\.gz is truncated .{len(content) - 40} of {len(content)} bytes"):
        read_label_map(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_nibabel_refuses_is_no_damage(tmp_path, ending):
    """A quaternion whose squares add up to a little over 1; ITK, and so nnU-Net, reads it."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((6, 5, 4))
    header.set_data_dtype(np.uint8)
    header["qform_code"], header["quatern_b"], header["quatern_c"] = 1, 0.70711, 0.70712
    header["vox_offset"], header["magic"], header["pixdim"][:4] = 352, b"n+1", 1
    content = header.binaryblock + bytes(4) + bytes(119) + b"\1"
    path = tmp_path / f"map{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    with pytest.raises(ValueError, match="should be positive"):
        nibabel.load(path)
    assert read_label_map(path)[0].sum() == 1


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.nii\.gz can't be read \(No such file"):
        read_label_map(tmp_path / "gone.nii.gz")


def test_a_file_that_is_not_compressed_as_its_name_says(tmp_path):
    path = write_volume(tmp_path / "plain.nii", boxes()).rename(tmp_path / "plain.nii.gz")
    with pytest.raises(UserError, match=r"plain\.nii\.gz is no gzip file.* compress it with gzip"):
        read_label_map(path)


def test_values_between_labels_are_refused(tmp_path):
    path = write_volume(tmp_path / "soft.nii.gz", np.full((3, 3, 3), 0.5, dtype=np.float32))
    with pytest.raises(UserError, match="not whole numbers"):
        read_label_map(path)


def test_a_sheared_nifti_keeps_its_spacing(tmp_path):
    """ITK refuses directions that are not orthonormal; nibabel reads such files."""
    affine = np.diag([1.0, 2.0, 5.0, 1.0])
    affine[0, 1] = 0.6
    nibabel.save(nibabel.Nifti1Image(boxes().transpose(), affine), tmp_path / "sheared.nii.gz")
    voxels, spacing = read_label_map(tmp_path / "sheared.nii.gz")
    assert np.array_equal(voxels, boxes())
    assert spacing == pytest.approx((5.0, np.hypot(2.0, 0.6), 1.0))


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR"])
def test_pictures_show_the_patient_alike_however_the_file_is_stored(tmp_path, axes):
    """Foot to head, front to back, right to left."""
    stored = np.zeros((4, 5, 6), np.uint8)
    stored[3, 1, 0] = 1  # in a file with the axes L, P, S: at the head, near the front, on the right
    image = sitk.GetImageFromArray(stored)
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(sitk.DICOMOrient(image, axes), str(tmp_path / "case.nii.gz"))
    found = read_oriented(tmp_path / "case.nii.gz")
    assert np.array_equal(found.voxels, stored)
    assert found.spacing == (3.0, 2.0, 1.0)


@pytest.mark.parametrize("ending", [".tif", ".TIF"])
def test_a_tiff_has_the_spacing_of_its_json_file(tmp_path, ending):
    sitk.WriteImage(sitk.GetImageFromArray(boxes()), str(tmp_path / f"case{ending}"))
    (tmp_path / "case.json").write_text('{"spacing": [5.0, 1.0, 2.0]}')
    assert read_label_map(tmp_path / f"case{ending}")[1] == (5.0, 1.0, 2.0)
    assert read_oriented(tmp_path / f"case{ending}").spacing == (5.0, 1.0, 2.0)


def test_a_reference_tiff_without_its_json_file_has_the_spacing_of_the_prediction(tmp_path):
    for name, shift in (("reference", 0), ("prediction", 1)):
        (tmp_path / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(boxes(shift)), str(tmp_path / name / "case.tif"))
    files = tmp_path / "prediction" / "case.tif", tmp_path / "reference" / "case.tif"
    assert score_files(*files, LABELS, STANDARD)["1"]["hd95_mm"] == 1.0
    (tmp_path / "prediction" / "case.json").write_text('{"spacing": [1.0, 1.0, 5.0]}')
    assert score_files(*files, LABELS, STANDARD)["1"]["hd95_mm"] == 5.0


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_pictures_count_in_pixels(tmp_path, ending):
    """Whatever resolution they are to be printed at."""
    for name, shift in (("reference", 0), ("prediction", 1)):
        picture = Image.fromarray(boxes(shift)[2])
        picture.save(tmp_path / f"{name}{ending}", dpi=(300, 300))
    found = score_files(tmp_path / f"prediction{ending}", tmp_path / f"reference{ending}", LABELS, STANDARD)["1"]
    assert found["dice"] == pytest.approx(5 / 6) and found["hd95_mm"] == 1.0


def test_a_mask_of_one_bit_a_pixel_holds_0_and_1(tmp_path):
    mask = boxes()[2] == 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "prediction.png")
    found = score_files(tmp_path / "prediction.png", tmp_path / "mask.png", LABELS, STANDARD)["1"]
    assert found["dice"] == 1.0


def test_what_is_no_label_map_of_the_dataset_is_refused(tmp_path):
    Image.fromarray(boxes()[2]).save(tmp_path / "prediction.png")
    Image.fromarray((boxes()[2] == 1).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png holds the label 255"):
        score_files(tmp_path / "prediction.png", tmp_path / "mask.png", LABELS, STANDARD)
    Image.fromarray(np.stack([boxes()[2], boxes(1)[2], boxes(2)[2]], axis=-1)).save(tmp_path / "color.png")
    with pytest.raises(UserError, match=r"color\.png is a color picture"):
        score_files(tmp_path / "prediction.png", tmp_path / "color.png", LABELS, STANDARD)
    more = boxes()[2].copy()
    more[-1, -2:] = 77, 200
    Image.fromarray(more).save(tmp_path / "more.png")
    with pytest.raises(UserError, match=r"more\.png holds the label 77, .* name it there under labels, or"):
        score_files(tmp_path / "more.png", tmp_path / "prediction.png", LABELS, STANDARD)
    # a reference may hold structures that this dataset doesn't have
    assert score_files(tmp_path / "prediction.png", tmp_path / "more.png", LABELS, STANDARD)["1"]["dice"] == 1.0
    more[-1, -2:] = 1, 2  # the smaller one is a structure, the other one isn't
    Image.fromarray(more).save(tmp_path / "more.png")
    with pytest.raises(UserError, match=r"more\.png holds the label 2"):
        score_files(tmp_path / "more.png", tmp_path / "more.png",
                    label_space({"labels": {"background": 0, "a": [1, 3], "b": 3, "ignore": 4}}), STANDARD)


def test_distances_have_the_spacing_of_the_reference(tmp_path):
    prediction = write_volume(tmp_path / "p.nii.gz", boxes(1), (9.0, 9.0, 9.0))
    reference = write_volume(tmp_path / "r.nii.gz", boxes())
    found = score_files(prediction, reference, label_space(dataset_json()), STANDARD)["1"]
    assert found["hd95_mm"] == pytest.approx(1.0) and found["volume_reference_ml"] == pytest.approx(0.288)
