# SPDX-License-Identifier: Apache-2.0
"""What nnU-Net made of each labeled case: its shapes, and the voxels of each label value, read once and remembered."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.atomic_files import replace_json
from nnunet_dhc.nnunet.splits.fold_cases import name_some
from nnunet_dhc.nnunet.unlabeled.worker_pool import run_over_cases, sensible_processes

CACHE_FILE = "labeled_cases.json"
_VOXELS_AT_ONCE = 1 << 22

Source = list[list[int]]  # bytes and time of last change of each file


@dataclass(frozen=True)
class PreprocessedCase:
    """A labeled case as it lies in the preprocessed folder.

    Attributes:
        voxels: Voxels by label value; -1 is outside of the nonzero region.
        shape: Voxels along each axis.
        spacing: Of the scan, in mm, in the order of its file; None where a preprocessor of its own doesn't say.
        shape_before_resampling: Voxels after cropping; None likewise.
    """

    voxels: dict[int, int]
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    shape_before_resampling: tuple[int, ...] | None


def preprocessed_cases(
    folder: str | Path,
    identifiers: Iterable[str],
    cache_folder: str | Path | None = None,
    show_progress: bool = True,
    num_processes: int = default_num_processes,
) -> dict[str, PreprocessedCase]:
    """Read the labels of preprocessed cases, those that are new or changed since the last time.

    Args:
        folder: nnU-Net's folder of preprocessed cases; nothing is written there.
        identifiers: Labeled and validation cases.
        cache_folder: Where it is remembered; default the folder of the unlabeled cases beside it.
        show_progress: Show a progress bar if it takes longer than a few seconds.
        num_processes: Processes that read.

    Raises:
        UserError: A case is missing or can't be read.
    """
    from tqdm import tqdm

    folder, cases = Path(folder), sorted(set(identifiers))
    cache = Path(cache_folder or f"{folder}_unlabeled") / CACHE_FILE
    sources = _sources(folder, cases)
    remembered = _read_cache(cache)
    todo = [case for case in cases if remembered.get(case, {}).get("source") != sources[case]]
    if todo:
        processes = sensible_processes(len(todo), sum(sources[case][0][0] for case in todo), num_processes)
        with closing(run_over_cases(str(folder), [(_read, case) for case in todo], processes)) as results:
            title = "Reading preprocessed labels"
            for case, read in tqdm(results, desc=title, total=len(todo), disable=not show_progress, delay=3):
                remembered[case] = {"source": sources[case], **asdict(read)}
        _remember(cache, remembered)
    return {case: _from_json(remembered[case]) for case in cases}


def _read(folder: str, case: str) -> tuple[str, PreprocessedCase]:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    try:
        _, seg, _, properties = infer_dataset_class(folder)(folder, [case]).load_case(case)
        values = np.asarray(seg[0])
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"The preprocessed label of case {case} in {folder} can't be read ({error}): run nnUNetv2_preprocess."
        ) from error
    spacing = properties.get("spacing")
    before = properties.get("shape_after_cropping_and_before_resampling")
    return case, PreprocessedCase(
        voxels=_voxels_by_value(values),
        shape=tuple(int(size) for size in values.shape),
        spacing=None if spacing is None else tuple(float(step) for step in spacing),
        shape_before_resampling=None if before is None else tuple(int(size) for size in before),
    )


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
        files = [path for path in (labels, folder / f"{case}.pkl") if path.is_file()]
        sources[case] = [[stat.st_size, stat.st_mtime_ns] for stat in map(os.stat, files)]
    if missing:
        raise UserError(f"{name_some(missing)} is not preprocessed in {folder}: run nnUNetv2_preprocess.")
    return sources


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(cache: Path, remembered: Mapping[str, Any]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        replace_json(cache, remembered)
    except OSError:
        pass  # a read-only place: read again next time


def _from_json(content: Mapping[str, Any]) -> PreprocessedCase:
    spacing, before = content["spacing"], content["shape_before_resampling"]
    return PreprocessedCase(
        voxels={int(value): int(count) for value, count in content["voxels"].items()},
        shape=tuple(content["shape"]),
        spacing=None if spacing is None else tuple(spacing),
        shape_before_resampling=None if before is None else tuple(before),
    )
