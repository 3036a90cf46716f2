# SPDX-License-Identifier: Apache-2.0
"""Scores of one case: per structure Dice, surface distances, volumes, and what is missed or made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.image_files import read_label_map, tells_spacing
from nnunet_dhc.reporting.protocols import Protocol
from nnunet_dhc.reporting.structures import LabelSpace, Structure
from nnunet_dhc.reporting.surface_distances import Points, distances_between, surface_points

_MAX_LABEL = 1023  # a larger value in a label map is a mistake, and would cost memory
_SLAB_VOXELS = 4_000_000

Scores = dict[str, dict[str, Any]]
Box = tuple[slice, ...]


def score_files(prediction: Path, reference: Path, labels: LabelSpace, protocol: Protocol) -> Scores:
    """Scores per structure key of one pair of files."""
    predicted, spacing_of_prediction = read_label_map(prediction)
    expected, spacing_mm = read_label_map(reference)
    if not tells_spacing(reference):  # nnU-Net copies reference TIFF files without the JSON file that has it
        spacing_mm = spacing_of_prediction
    if predicted.shape != expected.shape:
        raise UserError(f"{prediction} has shape {predicted.shape}, its reference {reference} has {expected.shape}: "
                        "they are not of the same scan, or one was resampled.")
    _check_labels(prediction, predicted, labels)
    _check_labels(reference, expected, labels, may_have_others=True)
    return score_arrays(predicted, expected, spacing_mm, labels, protocol)


def _check_labels(path: Path, voxels: NDArray[Any], labels: LabelSpace, may_have_others: bool = False) -> None:
    """Refuse labels that the dataset doesn't have: a mask of 255, a file of another dataset, absurd numbers.

    Args:
        may_have_others: As a reference in which more is labeled than was trained, but not with one label alone.
    """
    largest = int(voxels.max(initial=0))
    found = [largest] if largest > _MAX_LABEL else np.flatnonzero(_label_counts(voxels, largest + 1)).tolist()
    unknown = sorted(set(found) - labels.all_labels)
    if unknown and not (may_have_others and len(set(found) - {0}) > 1):
        raise UserError(f"{path} holds the label {unknown[0]}, which is not in dataset.json: name it there under "
                        "labels, or make it 0 in the file.")


def score_arrays(
    prediction: NDArray[Any], reference: NDArray[Any], spacing_mm: tuple[float, ...], labels: LabelSpace,
    protocol: Protocol,
) -> Scores:
    """Scores per structure key.

    Ignored voxels belong to no structure, in the prediction as in the reference. Both label maps are cropped to their
    common foreground, and each structure to its own box, before any surface is made.

    Args:
        prediction: Label map (z, y, x), integer, >= 0.
        reference: Label map of the same shape.
        spacing_mm: Spacing per axis, mm.
        labels: Structures and ignore label.
        protocol: Which scores to compute and what an empty structure is worth.
    """
    if not labels.covers_background:
        box = _foreground_box(prediction, reference)
        prediction, reference = prediction[box], reference[box]
    if labels.ignore_label is not None:
        prediction = np.where(reference == labels.ignore_label, labels.ignore_label, prediction)
    counts = _label_pairs(prediction, reference)
    boxes = _label_boxes(prediction), _label_boxes(reference)
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    scores: Scores = {}
    for structure in labels.structures:
        inside = [label for label in structure.labels if label < counts.shape[0]]
        both = int(counts[np.ix_(inside, inside)].sum())
        n_prediction = int(counts[inside, :].sum())
        n_reference = int(counts[:, inside].sum())
        values: dict[str, Any] = {
            "volume_reference_ml": n_reference * voxel_ml,
            "volume_prediction_ml": n_prediction * voxel_ml,
            "missed": n_reference > 0 and n_prediction == 0,
            "spurious": n_reference == 0 and n_prediction > 0,
        }
        if n_reference and n_prediction:
            spacing = spacing_mm if protocol.distances_in_mm else (1.0,) * len(spacing_mm)
            surfaces = [_surface(voxels, structure, found, spacing)
                        for voxels, found in zip((prediction, reference), boxes, strict=True)]
            distances = distances_between(*surfaces)
            values.update(protocol.scores(2.0 * both / (n_prediction + n_reference), distances))
        else:
            values.update(protocol.scores_of_empty(n_prediction > 0, n_reference > 0))
        scores[structure.key] = values
    return scores


def _surface(voxels: NDArray[Any], structure: Structure, boxes: dict[int, Box],
             spacing: tuple[float, ...]) -> Points:
    """Surface points of a structure, from the crop to its own box."""
    found = [boxes[label] for label in structure.labels if label in boxes]
    box = tuple(slice(min(b[axis].start for b in found), max(b[axis].stop for b in found))
                for axis in range(voxels.ndim))
    crop = voxels[box]
    mask = crop == structure.labels[0] if len(structure.labels) == 1 else np.isin(crop, structure.labels)
    # An axis of the image that is longer than 1 stays an axis where the structure is one voxel thick there.
    padded = [(0, 1) if length == 1 and voxels.shape[axis] > 1 else (0, 0) for axis, length in enumerate(mask.shape)]
    return surface_points(np.pad(mask, padded), spacing, tuple(part.start for part in box))


def _foreground_box(*label_maps: NDArray[Any]) -> Box:
    """Smallest box with every voxel that is not 0, one voxel at least."""
    shape = label_maps[0].shape
    box = []
    for axis in range(len(shape)):
        others = tuple(other for other in range(len(shape)) if other != axis)
        used = np.flatnonzero(np.logical_or.reduce([voxels.any(axis=others) for voxels in label_maps]))
        box.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1))
    # A crop must not turn an axis of the image into an axis of length 1: that would look like a 2D image.
    return tuple(part if part.stop - part.start > 1 or length == 1
                 else (slice(part.start, part.stop + 1) if part.stop < length else slice(part.start - 1, part.stop))
                 for part, length in zip(box, shape, strict=True))


def _label_pairs(prediction: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.int64]:
    """How many voxels have label i in the prediction and j in the reference, shape (labels, labels)."""
    size = int(max(prediction.max(initial=0), reference.max(initial=0))) + 1
    counts = np.zeros(size * size, dtype=np.int64)
    for slab in _slabs(prediction):
        pairs = prediction[slab].astype(np.int64) * size + reference[slab].astype(np.int64)
        counts += np.bincount(pairs.ravel(), minlength=size * size)
    return counts.reshape(size, size)


def _label_counts(voxels: NDArray[Any], size: int) -> NDArray[np.int64]:
    """How many voxels have each label below ``size``."""
    counts = np.zeros(size, dtype=np.int64)
    for slab in _slabs(voxels):
        counts += np.bincount(voxels[slab].ravel().astype(np.int64, copy=False), minlength=size)
    return counts


def _slabs(voxels: NDArray[Any]) -> Iterator[slice]:
    """Parts along the first axis, so that sums over large volumes need little memory."""
    rows = max(1, _SLAB_VOXELS // max(1, voxels[:1].size))
    return (slice(start, start + rows) for start in range(0, len(voxels), rows))


def _label_boxes(voxels: NDArray[Any]) -> dict[int, Box]:
    """Box of every label that occurs, label 0 included, from one pass."""
    boxes = {label: box for label, box in enumerate(ndimage.find_objects(voxels), 1)
             if box is not None}
    boxes[0] = tuple(slice(0, length) for length in voxels.shape)
    return boxes
