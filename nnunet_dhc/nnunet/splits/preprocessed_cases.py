# SPDX-License-Identifier: Apache-2.0
"""What nnU-Net made of each labeled case: its shapes, and the voxels of each label value, read once and remembered."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.splits.remembered_cases import Source, found_out, source_of
from nnunet_dhc.wording import name_some

CACHE_FILE = "labeled_cases.json"
_VOXELS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class PreprocessedCase:
    """A labeled case as it lies in the preprocessed folder.

    Attributes:
        voxels: Voxels by label value; -1 is outside of the nonzero region.
        shape: Voxels along each axis.
        spacing: Of the scan, in mm, in the order of its file; None where a preprocessor of its own doesn't say.
        shape_before_resampling: Voxels after cropping; None likewise.
        preprocessing: Hash of what the plans said of preprocessing when this file was first read; None if unknown.
    """

    voxels: dict[int, int]
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    shape_before_resampling: tuple[int, ...] | None
    preprocessing: str | None = None


def preprocessed_cases(
    folder: str | Path,
    identifiers: Iterable[str],
    num_processes: int = default_num_processes,
    preprocessing: str | None = None,
) -> dict[str, PreprocessedCase]:
    """Read the labels of preprocessed cases, those that are new or changed since the last time.

    They are remembered in the folder of the unlabeled cases beside it.

    Args:
        folder: nnU-Net's folder of preprocessed cases; nothing is written there.
        identifiers: Labeled and validation cases.
        num_processes: Processes that read.
        preprocessing: `preprocessing_hash` of the plans, remembered with what is read now.

    Raises:
        UserError: A case is missing or can't be read.
    """
    folder = Path(folder)
    cache = Path(f"{folder}_unlabeled") / CACHE_FILE
    sources = _sources(folder, sorted(set(identifiers)))
    job = (str(folder), preprocessing)
    found = found_out(sources, _read, job, cache, num_processes, "Reading preprocessed labels")
    return {case: _from_json(content) for case, content in found.items()}


def dataset_class_of(folder: str | Path, remedy: str) -> Any:
    """nnU-Net's class that reads a preprocessed folder.

    Args:
        folder: nnU-Net's folder of preprocessed cases.
        remedy: What the user can do where it is empty; ends the message.

    Raises:
        UserError: There are no preprocessed cases, or files of several formats.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    try:
        return infer_dataset_class(str(folder))
    except (AssertionError, KeyError):  # it takes the ending of any file for the format
        raise UserError(f"{folder} holds no preprocessed cases, or files of another kind, too: {remedy}") from None


def _read(job: tuple[str, str | None], case: str) -> tuple[str, dict[str, Any]]:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    folder, preprocessing = job
    try:
        _, seg, _, properties = infer_dataset_class(folder)(folder, [case]).load_case(case)
        values = np.asarray(seg[0])
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"The preprocessed label of case {case} in {folder} can't be read ({error}): run nnUNetv2_preprocess."
        ) from error
    spacing = properties.get("spacing")
    before = properties.get("shape_after_cropping_and_before_resampling")
    return case, {
        "voxels": {str(value): count for value, count in _voxels_by_value(values).items()},
        "shape": [int(size) for size in values.shape],
        "spacing": None if spacing is None else [float(step) for step in spacing],
        "shape_before_resampling": None if before is None else [int(size) for size in before],
        "preprocessing": preprocessing,
    }


def _voxels_by_value(values: np.ndarray) -> dict[int, int]:
    flat = values.reshape(-1)
    lowest = int(flat.min())
    counts = np.zeros(int(flat.max()) - lowest + 1, dtype=np.int64)
    for start in range(0, flat.size, _VOXELS_AT_ONCE):
        part = flat[start : start + _VOXELS_AT_ONCE].astype(np.int64)
        counts += np.bincount(part - lowest, minlength=counts.size)
    return {lowest + int(offset): int(counts[offset]) for offset in np.flatnonzero(counts)}


def _sources(folder: Path, cases: list[str]) -> dict[str, Source]:
    sources, missing = {}, []
    for case in cases:
        labels = next((path for end in ("_seg.b2nd", ".npz") if (path := folder / f"{case}{end}").is_file()), None)
        if labels is None:
            missing.append(case)
            continue
        sources[case] = source_of(path for path in (labels, folder / f"{case}.pkl") if path.is_file())
    if missing:
        raise UserError(f"{name_some(missing)} is not preprocessed in {folder}: run nnUNetv2_preprocess.")
    return sources


def _from_json(content: Mapping[str, Any]) -> PreprocessedCase:
    spacing, before = content["spacing"], content["shape_before_resampling"]
    return PreprocessedCase(
        voxels={int(value): int(count) for value, count in content["voxels"].items()},
        shape=tuple(content["shape"]),
        spacing=None if spacing is None else tuple(spacing),
        shape_before_resampling=None if before is None else tuple(before),
        preprocessing=content.get("preprocessing"),
    )
