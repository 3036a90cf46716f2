# SPDX-License-Identifier: Apache-2.0
"""Pictures of the cases and slices where the rows differ most: image, reference, each row, in three planes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_dhc.disagreement import Cut, Disagreement, Labels
from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.collection import Collection
from nnunet_dhc.reporting.oriented_volumes import Volume, read_oriented
from nnunet_dhc.reporting.pictures import gray_picture, label_colors, label_picture
from nnunet_dhc.reporting.score_tables import RowScores, case_means
from nnunet_dhc.reporting.structures import LabelSpace

_MOST_CASES = 3
_SMALLEST_WINDOW_MM = 130.0
_PICTURE_SIDE = 320
_CT_WINDOW = (-160.0, 240.0)


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
    maps = [voxels for _, voxels in predictions]
    disagreement = Disagreement([reference, *maps]) if len(maps) == 1 else Disagreement(maps, reference)
    intensity = _window(image, collection.channel)
    return [_plane(cut, image, intensity, reference, predictions, disagreement, collection.labels)
            for cut in disagreement.cuts(image.spacing, _SMALLEST_WINDOW_MM)]


def _read_labels(path: Path) -> Labels:
    """A label map that was scored before, so whole numbers, in whatever type the file has."""
    voxels = read_oriented(path).voxels
    return voxels if np.issubdtype(voxels.dtype, np.integer) else np.rint(voxels).astype(np.int64)


def _same_shape(path: Path, reference: Labels) -> Labels:
    voxels = _read_labels(path)
    if voxels.shape != reference.shape:
        raise UserError(f"a prediction has shape {voxels.shape}, the reference {reference.shape}")
    return voxels


def _plane(cut: Cut, image: Volume, intensity: tuple[float, float], reference: Labels,
           predictions: Sequence[tuple[str, Labels]], disagreement: Disagreement, labels: LabelSpace
           ) -> dict[str, Any]:
    expected = cut.of(reference)
    visible = np.unique(np.concatenate([np.unique(cut.of(voxels)) for _, voxels in (("", reference), *predictions)]))
    colors = _colors({int(label): disagreement.weight_on(cut, label) for label in visible if label > 0}, expected)
    layers = [{"row": name, "picture": label_picture(cut.of(voxels), colors, cut.spacing, _PICTURE_SIDE, expected)}
              for name, voxels in predictions]
    picture, size = gray_picture(cut.of(image.voxels), intensity, cut.spacing, _PICTURE_SIDE)
    return {
        "plane": cut.plane, "slice": cut.index + 1, "slices": cut.slices, "size": list(size), "image": picture,
        "reference": label_picture(expected, colors, cut.spacing, _PICTURE_SIDE),
        "rows": layers,
        "legend": [{"name": _name(label, labels), "color": color} for label, color in colors.items()],
    }


def _colors(disputed: dict[int, float], reference: Labels) -> dict[int, str]:
    """The labels that the slice is about get colors, the same ones on every slice where possible; others stay gray.

    Args:
        disputed: How much every visible label is in dispute.
        reference: Of the slice; decides between labels that nothing disputes.
    """
    weights = {label: weight + 1e-9 * float((reference == label).sum()) for label, weight in disputed.items()}
    return label_colors(sorted(weights, key=lambda label: -weights[label]))


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
