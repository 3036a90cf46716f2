# SPDX-License-Identifier: Apache-2.0
"""The slices on which A and B differ most, cut out small so that pictures need no second prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_NAMES = ("axial", "coronal", "sagittal")
_SMALLEST_WINDOW_MM = 110.0
_WINDOW_PER_EXTENT = 2.2


def disagreement_planes(
    image: np.ndarray, a: np.ndarray, b: np.ndarray, spacing: Sequence[float]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Three slices, one per axis, each through the largest disagreement about one structure.

    A voxel weighs 1 / volume of its structure, so that a small structure is not drowned by a large one. Where A and B
    agree everywhere, the slices go through the middle of what they predict.

    Args:
        image: Shape (z, y, x); shown from its 0.5th to its 99.5th percentile.
        a: Label map of A, likewise.
        b: Label map of B, likewise.
        spacing: mm, of the same axes.

    Returns:
        Facts of each slice, and the arrays ``<number>_image`` (uint8), ``<number>_a``, ``<number>_b`` (uint16).
    """
    where, weights, labels = _weighted_disagreement(a, b)
    low, high = np.percentile(image, [0.5, 99.5])
    facts, arrays = [], {}
    for axis in range(3 if min(image.shape) > 1 else 1):
        index, subject = _slice_and_subject(axis, where, weights, labels)
        rest = [other for other in range(3) if other != axis]
        in_plane = (float(spacing[rest[0]]), float(spacing[rest[1]]))
        here = (where[:, axis] == index) & (labels == subject)
        window = _window(where[here][:, rest], [image.shape[other] for other in rest], in_plane)
        number = len(facts)
        gray = np.take(image, index, axis=axis)[window].astype(np.float32)
        gray = np.clip((gray - low) / max(float(high - low), 1e-6), 0, 1)
        for name, plane, kind in (
            ("image", gray * 255, np.uint8),
            ("a", np.take(a, index, axis=axis)[window], np.uint16),
            ("b", np.take(b, index, axis=axis)[window], np.uint16),
        ):
            # Rows of coronal and sagittal slices run from foot to head.
            arrays[f"{number}_{name}"] = (plane if axis == 0 else plane[::-1]).astype(kind)
        facts.append({
            "plane": _NAMES[axis] if min(image.shape) > 1 else "slice", "slice": index + 1,
            "slices": int(image.shape[axis]), "spacing": list(in_plane), "subject": subject,
        })
    return facts, arrays


def oriented(
    volumes: Sequence[np.ndarray], spacing: Sequence[float], transpose_backward: Sequence[int],
    properties: Mapping[str, Any]
) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """Undo the plans' transposition and turn axes to (foot to head, front to back, right to left).

    Without a direction in the properties (readers other than SimpleITK's), axes stay those of the file.
    """
    turned = [np.ascontiguousarray(volume.transpose(transpose_backward)) for volume in volumes]
    spacing = tuple(float(spacing[axis]) for axis in transpose_backward)
    direction = (properties.get("sitk_stuff") or {}).get("direction")
    if direction is None or len(direction) != 9 or min(turned[0].shape) == 1:
        return turned, spacing
    import SimpleITK as sitk

    results = []
    for volume in turned:
        picture = sitk.GetImageFromArray(volume)
        picture.SetSpacing(spacing[::-1])
        picture.SetDirection([float(value) for value in direction])
        picture = sitk.DICOMOrient(picture, "LPS")
        results.append(sitk.GetArrayFromImage(picture))
    return results, tuple(picture.GetSpacing()[::-1])


def _weighted_disagreement(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, weights and the rarer of the two labels; where A and B agree, the foreground (or the middle)."""
    where = np.argwhere(a != b)
    if len(where) == 0:
        where = np.argwhere(a > 0)
    if len(where) == 0:
        where = np.array([[length // 2 for length in a.shape]])
    size = 1 + int(max(a.max(initial=0), b.max(initial=0)))
    volumes = np.maximum(*(np.bincount(labels.ravel().astype(np.int64), minlength=size) for labels in (a, b)))
    weight = 1.0 / np.maximum(volumes, 20.0)
    weight[0] = 0.0
    at = tuple(where.T)
    pair = np.stack([a[at], b[at]]).astype(np.int64)
    labels = pair[weight[pair].argmax(axis=0), np.arange(len(where))]
    return where, weight[labels], labels


def _slice_and_subject(axis: int, where: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    best = (-1.0, 0, 0)
    for label in np.unique(labels):
        own = labels == label
        totals = np.bincount(where[own, axis], weights=weights[own])
        if totals.max() > best[0]:
            best = (float(totals.max()), int(totals.argmax()), int(label))
    if best[0] <= 0:
        return int(np.median(where[:, axis])), int(labels[0])
    return best[1], best[2]


def _window(points: np.ndarray, shape: Sequence[int], spacing: tuple[float, float]) -> tuple[slice, slice]:
    """A square around the points, large enough to recognize where one is."""
    if len(points) == 0:
        points = np.array([[length // 2 for length in shape]])
    ends = np.percentile(points, [2, 98], axis=0)
    side = max(_SMALLEST_WINDOW_MM, _WINDOW_PER_EXTENT * float(((ends[1] - ends[0] + 1) * spacing).max()))
    window = []
    for axis in (0, 1):
        length = min(shape[axis], max(1, round(side / spacing[axis])))
        start = int(np.clip(round(float(ends[:, axis].mean()) - length / 2), 0, shape[axis] - length))
        window.append(slice(start, start + length))
    return window[0], window[1]
