# SPDX-License-Identifier: Apache-2.0
"""Scans that are nothing like the labeled ones are named, not refused; absurd sizes are refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
from bring_up_to_date import update
from tiny_data import make_scan, write_image

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.unlabeled.leak_check import LabeledHashes
from nnunet_dhc.nnunet.unlabeled.odd_scans import from_json, orientation, summarize, why_odd


def ct(seed: int, low: float = -1000, high: float = 300, shape=(20, 30, 30), spacing=(5.0, 0.8, 0.8), stuff=None):
    data = np.random.default_rng(seed).uniform(low, high, (1, *shape))
    return summarize(data, {"spacing": spacing, **(stuff or {})})


LABELED = [ct(number) for number in range(3)]


def test_a_scan_like_the_others_is_not_odd():
    assert why_odd(ct(9, spacing=(3.0, 1.0, 0.7)), LABELED, ["CTNormalization"]) is None
    assert why_odd(ct(9, shape=(60, 30, 30)), LABELED, ["CTNormalization"]) is None
    assert why_odd(ct(9, -1024, 400), LABELED, ["CTNormalization"]) is None
    assert why_odd(ct(9), [], ["CTNormalization"]) is None


@pytest.mark.parametrize(
    ("scan", "reason"),
    [
        (ct(9, spacing=(5.0, 0.8, 0.08)), "spacing 5x0.8x0.08 mm"),
        (ct(9, spacing=(50.0, 0.8, 0.8)), "spacing 50x0.8x0.8 mm"),
        (ct(9, shape=(200, 100, 100)), "size 1e+03x80x80 mm"),
        (ct(9, 0, 60_000), "intensities from"),
        (ct(9, 0, 300), "intensities from"),  # MRI-like: the low end is off by more than half of the labeled width
    ],
)
def test_says_in_what_a_scan_is_odd(scan, reason):
    assert str(why_odd(scan, LABELED, ["CTNormalization"])).startswith(reason)


def test_intensities_of_images_that_are_normalized_one_by_one_do_not_matter():
    assert why_odd(ct(9, 0, 60_000), LABELED, ["ZScoreNormalization"]) is None


def test_order_of_axes_does_not_matter():
    assert why_odd(ct(9, shape=(30, 30, 20), spacing=(0.8, 0.8, 5.0)), LABELED, ["CTNormalization"]) is None


ITK = {"sitk_stuff": {"direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}}
ITK_TURNED = {"sitk_stuff": {"direction": (0, 0, -1, 1, 0, 0, 0, 1, 0)}}
OBLIQUE = {"sitk_stuff": {"direction": (0.98, -0.17, 0, 0.17, 0.98, 0, 0, 0, 1)}}
NIBABEL = {"nibabel_stuff": {"original_affine": np.diag((0.8, 0.8, 5.0, 1.0))}}
REORIENTED = {"nibabel_stuff": {"original_affine": np.eye(4), "reoriented_affine": np.eye(4)}}
FLAT = {"sitk_stuff": {"direction": (1, 0, 0, 1)}}


@pytest.mark.parametrize(
    ("stuff", "axes"),
    [
        (ITK, "LPS"),
        (ITK_TURNED, "PSR"),
        (OBLIQUE, "LPS"),
        (NIBABEL, "RAS"),
        (REORIENTED, None),
        (FLAT, None),
        ({}, None),
    ],
)
def test_orientation_is_that_of_the_file_as_the_network_sees_it(stuff, axes):
    assert orientation(stuff) == axes


def test_a_scan_that_is_stored_in_another_orientation_is_odd():
    labeled = [ct(number, stuff=ITK) for number in range(3)]
    assert why_odd(ct(9, stuff=NIBABEL), labeled, ["CTNormalization"]) == "axes RAS, labeled ones LPS"
    assert why_odd(ct(9, stuff=OBLIQUE), labeled, ["CTNormalization"]) is None
    assert why_odd(ct(9, stuff=NIBABEL), [*labeled, ct(3, stuff=NIBABEL)], ["CTNormalization"]) is None
    assert why_odd(ct(9, stuff=NIBABEL), [*labeled, ct(3)], ["CTNormalization"]) is None  # of one it isn't known


def test_a_turned_scan_is_named_before_the_training(tiny_dataset):
    image = SimpleITK.GetImageFromArray(make_scan(71)[0])
    image.SetDirection(ITK_TURNED["sitk_stuff"]["direction"])
    SimpleITK.WriteImage(image, tiny_dataset.images_un / "turned_0000.nii.gz")
    notes = update(tiny_dataset).notes
    assert notes == [
        "Some unlabeled scans look unlike the labeled ones, please check: turned (axes PSR, labeled ones LPS)."
    ]


def test_survives_json():
    summary = ct(1, stuff=ITK)
    assert from_json(json.loads(json.dumps(summary))) == summary
    assert from_json(json.loads(json.dumps(summary[:3]))) == summary._replace(orientation=None)  # an earlier version's
    assert from_json(None) is None


def test_odd_scans_are_noted_at_every_start(tiny_dataset):
    write_image(tiny_dataset.images_un / "coarse_0000.nii.gz", make_scan(70)[0], (1.0, 1.0, 9.0))
    for _ in range(2):
        pool = update(tiny_dataset)
        assert "coarse" in pool.identifiers and pool.odd == {"coarse": "spacing 1x1x9 mm"}
        assert pool.notes == [
            "Some unlabeled scans look unlike the labeled ones, please check: coarse (spacing 1x1x9 mm)."
        ]


def test_a_spacing_in_another_unit_is_refused_before_memory_is_full(tiny_dataset):
    write_image(tiny_dataset.images_un / "meters_0000.nii.gz", make_scan(70)[0], (1000.0, 1000.0, 1000.0))
    with pytest.raises(UserError, match=r"imagesUn/meters would have 1.7e\+13 voxels .* is probably wrong"):
        update(tiny_dataset)


def test_scans_are_compared_with_those_of_the_fold_alone(tmp_path):
    hashes = LabeledHashes(tmp_path, "reader")
    for key, summary in zip(("case_0", "imagesTs/test", "imagesTr/held_out"), LABELED, strict=True):
        hashes.add(key, SimpleNamespace(sources=()), "hash", summary)
    hashes.add("removed", SimpleNamespace(sources=()), "hash", LABELED[1])
    assert hashes.summaries(["case_0", "imagesTs/test", "imagesTr/held_out", "new"]) == LABELED[:1]


def test_labeled_scans_of_another_time_with_other_channels_tell_nothing():
    scan = ct(9, 5000, 6000)
    assert why_odd(scan, LABELED, ["CTNormalization"]) is not None
    two_channels = [summary._replace(intensities=summary.intensities * 2) for summary in LABELED]
    assert why_odd(scan, two_channels, ["CTNormalization"]) is None
