# SPDX-License-Identifier: Apache-2.0
"""Where label maps of a scan disagree most, and the slices to show it on; with NumPy alone, for pages and ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]

_PLANES = ("axial", "coronal", "sagittal")
_WINDOW_PER_EXTENT = 2.2
_SMALL_VOLUME = 20  # voxels; a structure below it weighs no more, so that single voxels decide nothing


@dataclass(frozen=True)
class Cut:
    """A slice and a window of it, the same of every volume; drawn with the head up and the patient's right on the left.

    Attributes:
        axis: 0 axial, 1 coronal, 2 sagittal; volumes are (foot to head, front to back, right to left).
        index: Of the slice.
        slices: How many there are.
        plane: Name of the plane; "slice" where the volume has only one.
        subject: Label of the structure that the slice was chosen for.
        window: Rows and columns that are shown.
        spacing: Of these, mm.
    """

    axis: int
    index: int
    slices: int
    plane: str
    subject: int
    window: tuple[slice, slice]
    spacing: tuple[float, float]

    def of(self, voxels: NDArray[Any]) -> NDArray[Any]:
        plane: NDArray[Any] = np.take(voxels, self.index, axis=self.axis)[self.window]
        return plane if self.axis == 0 else plane[::-1]  # rows of coronal and sagittal slices run from foot to head


class Disagreement:
    """Voxels where label maps differ; where they don't, those of structures, and without any the middle one.

    A voxel weighs 1 / largest volume of its rarest label, so that a small structure is not drowned by a large one.

    Args:
        compared: Label maps that should agree, each (z, y, x).
        reference: Another one; it says how large a structure is, and counts where the others agree.
    """

    def __init__(self, compared: Sequence[Labels], reference: Labels | None = None) -> None:
        maps = [*compared] if reference is None else [reference, *compared]
        self.shape = maps[0].shape
        differs = np.zeros(self.shape, dtype=bool)
        for other in compared[1:]:
            differs |= other != compared[0]
        where = np.argwhere(differs)
        if len(where) == 0:
            where = np.argwhere(maps[0] > 0)
        if len(where) == 0:
            where = np.array([[length // 2 for length in self.shape]])
        size = 1 + int(max(voxels.max(initial=0) for voxels in maps))
        volumes = np.stack([np.bincount(voxels.ravel().astype(np.int64), minlength=size) for voxels in maps])
        weight = 1.0 / np.maximum(volumes.max(axis=0), _SMALL_VOLUME)
        weight[0] = 0.0
        at = tuple(where.T)
        candidates = np.stack([voxels[at].astype(np.int64) for voxels in maps])
        self._where = where
        self._labels = candidates[weight[candidates].argmax(axis=0), np.arange(len(where))]
        self._weights = weight[self._labels]

    def cuts(self, spacing: Sequence[float], smallest_window_mm: float) -> list[Cut]:
        """One slice per axis, each through the largest disagreement about one structure; one in all of a flat volume.

        Args:
            spacing: mm, of the axes of the label maps.
            smallest_window_mm: Side of the window, or more where the disagreement is larger.
        """
        return [self._cut(axis, spacing, smallest_window_mm) for axis in range(3 if min(self.shape) > 1 else 1)]

    def weight_on(self, cut: Cut, label: int) -> float:
        """Sum of the weights of a label's voxels in a slice."""
        here = (self._where[:, cut.axis] == cut.index) & (self._labels == label)
        return float(self._weights[here].sum())

    def _cut(self, axis: int, spacing: Sequence[float], smallest_window_mm: float) -> Cut:
        index, subject = self._slice_and_subject(axis)
        rest = [other for other in range(3) if other != axis]
        in_plane = (float(spacing[rest[0]]), float(spacing[rest[1]]))
        points = self._where[(self._where[:, axis] == index) & (self._labels == subject)][:, rest]
        window = _window(points, [self.shape[other] for other in rest], in_plane, smallest_window_mm)
        plane = _PLANES[axis] if min(self.shape) > 1 else "slice"
        return Cut(axis, index, self.shape[axis], plane, subject, window, in_plane)

    def _slice_and_subject(self, axis: int) -> tuple[int, int]:
        """One structure decides, and the picture is on it."""
        most, found = 0.0, (int(np.median(self._where[:, axis])), int(self._labels[0]))
        for label in np.unique(self._labels):
            own = self._labels == label
            totals = np.bincount(self._where[own, axis], weights=self._weights[own])
            if totals.max() > most:
                most, found = float(totals.max()), (int(totals.argmax()), int(label))
        return found


def _window(
    points: NDArray[np.int64], shape: Sequence[int], spacing: tuple[float, float], smallest_mm: float
) -> tuple[slice, slice]:
    """A square around the points, large enough to recognize where one is."""
    if len(points) == 0:
        points = np.array([[length // 2 for length in shape]])
    ends = np.percentile(points, [2, 98], axis=0)
    side = max(smallest_mm, _WINDOW_PER_EXTENT * float(((ends[1] - ends[0] + 1) * spacing).max()))
    window = []
    for axis in (0, 1):
        length = min(shape[axis], max(1, round(side / spacing[axis])))
        start = int(np.clip(round(float(ends[:, axis].mean()) - length / 2), 0, shape[axis] - length))
        window.append(slice(start, start + length))
    return window[0], window[1]
