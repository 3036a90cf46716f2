# SPDX-License-Identifier: Apache-2.0
"""Pictures of the cases and slices where the rows differ most: image, reference, each row, in three planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.collection import Collection
from nnunet_dhc.reporting.oriented_volumes import Volume, read_oriented
from nnunet_dhc.reporting.pictures import gray_picture, label_colors, label_picture
from nnunet_dhc.reporting.score_tables import RowScores, case_means
from nnunet_dhc.reporting.structures import LabelSpace

_MOST_CASES = 3
_SMALLEST_WINDOW_MM = 130.0
_WINDOW_PER_EXTENT = 2.2
_PICTURE_SIDE = 320
_CT_WINDOW = (-160.0, 240.0)
_PLANES = ("axial", "coronal", "sagittal")

Labels = NDArray[np.integer[Any]]
Window = tuple[slice, slice]


def add_overlays(comparison: dict[str, Any], collection: Collection, tables: Sequence[RowScores]) -> None:
    """Put pictures into ``comparison["overlays"]``; without images the notes say so."""
    if not collection.images:
        comparison["notes"].append("No picture: the images were not found (nnUNet_raw/.../imagesTr, or --images).")
        return
    metric = comparison["protocol"]["metrics"][0]
    means = np.stack([case_means(table.matrix(metric["key"])) for table in tables])
    for index in _most_different_cases(means, metric["higher_is_better"]):
        case = tables[0].cases[index]
        if case not in collection.images:
            continue
        try:
            pictures = _case_pictures(case, collection)
        except (UserError, ValueError, RuntimeError) as error:
            why = "its files can't be shown" if comparison["anonymised"] else error  # which names a file
            comparison["notes"].append(f"No picture of {case}: {why}")
            continue
        scores = [{"row": table.row.name, "value": None if np.isnan(mean) else float(mean)}
                  for table, mean in zip(tables, means[:, index], strict=True)]
        comparison["overlays"].append({"case": case, "scores": scores, "planes": pictures})


def _most_different_cases(means: NDArray[np.float64], higher_is_better: bool) -> list[int]:
    """Cases with the largest spread between rows; with one row, its worst cases."""
    if len(means) == 1:
        badness = -means[0] if higher_is_better else means[0]
    else:
        badness = means.max(axis=0) - means.min(axis=0)
    order = np.argsort(np.nan_to_num(-badness, nan=np.inf), kind="stable")
    return [int(index) for index in order[:_MOST_CASES]]


def _case_pictures(case: str, collection: Collection) -> list[dict[str, Any]]:
    image = read_oriented(collection.images[case])
    reference = _read_labels(collection.references[case])
    shown = [(row.name, next(run.predictions[case] for run in row.runs if case in run.predictions))
             for row in collection.rows]
    predictions = [(name, _same_shape(path, reference)) for name, path in shown]
    if image.voxels.shape != reference.shape:
        raise UserError(f"the image has shape {image.voxels.shape}, the reference {reference.shape}")
    ignored = collection.labels.ignore_label
    if ignored is not None:
        predictions = [(name, np.where(reference == ignored, ignored, voxels)) for name, voxels in predictions]
    where, weights, labels = _disagreement(reference, [voxels for _, voxels in predictions])
    axes = [axis for axis in range(3) if image.voxels.shape[axis] > 1]
    planes = [0] if len(axes) < 3 else [0, 1, 2]
    intensity = _window(image, collection.channel)
    return [_plane(axis, image, intensity, reference, predictions, (where, weights, labels), collection.labels)
            for axis in planes]


def _read_labels(path: Path) -> Labels:
    """A label map that was scored before, so whole numbers, in whatever type the file has."""
    voxels = read_oriented(path).voxels
    return voxels if np.issubdtype(voxels.dtype, np.integer) else np.rint(voxels).astype(np.int64)


def _same_shape(path: Path, reference: Labels) -> Labels:
    voxels = _read_labels(path)
    if voxels.shape != reference.shape:
        raise UserError(f"a prediction has shape {voxels.shape}, the reference {reference.shape}")
    return voxels


def _disagreement(reference: Labels, predictions: Sequence[Labels]
                  ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Voxels where the rows disagree (with one row: where it is wrong), their weight, and the label in question.

    A voxel weighs 1 / largest volume of its rarest label, so that a small structure is not drowned by a large one.
    """
    others = [reference] if len(predictions) == 1 else predictions[1:]
    differs = np.zeros(reference.shape, dtype=bool)
    for other in others:
        differs |= other != predictions[0]
    where = np.argwhere(differs)
    if len(where) == 0:
        where = np.argwhere(reference > 0)
    if len(where) == 0:
        where = np.array([[length // 2 for length in reference.shape]])
    size = 1 + int(max(voxels.max(initial=0) for voxels in (reference, *predictions)))
    volumes = np.stack([np.bincount(voxels.ravel(), minlength=size) for voxels in (reference, *predictions)])
    weight = 1.0 / np.maximum(volumes.max(axis=0), 20.0)
    weight[0] = 0.0
    at = tuple(where.T)
    candidates = np.stack([voxels[at].astype(np.int64) for voxels in (reference, *predictions)])
    best = weight[candidates].argmax(axis=0)
    labels = candidates[best, np.arange(len(where))]
    return where, weight[labels], labels


@dataclass(frozen=True)
class _Slice:
    """Takes the same slice and window of any volume, drawn with the head up and the patient's right on the left."""

    axis: int
    index: int
    window: Window
    spacing: tuple[float, float]

    def of(self, voxels: NDArray[Any]) -> NDArray[Any]:
        plane: NDArray[Any] = np.take(voxels, self.index, axis=self.axis)[self.window]
        return plane if self.axis == 0 else plane[::-1]  # rows of coronal and sagittal slices run from foot to head


def _plane(axis: int, image: Volume, intensity: tuple[float, float], reference: Labels,
           predictions: Sequence[tuple[str, Labels]],
           disagreement: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]],
           labels: LabelSpace) -> dict[str, Any]:
    where, weights, involved = disagreement
    index, subject = _slice_and_subject(axis, *disagreement)
    here = where[:, axis] == index
    rest = [other for other in range(3) if other != axis]
    spacing = (image.spacing[rest[0]], image.spacing[rest[1]])
    shape = (reference.shape[rest[0]], reference.shape[rest[1]])
    window = _zoom(where[here & (involved == subject)][:, rest], shape, spacing)
    cut = _Slice(axis, index, window, spacing)
    expected = cut.of(reference)
    visible = np.unique(np.concatenate([np.unique(cut.of(voxels)) for _, voxels in (("", reference), *predictions)]))
    colors = _colors(involved[here], weights[here], visible, expected)
    layers = [{"row": name, "picture": label_picture(cut.of(voxels), colors, spacing, _PICTURE_SIDE, expected)}
              for name, voxels in predictions]
    picture, size = gray_picture(cut.of(image.voxels), intensity, spacing, _PICTURE_SIDE)
    return {
        "plane": _PLANES[axis] if len(image.voxels.shape) == 3 and min(image.voxels.shape) > 1 else "slice",
        "slice": index + 1, "slices": int(reference.shape[axis]), "size": list(size), "image": picture,
        "reference": label_picture(expected, colors, spacing, _PICTURE_SIDE),
        "rows": layers,
        "legend": [{"name": _name(label, labels), "color": color} for label, color in colors.items()],
    }


def _slice_and_subject(axis: int, where: NDArray[np.int64], weights: NDArray[np.float64],
                       involved: NDArray[np.int64]) -> tuple[int, int]:
    """The slice and the label with the largest weighted disagreement: one structure decides, the picture is on it."""
    best = (-1.0, int(where[0, axis]), int(involved[0]))
    for label in np.unique(involved):
        own = involved == label
        totals = np.bincount(where[own, axis], weights=weights[own])
        best = max(best, (float(totals.max()), int(totals.argmax()), int(label)))
    return best[1], best[2]


def _zoom(points: NDArray[np.int64], shape: tuple[int, int], spacing: tuple[float, float]) -> Window:
    """A square around the disagreement, large enough to recognize where one is."""
    window = []
    spread = [np.percentile(points[:, axis], [2, 98]) for axis in (0, 1)] if len(points) else [np.zeros(2)] * 2
    extent = max(float(spread[axis][1] - spread[axis][0] + 1) * spacing[axis] for axis in (0, 1))
    side = max(_SMALLEST_WINDOW_MM, _WINDOW_PER_EXTENT * extent)
    for axis in (0, 1):
        length = min(shape[axis], max(1, round(side / spacing[axis])))
        center = float(spread[axis].mean()) if len(points) else shape[axis] / 2
        start = int(np.clip(round(center - length / 2), 0, shape[axis] - length))
        window.append(slice(start, start + length))
    return window[0], window[1]


def _colors(involved: NDArray[np.int64], weights: NDArray[np.float64], visible: Labels,
            reference: Labels) -> dict[int, str]:
    """The labels that the slice is about get colors, the same ones on every slice where possible; others stay gray."""
    totals = {int(label): float(weights[involved == label].sum()) + 1e-9 * float((reference == label).sum())
              for label in visible if label > 0}
    return label_colors(sorted(totals, key=lambda label: -totals[label]))


def _name(label: int, labels: LabelSpace) -> str:
    """Name of the smallest structure with this label."""
    if label == labels.ignore_label:
        return "ignored"
    holding = [structure for structure in labels.structures if label in structure.labels]
    return min(holding, key=lambda item: len(item.labels)).name.replace("_", " ") if holding else f"label {label}"


def _window(image: Volume, channel: str) -> tuple[float, float]:
    """Gray values from black to white: a soft-tissue window for CT in Hounsfield units, percentiles elsewhere."""
    if channel.upper() == "CT" and image.voxels.min() < _CT_WINDOW[0]:
        return _CT_WINDOW
    low, high = np.percentile(image.voxels, [0.5, 99.5])
    return float(low), float(high if high > low else low + 1)
