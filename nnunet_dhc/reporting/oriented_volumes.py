# SPDX-License-Identifier: Apache-2.0
"""Volumes turned so that array axes are foot to head, front to back, right to left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_dhc.reporting.image_files import read_image, simple_itk, tells_place


@dataclass(frozen=True)
class Volume:
    """Voxels (z, y, x) and spacing of the same axes in mm; a 2D image has one slice."""

    voxels: NDArray[Any]
    spacing: tuple[float, float, float]


def read_oriented(path: Path) -> Volume:
    """The volume in LPS orientation where the file tells its own, else as it is stored."""
    if tells_place(path) and (volume := _turned(path)) is not None:
        return volume
    voxels, found = read_image(path)
    if voxels.ndim == 3 and len(found) == 2:
        voxels = voxels.mean(axis=-1)  # a color picture
    if voxels.ndim == 2:
        return Volume(voxels[np.newaxis], (1.0, found[0], found[1]))
    return Volume(voxels, (found[0], found[1], found[2]))


def _turned(path: Path) -> Volume | None:
    sitk = simple_itk()
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None  # read_image has a second reader and a better message
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        return None
    image = sitk.DICOMOrient(image, "LPS")
    spacing = image.GetSpacing()[::-1]
    return Volume(sitk.GetArrayFromImage(image), (spacing[0], spacing[1], spacing[2]))
