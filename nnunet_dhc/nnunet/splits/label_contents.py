# SPDX-License-Identifier: Apache-2.0
"""Which classes occur in which labeled case, counted once from the label files and remembered.

Only ``nnunet_dhc split`` reads these files, before it is decided which cases count as unlabeled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.splits.remembered_cases import Source, found_out, source_of
from nnunet_dhc.wording import name_some

CACHE_FILE = "nnunet_dhc_label_contents.json"


def label_files(
    raw_dataset_folder: Path | None, preprocessed_dataset_folder: Path, dataset_json: Mapping[str, Any]
) -> dict[str, Path]:
    """Label file of every training case, from the raw dataset or, where there is none, from gt_segmentations.

    Raises:
        UserError: No label file anywhere.
    """
    ending = dataset_json["file_ending"]
    if raw_dataset_folder is not None and "dataset" in dataset_json:
        return {
            identifier: Path(os.path.abspath(raw_dataset_folder / os.path.expandvars(entry["label"])))
            for identifier, entry in sorted(dataset_json["dataset"].items())
        }
    places = [preprocessed_dataset_folder / "gt_segmentations"]
    if raw_dataset_folder is not None:
        places.insert(0, raw_dataset_folder / "labelsTr")
    for folder in places:
        if folder.is_dir():
            names = [n for n in sorted(os.listdir(folder)) if n.endswith(ending) and not n.startswith(".")]
            if names:
                return {name[: -len(ending)]: folder / name for name in names}
    where = " or ".join(map(str, places))
    raise UserError(f"no label file (*{ending}) in {where}: check nnUNet_raw and the dataset id")


def classes_of_cases(
    files: Mapping[str, Path], dataset_json: Mapping[str, Any], cache: Path, num_processes: int = 1
) -> dict[str, frozenset[str]]:
    """Names of the foreground classes (or regions) in each case.

    Args:
        files: Label file by identifier.
        dataset_json: nnU-Net's dataset.json.
        cache: JSON file that remembers the counts; a file that changed is counted again.
        num_processes: Processes that read label files.
    """
    counts = value_counts(files, dataset_json, cache, num_processes)
    names = foreground_classes(dataset_json)
    return {
        case: frozenset(name for name, values in names.items() if any(counts[case].get(str(v), 0) for v in values))
        for case in files
    }


def foreground_classes(dataset_json: Mapping[str, Any]) -> dict[str, list[int]]:
    """Label values of each foreground class or region, without background and ignore label."""
    names = {}
    for name, value in dataset_json["labels"].items():
        values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
        if name != "ignore" and any(values):
            names[name] = [v for v in values if v]
    return names


def value_counts(
    files: Mapping[str, Path], dataset_json: Mapping[str, Any], cache: Path, num_processes: int = 1
) -> dict[str, dict[str, int]]:
    """Voxels per label value of each case, by identifier; values are strings, as JSON has them."""
    sources = {case: _source(path) for case, path in files.items()}
    job = {"dataset_json": dict(dataset_json), "files": {case: str(path) for case, path in files.items()}}
    found = found_out(sources, _count, job, cache, num_processes, "Counting labels")
    return {case: dict(found[case]["voxels"]) for case in files}


def _count(job: dict[str, Any], case: str) -> tuple[str, dict[str, Any]]:
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, determine_reader_writer_from_dataset_json

    file, dataset_json = job["files"][case], job["dataset_json"]
    preferred = determine_reader_writer_from_dataset_json(dataset_json, verbose=False)
    others = [c for c in LIST_OF_IO_CLASSES if dataset_json["file_ending"].lower() in c.supported_file_endings]
    problem: Exception | None = None
    for reader in dict.fromkeys([preferred, *others]):
        try:
            segmentation, _ = reader().read_seg(file)
        except Exception as error:
            problem = problem or error
            continue
        values, voxels = np.unique(segmentation, return_counts=True)
        entries = dataset_json["labels"].values()
        declared = {int(v) for entry in entries for v in (entry if isinstance(entry, (list, tuple)) else [entry])}
        refuse_undeclared(file, values, declared, "correct the label, or declare them")
        return case, {"voxels": {str(int(v)): int(n) for v, n in zip(values, voxels, strict=True)}}
    raise UserError(f"{file} can't be read: repair it or take the case out of the dataset ({problem})")


def refuse_undeclared(label: str, values: Iterable[float], declared: Iterable[int], remedy: str) -> None:
    """Raise if a label holds a value that ``dataset.json`` doesn't declare; the background needn't be declared."""
    allowed = {0, *declared}
    unknown = [f"{value:g}" for value in sorted(values) if value not in allowed]
    if unknown:
        raise UserError(
            f"{label} holds the value(s) {name_some(unknown)}, but dataset.json declares "
            f"{', '.join(map(str, sorted(allowed)))} alone: {remedy}"
        )


def _source(path: Path) -> Source:
    try:
        return source_of([path])
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): every case of imagesTr needs its label") from error
