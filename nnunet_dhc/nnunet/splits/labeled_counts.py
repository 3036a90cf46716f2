# SPDX-License-Identifier: Apache-2.0
"""Count the voxels of each class in the preprocessed labeled cases, once per set of cases."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.atomic_files import replace_json
from nnunet_dhc.nnunet.splits.fold_cases import name_some
from nnunet_dhc.nnunet.splits.label_contents import refuse_undeclared

COUNTS_FILE = "labeled_counts.json"
_REMEMBERED = 50
_VOXELS_AT_ONCE = 1 << 22


def labeled_voxel_counts(
    preprocessed_folder: str | Path,
    identifiers: Sequence[str],
    label_manager: Any,
    cache_folder: str | Path | None = None,
    show_progress: bool = True,
) -> np.ndarray:
    """Voxels per class over the labeled cases of a fold.

    Voxels outside of the nonzero region (-1) count as background, voxels with the ignore label do not count.

    Args:
        preprocessed_folder: nnU-Net's folder of preprocessed cases; nothing is written there.
        identifiers: The labeled cases.
        label_manager: nnU-Net's label manager.
        cache_folder: Where the counts are remembered; default the folder of the unlabeled cases beside it.
        show_progress: Show a progress bar if it takes longer than a few seconds.

    Returns:
        Counts, shape (k,), int64. With regions, index 0 counts voxels in no region and one index per foreground
        region follows; a voxel of several regions counts in each.

    Raises:
        UserError: A case is missing, or holds a value that ``dataset.json`` doesn't declare.
    """
    folder = Path(preprocessed_folder)
    cache = Path(cache_folder or f"{folder}_unlabeled") / COUNTS_FILE
    cases = sorted(set(identifiers))
    key = _cache_key(folder, cases, label_manager)
    cached = _read_cache(cache)
    if key in cached:
        return np.asarray(cached[key], dtype=np.int64)
    by_value = _count_values(folder, cases, label_manager, show_progress)
    counts = _counts_by_class(by_value, label_manager)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        kept = dict(list(cached.items())[1 - _REMEMBERED :])
        replace_json(cache, {**kept, key: counts.tolist()})
    except OSError:
        pass  # a read-only place: counted again next time
    return counts


def classes_without_labels(counts: np.ndarray, label_manager: Any) -> list[str]:
    """Names of foreground classes (or regions) without a single labeled voxel; their weight can't be learned."""
    names = [name for name in label_manager.label_dict if name not in ("background", "ignore")]
    if label_manager.has_regions:
        values = [label_manager.label_dict[name] for name in names]
        names = [name for name, value in zip(names, values, strict=True) if not np.all(np.asarray(value) == 0)]
        return [name for name, count in zip(names, counts[1:], strict=True) if count == 0]
    return [
        name
        for name in names
        if all(counts[index] == 0 for index in _class_indices(label_manager.label_dict[name], label_manager))
    ]


def _class_indices(value: Any, label_manager: Any) -> list[int]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [label_manager.all_labels.index(int(item)) for item in values]


def _counts_by_class(by_value: dict[int, int], label_manager: Any) -> np.ndarray:
    declared = [int(label) for label in label_manager.all_labels]
    by_value = dict(by_value)
    if label_manager.ignore_label is not None:
        by_value.pop(int(label_manager.ignore_label), None)
    by_value[0] = by_value.get(0, 0) + by_value.pop(-1, 0)
    if not label_manager.has_regions:
        return np.array([by_value.get(label, 0) for label in declared], dtype=np.int64)
    regions = [
        {int(label) for label in region} if isinstance(region, (list, tuple)) else {int(region)}
        for region in label_manager.foreground_regions
    ]
    in_none = sum(count for value, count in by_value.items() if not any(value in region for region in regions))
    in_each = [sum(by_value.get(value, 0) for value in region) for region in regions]
    return np.array([in_none, *in_each], dtype=np.int64)


def _count_values(
    folder: Path, cases: Sequence[str], label_manager: Any, show_progress: bool
) -> dict[int, int]:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from tqdm import tqdm

    dataset = infer_dataset_class(str(folder))(str(folder), list(cases))
    declared = [int(label) for label in (*label_manager.all_labels, label_manager.ignore_label) if label is not None]
    remedy = "correct it in labelsTr, then run nnUNetv2_plan_and_preprocess with --verify_dataset_integrity."
    totals: dict[int, int] = {}
    for case in tqdm(cases, desc="Counting labeled voxels", disable=not show_progress, delay=3):
        try:
            _, seg, _, _ = dataset.load_case(case)
            values = np.asarray(seg[0])
        except (OSError, RuntimeError, KeyError) as error:
            raise UserError(
                f"The preprocessed label of case {case} in {folder} can't be read ({error}): run nnUNetv2_preprocess."
            ) from error
        flat = values.reshape(-1)
        lowest = int(flat.min())
        counts = np.zeros(int(flat.max()) - lowest + 1, dtype=np.int64)
        for start in range(0, flat.size, _VOXELS_AT_ONCE):
            part = flat[start : start + _VOXELS_AT_ONCE].astype(np.int64)
            counts += np.bincount(part - lowest, minlength=counts.size)
        found = {lowest + int(offset): int(counts[offset]) for offset in np.flatnonzero(counts)}
        refuse_undeclared(f"The label of case {case}", found.keys() - {-1}, declared, remedy)
        for value, count in found.items():
            totals[value] = totals.get(value, 0) + count
    return totals


def _cache_key(folder: Path, cases: Sequence[str], label_manager: Any) -> str:
    """Identifiers with size and time of their label files, and the declared labels."""
    files = []
    missing = []
    for case in cases:
        candidates = (folder / f"{case}_seg.b2nd", folder / f"{case}.npz")
        stat = next((os.stat(path) for path in candidates if path.is_file()), None)
        if stat is None:
            missing.append(case)
        else:
            files.append([case, stat.st_size, stat.st_mtime_ns])
    if missing:
        raise UserError(f"{name_some(missing)} is not preprocessed in {folder}: run nnUNetv2_preprocess.")
    text = json.dumps([files, label_manager.label_dict], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_cache(path: Path) -> dict[str, list[int]]:
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cached if isinstance(cached, dict) else {}
