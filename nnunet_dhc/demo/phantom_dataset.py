# SPDX-License-Identifier: Apache-2.0
"""Write phantom cases as a dataset in nnU-Net's raw format, with unlabeled cases and test labels kept aside."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from tqdm import tqdm

from nnunet_dhc.demo.phantom import CLASSES, VERSION, PhantomCase, make_case
from nnunet_dhc.nnunet.host.atomic_files import replace_json

DATASET_NAME = "AbdomenPhantom"
_FILE_ENDING = ".nii.gz"


@dataclass(frozen=True)
class PhantomPlan:
    """How many cases a phantom dataset has; the cases are the first ones of the seed, in this order."""

    labeled: int = 4
    validation: int = 2
    unlabeled: int = 16
    test: int = 10
    seed: int = 0


def write_dataset(raw_folder: str | os.PathLike, dataset_id: int = 901, plan: PhantomPlan | None = None,
                  num_processes: int | None = None) -> Path:
    """Write ``DatasetXXX_AbdomenPhantom`` below ``raw_folder``; cases that are there already are kept.

    Labeled and validation cases go to imagesTr and labelsTr (with a ``splits_final.json`` that nnU-Net copies when it
    plans), unlabeled ones to imagesUn, test cases to imagesTs with their labels in labelsTs, which nothing trains on.

    Returns:
        The dataset's folder.
    """
    plan = plan or PhantomPlan()
    folder = Path(raw_folder) / f"Dataset{dataset_id:03d}_{DATASET_NAME}"
    made_from = {"phantom_version": VERSION, **asdict(plan)}
    note = folder / "phantom.json"
    fresh = _read_json(note) == made_from
    groups = _case_groups(plan)
    jobs = [(folder, group, identifier, plan.seed * 100_000 + number)
            for number, (group, identifier) in enumerate(groups)
            if not fresh or not _files_exist(folder, group, identifier)]
    for name in ("imagesTr", "labelsTr", "imagesUn", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if jobs:
        num_processes = num_processes or os.cpu_count() or 1
        with ProcessPoolExecutor(min(num_processes, len(jobs)), multiprocessing.get_context("spawn")) as pool:
            list(tqdm(pool.map(_write_case, jobs), total=len(jobs), desc="Drawing phantom cases", unit="case"))
    train = [identifier for group, identifier in groups if group == "train"]
    val = [identifier for group, identifier in groups if group == "val"]
    replace_json(folder / "dataset.json", {
        "channel_names": {"0": "CT"}, "labels": CLASSES, "numTraining": len(train) + len(val),
        "file_ending": _FILE_ENDING, "name": DATASET_NAME,
        "description": f"Synthetic abdomen, generator version {VERSION} of nnunet_dhc.demo, seed {plan.seed}"})
    if val:
        replace_json(folder / "splits_final.json", [{"train": train, "val": val}])
    replace_json(note, made_from)
    return folder


def _case_groups(plan: PhantomPlan) -> list[tuple[str, str]]:
    """Group and identifier of every case, in the order of their seeds."""
    sizes = {"train": plan.labeled, "val": plan.validation, "unlabeled": plan.unlabeled, "test": plan.test}
    groups = [group for group, size in sizes.items() for _ in range(size)]
    return [(group, f"phantom_{number:03d}") for number, group in enumerate(groups, start=1)]


def _targets(folder: Path, group: str, identifier: str) -> dict[str, Path]:
    images = {"unlabeled": "imagesUn", "test": "imagesTs"}.get(group, "imagesTr")
    labels = {"unlabeled": None, "test": "labelsTs"}.get(group, "labelsTr")
    paths = {"image": folder / images / f"{identifier}_0000{_FILE_ENDING}"}
    if labels:
        paths["label"] = folder / labels / f"{identifier}{_FILE_ENDING}"
    return paths


def _files_exist(folder: Path, group: str, identifier: str) -> bool:
    return all(path.is_file() for path in _targets(folder, group, identifier).values())


def _write_case(job: tuple[Path, str, str, int]) -> None:
    folder, group, identifier, seed = job
    case: PhantomCase = make_case(seed)
    for kind, path in _targets(folder, group, identifier).items():
        _write_volume(case.image if kind == "image" else case.segmentation, case.spacing_mm, path)


def _write_volume(array: np.ndarray, spacing_mm: Iterable[float], path: Path) -> None:
    volume = SimpleITK.GetImageFromArray(array)
    volume.SetSpacing([float(s) for s in reversed(tuple(spacing_mm))])
    # The reader decides by the ending, so the temporary name keeps it.
    partial = path.with_name(f".partial_{os.getpid()}_{path.name}")
    SimpleITK.WriteImage(volume, str(partial), useCompression=True, compressionLevel=1)
    os.replace(partial, path)


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
