# SPDX-License-Identifier: Apache-2.0
"""The slices on which A and B differ most, cut out small so that pictures need no second prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_dhc.disagreement import Disagreement

_SMALLEST_WINDOW_MM = 110.0


def disagreement_planes(
    image: np.ndarray, a: np.ndarray, b: np.ndarray, spacing: Sequence[float]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Three slices, one per axis, each through the largest disagreement about one structure.

    Args:
        image: Shape (z, y, x); shown from its 0.5th to its 99.5th percentile.
        a: Label map of A, likewise.
        b: Label map of B, likewise.
        spacing: mm, of the same axes.

    Returns:
        Facts of each slice, and the arrays ``<number>_image`` (uint8), ``<number>_a``, ``<number>_b`` (uint16).
    """
    low, high = np.percentile(image, [0.5, 99.5])
    facts, arrays = [], {}
    for number, cut in enumerate(Disagreement([a, b]).cuts(spacing, _SMALLEST_WINDOW_MM)):
        gray = np.clip((cut.of(image).astype(np.float32) - low) / max(float(high - low), 1e-6), 0, 1)
        arrays[f"{number}_image"] = (gray * 255).astype(np.uint8)
        arrays[f"{number}_a"] = cut.of(a).astype(np.uint16)
        arrays[f"{number}_b"] = cut.of(b).astype(np.uint16)
        facts.append({
            "plane": cut.plane, "slice": cut.index + 1, "slices": cut.slices, "spacing": list(cut.spacing),
            "subject": cut.subject,
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
