# SPDX-License-Identifier: Apache-2.0
"""Voxels of each class in the labeled cases of a fold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunet_dhc.nnunet.splits.label_contents import refuse_undeclared
from nnunet_dhc.nnunet.splits.preprocessed_cases import PreprocessedCase


def labeled_voxel_counts(cases: Mapping[str, PreprocessedCase], label_manager: Any) -> np.ndarray:
    """Voxels per class over the labeled cases of a fold.

    Voxels outside of the nonzero region (-1) count as background, voxels with the ignore label do not count.

    Args:
        cases: The labeled cases by identifier.
        label_manager: nnU-Net's label manager.

    Returns:
        Counts, shape (k,), int64. With regions, index 0 counts voxels in no region and one index per foreground
        region follows; a voxel of several regions counts in each.

    Raises:
        UserError: A case holds a value that ``dataset.json`` doesn't declare.
    """
    declared = [int(label) for label in (*label_manager.all_labels, label_manager.ignore_label) if label is not None]
    remedy = "correct it in labelsTr, then run nnUNetv2_plan_and_preprocess with --verify_dataset_integrity."
    by_value: Counter[int] = Counter()
    for identifier, case in sorted(cases.items()):
        refuse_undeclared(f"The label of case {identifier}", case.voxels.keys() - {-1}, declared, remedy)
        by_value.update(case.voxels)
    return _counts_by_class(by_value, label_manager)


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


def _counts_by_class(by_value: Mapping[int, int], label_manager: Any) -> np.ndarray:
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
