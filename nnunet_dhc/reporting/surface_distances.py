# SPDX-License-Identifier: Apache-2.0
"""Distances between two surfaces in mm: surfaces by SimpleITK, exact nearest distances by SciPy.

The surface of a mask is its voxels with a face neighbor outside the mask (beyond the image counts as outside); a
distance is that between voxel centers, with the true spacing. docs/choices.md has the comparison of libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_dhc.reporting.image_files import simple_itk

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class SurfaceDistances:
    """Sorted distances of every surface point to the other surface."""

    prediction_to_reference: NDArray[np.float64]
    reference_to_prediction: NDArray[np.float64]

    @property
    def hd95(self) -> float:
        """The larger of the two directed 95th percentiles."""
        return float(max(np.percentile(self.prediction_to_reference, 95),
                         np.percentile(self.reference_to_prediction, 95)))

    @property
    def assd(self) -> float:
        """Mean over the points of both surfaces together."""
        total = self.prediction_to_reference.sum() + self.reference_to_prediction.sum()
        return float(total / (len(self.prediction_to_reference) + len(self.reference_to_prediction)))


def surface_points(mask: Mask, spacing_mm: tuple[float, ...], origin: tuple[int, ...] | None = None) -> Points:
    """Positions of the surface voxels.

    Args:
        mask: Shape (z, y, x) or fewer axes, bool. Axes of length 1 are no axes: a 2D mask has an outline.
        spacing_mm: Voxel spacing per axis, mm.
        origin: Voxel position of the mask's first voxel in the image, where the mask is a crop of it.

    Returns:
        Shape (points, axes of the mask), mm.
    """
    sitk = simple_itk()
    axes = [axis for axis, length in enumerate(mask.shape) if length > 1]
    first = np.array([0 if origin is None else origin[axis] for axis in range(mask.ndim)], dtype=float)
    spacing = np.asarray(spacing_mm, dtype=float)
    if len(axes) < 2:  # a line, or one voxel: all of it is surface
        voxels = np.argwhere(mask)
    else:
        image = sitk.GetImageFromArray(np.pad(mask.squeeze(), 1).view(np.uint8))
        contour = sitk.BinaryContour(image, fullyConnected=False, foregroundValue=1)
        flat = np.argwhere(sitk.GetArrayViewFromImage(contour)) - 1
        voxels = np.zeros((len(flat), mask.ndim), dtype=np.int64)
        voxels[:, axes] = flat
    points: Points = (voxels + first) * spacing
    return points


def distances_between(prediction: Points, reference: Points) -> SurfaceDistances:
    """Exact Euclidean distances from every point of one surface to the nearest of the other; neither may be empty."""
    return SurfaceDistances(nearest_distances(prediction, reference), nearest_distances(reference, prediction))


def nearest_distances(points: Points, targets: Points) -> NDArray[np.float64]:
    """Sorted distances of ``points`` to the nearest of ``targets``."""
    from scipy.spatial import cKDTree

    distances: Any = cKDTree(targets).query(points)[0]
    result: NDArray[np.float64] = np.sort(distances)
    return result
