# SPDX-License-Identifier: Apache-2.0
"""Faults of scans in imagesUn."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_data import TinyDataset, make_scan, write_image

from fault_makers.folds import usual
from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
from nnunet_dhc.nnunet.splits.stale_preprocessing import current_cases
from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import bring_store_up_to_date


def none(dataset: TinyDataset) -> None:
    shutil.rmtree(dataset.images_un)
    dataset.write_split([{"train": ["case_0", "case_1"], "val": ["case_2"]}])


def missing_channel(dataset: TinyDataset) -> None:
    write_image(dataset.images_un / "scan_9_0001.nii.gz", make_scan(9)[0])


def extra_channel(dataset: TinyDataset) -> None:
    write_image(dataset.images_un / "scan_0_0001.nii.gz", make_scan(9)[0])


def wrong_ending(dataset: TinyDataset) -> None:
    write_image(dataset.images_un / "scan_9_0000.mha", make_scan(9)[0])


def no_channel_number(dataset: TinyDataset) -> None:
    write_image(dataset.images_un / "scan_9.nii.gz", make_scan(9)[0])


def unreadable(dataset: TinyDataset) -> None:
    (dataset.images_un / "scan_9_0000.nii.gz").write_bytes(b"this is a text file with another name")


def truncated(dataset: TinyDataset) -> None:
    usual(dataset)
    path = dataset.images_un / "scan_0_0000.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def nan(dataset: TinyDataset) -> None:
    _with_voxels(dataset, np.nan, 5)


def infinite(dataset: TinyDataset) -> None:
    _with_voxels(dataset, np.inf, 3)


def _with_voxels(dataset: TinyDataset, value: float, count: int) -> None:
    image = make_scan(9)[0].astype(np.float32)
    image.flat[100 : 100 + count] = value
    write_image(dataset.images_un / "scan_9_0000.nii.gz", image)


def other_geometry(dataset: TinyDataset) -> None:
    """A dataset of two channels, of which one scan has two that do not fit."""
    path = dataset.preprocessed / "dataset.json"
    content = json.loads(path.read_text())
    content["channel_names"] = {"0": "T1", "1": "T2"}
    path.write_text(json.dumps(content))
    for scan in dataset.images_un.iterdir():
        scan.unlink()
    write_image(dataset.images_un / "scan_0_0000.nii.gz", make_scan(9)[0])
    write_image(dataset.images_un / "scan_0_0001.nii.gz", make_scan(9, (28, 26, 20))[0])


def constant(dataset: TinyDataset) -> None:
    write_image(dataset.images_un / "scan_9_0000.nii.gz", np.full((28, 26, 24), 7, np.int16))


def flat(dataset: TinyDataset) -> None:
    write_image(dataset.images_un / "scan_9_0000.nii.gz", make_scan(9)[0][:1])


def named_as(case: str) -> Callable[[TinyDataset], None]:
    """Another scan with the name of a case of the fold."""

    def make(dataset: TinyDataset) -> None:
        usual(dataset)
        write_image(dataset.images_un / f"{case}_0000.nii.gz", make_scan(9)[0])

    return make


def copy_of_labeled(dataset: TinyDataset) -> None:
    usual(dataset)
    shutil.copy(dataset.raw / "imagesTr" / "case_0_0000.nii.gz", dataset.images_un / "scan_9_0000.nii.gz")


def many(dataset: TinyDataset) -> None:
    """So many scans that preprocessing takes a while."""
    usual(dataset)
    first = dataset.images_un / "many_0_0000.nii.gz"
    write_image(first, make_scan(9, (72, 72, 72))[0])
    for number in range(1, 400):
        os.link(first, dataset.images_un / f"many_{number}_0000.nii.gz")


def other_plans(dataset: TinyDataset) -> None:
    """Preprocess the scans, then change what preprocessing reads of the plans."""
    bring_store_up_to_date(
        dataset.plans_content(),
        "3d_fullres",
        dataset.dataset_json,
        FoldCases(tuple(dataset.labeled), ()),
        0,
        show_progress=False,
        preprocessed_dataset_folder_base=dataset.preprocessed,
        raw_dataset_folder=dataset.raw,
        say=lambda _: None,
    )
    _change_configuration(dataset, resampling_fn_data_kwargs={"is_seg": False, "order": 1, "order_z": 0})


def other_spacing(dataset: TinyDataset) -> None:
    """Change the spacing of the plans after the labeled cases were preprocessed."""
    _change_configuration(dataset, spacing=[1.2, 1.2, 1.2])


def other_normalization(dataset: TinyDataset) -> None:
    """Change what doesn't show in the shape of a labeled case, after it was seen."""
    current_cases(
        dataset.preprocessed / "nnUNetPlans_3d_fullres", dataset.labeled, PlansManager(dataset.plans_content()),
        "3d_fullres", dataset.dataset_json,
    )
    _change_configuration(dataset, normalization_schemes=["RescaleTo01Normalization"])


def _change_configuration(dataset: TinyDataset, **values) -> None:
    plans = dataset.plans_content()
    plans["configurations"]["3d_fullres"] |= values
    (dataset.preprocessed / f"{dataset.tiny_plans}.json").write_text(json.dumps(plans))


def other_plans_without_scans(dataset: TinyDataset) -> None:
    other_plans(dataset)
    shutil.rmtree(dataset.images_un)
