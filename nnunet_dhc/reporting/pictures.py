# SPDX-License-Identifier: Apache-2.0
"""Slices as pictures that stand in the page itself (data URIs)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Okabe & Ito's colors for color-blind readers, the brightest first: they lie on gray values.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
_OTHER = "#9A9A9A"
_FILL, _EDGE, _OTHER_FILL = 105, 255, 40
_REFERENCE_EDGE = (255, 255, 255, 255)


def label_colors(labels: Sequence[int]) -> dict[int, str]:
    """Colors for the first labels, the same one for a label on every slice where no earlier label has it."""
    free = list(PALETTE)
    colors = {}
    for label in labels[: len(PALETTE)]:
        own = PALETTE[(label - 1) % len(PALETTE)]
        colors[label] = own if own in free else free[0]
        free.remove(colors[label])
    return colors


def gray_picture(plane: NDArray[Any], intensity: tuple[float, float], spacing: tuple[float, float],
                 side: int) -> tuple[str, tuple[int, int]]:
    """JPEG of a slice, and its (width, height); pixels are square."""
    from PIL import Image

    low, high = intensity
    scaled = np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1) * 255
    width, height = picture_size(plane.shape, spacing, side)
    picture = Image.fromarray(scaled.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=84)
    return _data_uri(buffer, "jpeg"), (width, height)


def label_picture(plane: NDArray[Any], colors: dict[int, str], spacing: tuple[float, float], side: int,
                  reference: NDArray[Any] | None = None) -> str:
    """PNG layer of a label map: translucent areas with outlines, and the reference's outline in white."""
    from PIL import Image

    labels = _enlarged(plane, spacing, side)
    picture = np.zeros((*labels.shape, 4), dtype=np.uint8)
    edges = _edges(labels)
    for label in np.unique(labels):
        if label == 0:
            continue
        known = int(label) in colors
        mask = labels == label
        picture[mask, :3] = _rgb(colors.get(int(label), _OTHER))
        picture[mask, 3] = np.where(edges[mask], _EDGE if known else _FILL, _FILL if known else _OTHER_FILL)
    if reference is not None:
        expected = _enlarged(reference, spacing, side)
        expected = np.where(np.isin(expected, list(colors)), expected, 0)
        picture[_edges(expected) & (expected > 0)] = _REFERENCE_EDGE
    buffer = io.BytesIO()
    Image.fromarray(picture, "RGBA").quantize(64).save(buffer, "PNG", optimize=True)
    return _data_uri(buffer, "png")


def picture_size(shape: tuple[int, ...], spacing: tuple[float, float], side: int) -> tuple[int, int]:
    """(width, height) with square pixels, the longer one ``side``."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _enlarged(plane: NDArray[Any], spacing: tuple[float, float], side: int) -> NDArray[Any]:
    """Nearest-neighbor enlargement, so that outlines are thin and labels stay labels."""
    width, height = picture_size(plane.shape, spacing, side)
    rows = np.minimum((np.arange(height) + 0.5) * plane.shape[0] / height, plane.shape[0] - 1).astype(int)
    columns = np.minimum((np.arange(width) + 0.5) * plane.shape[1] / width, plane.shape[1] - 1).astype(int)
    enlarged: NDArray[Any] = plane[np.ix_(rows, columns)]
    return enlarged


def _edges(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels with a neighbor of another label."""
    edges = np.zeros(labels.shape, dtype=bool)
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= right
    edges[:, :-1] |= right
    return edges


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _data_uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
