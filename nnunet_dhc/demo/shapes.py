# SPDX-License-Identifier: Apache-2.0
"""Implicit shapes of the phantom: distances in mm on warped coordinates, and the canvas they are painted on.

Every shape gives a signed distance in mm (negative inside; exact near the surface only). Coordinates are
(z, y, x) in mm, shape (3, ...): z towards the head, y towards the back, x towards the left side of the patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

Point = Sequence[float]
Distance = Callable[[np.ndarray], np.ndarray]


def _length(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Euclidean length of vectors given by component."""
    return np.sqrt(sum(component * component for component in vectors))


def turned(vectors: Sequence[np.ndarray], matrix: np.ndarray) -> list[np.ndarray]:
    """Row vectors, given by component, times a (3, 3) matrix.

    Written out: for three components a BLAS call is slower, and its threads wait for each other on a busy machine.
    """
    m = matrix.astype(np.float32)
    return [vectors[0] * m[0, j] + vectors[1] * m[1, j] + vectors[2] * m[2, j] for j in range(3)]


def rotation(angles_deg: Point) -> np.ndarray:
    """Rotation matrix (3, 3) about z, y and x, in this order, by the angles given."""
    az, ay, ax = np.deg2rad(np.asarray(angles_deg, dtype=np.float64))
    about_z = np.array([[1, 0, 0], [0, np.cos(az), -np.sin(az)], [0, np.sin(az), np.cos(az)]])
    about_y = np.array([[np.cos(ay), 0, -np.sin(ay)], [0, 1, 0], [np.sin(ay), 0, np.cos(ay)]])
    about_x = np.array([[np.cos(ax), -np.sin(ax), 0], [np.sin(ax), np.cos(ax), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def ellipsoid(center: Point, radii: Point, angles_deg: Point = (0, 0, 0)) -> Distance:
    """Ellipsoid with half axes ``radii`` in mm."""
    turn = rotation(angles_deg)
    center_, radii_ = np.asarray(center, np.float32), np.asarray(radii, np.float32)

    def distance(points: np.ndarray) -> np.ndarray:
        local = turned([p - c for p, c in zip(points, center_, strict=True)], turn)
        scaled = [component / r for component, r in zip(local, radii_, strict=True)]
        k0 = _length(scaled)
        k1 = _length([component / r for component, r in zip(scaled, radii_, strict=True)])
        return k0 * (k0 - 1) / np.maximum(k1, 1e-6)

    return distance


def tube(path: Sequence[Point], radii: Point, flatten: Point = (1, 1, 1)) -> Distance:
    """Tube along a polyline, its radius interpolated between the corners; ``flatten`` > 1 makes an axis thinner."""
    corners = np.asarray(path, np.float32) * np.asarray(flatten, np.float32)
    radii_, flatten_ = np.asarray(radii, np.float32), np.asarray(flatten, np.float32)

    def distance(points: np.ndarray) -> np.ndarray:
        scaled = points * flatten_[:, None, None, None]
        best = np.full(points.shape[1:], np.inf, np.float32)
        for start, end, r0, r1 in zip(corners[:-1], corners[1:], radii_[:-1], radii_[1:], strict=True):
            axis = end - start
            offset = [component - s for component, s in zip(scaled, start, strict=True)]
            along = sum(component * a for component, a in zip(offset, axis, strict=True))
            share = np.clip(along / max(float((axis * axis).sum()), 1e-6), 0, 1)
            gap = _length([component - share * a for component, a in zip(offset, axis, strict=True)])
            np.minimum(best, gap - (r0 + share * (r1 - r0)), out=best)
        return best

    return distance


def plate(center: Point, half_sizes: Point, angles_deg: Point = (0, 0, 0)) -> Distance:
    """Box with rounded edges, half as wide as ``half_sizes`` in mm (a limb of an adrenal gland, a crus)."""
    turn = rotation(angles_deg)
    center_, halves = np.asarray(center, np.float32), np.asarray(half_sizes, np.float32)
    edge = float(halves.min()) * 0.8

    def distance(points: np.ndarray) -> np.ndarray:
        local = turned([p - c for p, c in zip(points, center_, strict=True)], turn)
        over = [np.abs(component) - (half - edge) for component, half in zip(local, halves, strict=True)]
        outside = _length([np.maximum(component, 0) for component in over])
        return outside + np.minimum(np.maximum(np.maximum(over[0], over[1]), over[2]), 0) - edge

    return distance


def union(*shapes: Distance, blend_mm: float = 0.0) -> Distance:
    """Union of shapes; ``blend_mm`` > 0 rounds the crease between them."""

    def distance(points: np.ndarray) -> np.ndarray:
        best = shapes[0](points)
        for shape in shapes[1:]:
            other = shape(points)
            if blend_mm > 0:
                share = np.clip(0.5 + 0.5 * (other - best) / blend_mm, 0, 1)
                best = other + share * (best - other) - blend_mm * share * (1 - share)
            else:
                best = np.minimum(best, other)
        return best

    return distance


def without(shape: Distance, cut: Distance) -> Distance:
    """The part of ``shape`` outside ``cut``."""
    return lambda points: np.maximum(shape(points), -cut(points))


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], spacing_mm: Point, length_mm: float) -> np.ndarray:
    """Random field with mean about 0, standard deviation 1 and the correlation length given, float32.

    A cubic B-spline with random coefficients ``length_mm`` apart, evaluated axis by axis.
    """
    bases = [_spline_basis(n, n * s / length_mm) for n, s in zip(shape, spacing_mm, strict=True)]
    field = rng.standard_normal([basis.shape[1] for basis in bases]).astype(np.float32)
    for axis, basis in enumerate(bases):
        field = np.moveaxis(np.tensordot(basis, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field / field.std())


def _spline_basis(num_points: int, num_knots: float) -> np.ndarray:
    """Values of the cubic B-splines at evenly spaced points, shape (num_points, splines)."""
    splines = int(np.ceil(num_knots)) + 3
    offset = np.abs(np.linspace(1, splines - 2, num_points)[:, None] - np.arange(splines))
    near, far = 2 / 3 - offset**2 + offset**3 / 2, (2 - offset) ** 3 / 6
    return np.where(offset < 1, near, np.where(offset < 2, far, 0)).astype(np.float32)


class Canvas:
    """Image in HU and segmentation of one case, painted shape after shape; what is painted later lies on top.

    Once ``wall`` is set (signed distance to the inner side of the body wall), nothing is painted outside of it.
    """

    def __init__(self, points: np.ndarray, spacing_mm: Point, bumps: np.ndarray, background: float) -> None:
        self.points = points
        self.image = np.full(points.shape[1:], background, np.float32)
        self.segmentation = np.zeros(points.shape[1:], np.uint8)
        self.edge_mm = float(np.cbrt(np.prod(spacing_mm)))
        self.wall: np.ndarray | None = None
        self._bumps = bumps
        self._coarse = points[:, ::4, ::4, ::4]

    def box(self, corners: Sequence[Point], reach_mm: float) -> tuple[slice, ...]:
        """Smallest box of voxels that holds everything within ``reach_mm`` of the corners' bounding box."""
        low = (np.min(corners, axis=0) - reach_mm)[:, None, None, None]
        high = (np.max(corners, axis=0) + reach_mm)[:, None, None, None]
        inside = np.all((self._coarse >= low) & (self._coarse <= high), axis=0)
        found = ndimage.find_objects(inside.astype(np.int8))
        if not found or found[0] is None:
            return (slice(0, 0),) * 3
        return tuple(slice(max(0, 4 * s.start - 4), 4 * s.stop + 4) for s in found[0])

    def paint(self, shape: Distance, intensity: float | np.ndarray, box: tuple[slice, ...], label: int | None = 0,
              bump_mm: float = 0.0, shift: int = 0, only_in: int | None = None) -> None:
        """Paint a shape with soft edges (partial volume) into the image and, hard, into the segmentation.

        ``label=None`` keeps the segmentation (something inside an organ); ``only_in`` paints on that label alone.
        """
        view = self.points[(slice(None), *box)]
        if view.size == 0:
            return
        distance = shape(view)
        if bump_mm:
            # One noise field serves all shapes: each reads it at its own offset.
            distance = distance + bump_mm * np.roll(self._bumps, shift, axis=(0, 1, 2))[box]
        if self.wall is not None:
            distance = np.maximum(distance, self.wall[box])
        cover = np.clip(0.5 - distance / self.edge_mm, 0, 1)
        inside = distance < 0
        if only_in is not None:
            member = self.segmentation[box] == only_in
            cover, inside = cover * member, inside & member
        values = intensity[box] if isinstance(intensity, np.ndarray) else intensity
        image = self.image[box]
        image += cover * (values - image)
        if label is not None:
            self.segmentation[box][inside] = label
