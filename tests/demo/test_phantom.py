# SPDX-License-Identifier: Apache-2.0
"""The phantom: a function of its seed, imbalanced, varied, and written in nnU-Net's raw format."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK

from nnunet_dhc.demo.anatomy import ABSENT
from nnunet_dhc.demo.phantom import CLASSES, make_case
from nnunet_dhc.demo.phantom_dataset import PhantomPlan, write_dataset


@pytest.fixture(scope="module")
def cases():
    return [make_case(seed) for seed in range(6)]


def _voxels(case):
    return np.bincount(case.segmentation.ravel(), minlength=len(CLASSES))


def test_seed_decides_everything(cases):
    again = make_case(3)
    assert np.array_equal(again.image, cases[3].image)
    assert np.array_equal(again.segmentation, cases[3].segmentation)
    assert again.spacing_mm == cases[3].spacing_mm
    assert not np.array_equal(make_case(4).image, again.image)


def test_looks_like_a_ct(cases):
    for case in cases:
        assert case.image.dtype == np.int16 and case.segmentation.dtype == np.uint8
        assert case.image.shape == case.segmentation.shape
        assert all(50 <= n <= 100 for n in case.image.shape)
        assert case.spacing_mm[0] > 1.4 * case.spacing_mm[1]
        assert case.image.min() < -900 < 200 < case.image.max()
        assert set(np.unique(case.segmentation)) <= set(CLASSES.values())
        liver = case.image[case.segmentation == CLASSES["liver"]]
        assert 60 < np.median(liver) < 150


def test_imbalance_of_several_hundred_to_one(cases):
    voxels = np.mean([_voxels(case) for case in cases], axis=0)
    organs = voxels[1:]
    assert voxels[0] > organs.sum()
    assert 200 < organs.max() / organs.min() < 600
    assert organs.max() == voxels[CLASSES["liver"]]


def test_organs_are_there_unless_taken_out(cases):
    names = list(CLASSES)
    missing = {seed: {names[index] for index in np.flatnonzero(_voxels(case) == 0)} for seed, case in enumerate(cases)}
    assert set().union(*missing.values()) <= set(ABSENT)
    assert any(missing.values())
    for seed in missing:
        if missing[seed]:
            assert (_voxels(make_case(seed, absent_organs=False)) > 0).all()


def test_anatomy_varies(cases):
    common = min(case.segmentation.shape[0] for case in cases)
    livers = [case.segmentation[:common] == CLASSES["liver"] for case in cases]
    overlaps = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairwise(livers)]
    assert max(overlaps) < 0.95


def test_one_case_takes_about_a_second():
    started = time.process_time()
    make_case(99)
    # Less than a second of one core when nothing else runs; the margin is for busy machines.
    assert time.process_time() - started < 4


def test_dataset(tmp_path):
    plan = PhantomPlan(labeled=2, validation=1, unlabeled=2, test=1, seed=5)
    folder = write_dataset(tmp_path, 902, plan, num_processes=2)
    assert folder.name == "Dataset902_AbdomenPhantom"
    listing = {name: sorted(path.name for path in (folder / name).iterdir())
               for name in ("imagesTr", "labelsTr", "imagesUn", "imagesTs", "labelsTs")}
    assert listing == {
        "imagesTr": [f"phantom_00{n}_0000.nii.gz" for n in (1, 2, 3)],
        "labelsTr": [f"phantom_00{n}.nii.gz" for n in (1, 2, 3)],
        "imagesUn": [f"phantom_00{n}_0000.nii.gz" for n in (4, 5)],
        "imagesTs": ["phantom_006_0000.nii.gz"],
        "labelsTs": ["phantom_006.nii.gz"],
    }
    content = json.loads((folder / "dataset.json").read_text())
    assert (content["numTraining"], content["labels"]) == (3, CLASSES)
    split, = json.loads((folder / "splits_final.json").read_text())
    assert split == {"train": ["phantom_001", "phantom_002"], "val": ["phantom_003"]}
    image = SimpleITK.ReadImage(str(folder / "imagesTr" / "phantom_001_0000.nii.gz"))
    case = make_case(5 * 100_000)
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), case.image)
    assert image.GetSpacing()[::-1] == pytest.approx(case.spacing_mm, abs=1e-6)

    # Again: only what is missing is drawn.
    kept = folder / "imagesUn" / "phantom_004_0000.nii.gz"
    lost = folder / "imagesUn" / "phantom_005_0000.nii.gz"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    write_dataset(tmp_path, 902, plan)
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    # Another seed: drawn again.
    write_dataset(tmp_path, 902, PhantomPlan(labeled=2, validation=1, unlabeled=2, test=1, seed=6), num_processes=2)
    assert kept.stat().st_mtime_ns != before
