# SPDX-License-Identifier: Apache-2.0
"""A phantom of an abdomen: CT-like, 13 organs, 400 to 1 between the largest and the rarest, different in every case.

What makes it hard, on principle and not by the outcome of any method:

* *imbalance*: sizes follow the organs of BTCV relative to the liver, so the adrenal glands have about 100 voxels;
* *anatomical variation*: body size, fat, pose, a smooth deformation of everything, and position, size, angle and
  surface of each organ by itself; gallbladder, one kidney, spleen or one adrenal gland are sometimes absent;
* *appearance*: contrast phase, organ intensities that overlap between neighbors and differ between cases, textures,
  noise, partial volume at thick slices, different voxel spacings;
* *distractors*: bowel with the stomach's wall and filling, duodenum beside the pancreas, lymph nodes and crura as
  bright as adrenal glands, unlabeled veins and arteries, lesions and cysts inside organs.

Frozen: the generator (places, sizes, intensities, noise and their spreads: all numbers here and in ``anatomy``) was
adjusted for plausibility by eye and by short trainings of stock nnU-Net alone, and made easier after these (smaller
spread of intensities, less noise and deformation, no gas inside the stomach). It was frozen (``VERSION``) before any
semi-supervised training ran on it, and is never tuned to a result. What stock shows on it: within the about 1000 steps
of a small network that a CPU affords in minutes, it finds the liver and misses nearly everything smaller. That many
labeled cases and a long training make every organ learnable was the aim and has not been measured. A change to what
the generator draws needs a new version, and every figure that was made with the old one is made again.

Everything is a function of the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_dhc.demo.anatomy import CLASSES, Patient, draw_patient, paint_patient
from nnunet_dhc.demo.shapes import Canvas, rotation, smooth_noise, turned

VERSION = 1

__all__ = ["CLASSES", "VERSION", "PhantomCase", "make_case"]

_FIELD_OF_VIEW_MM = (192.0, 144.0, 144.0)


@dataclass(frozen=True)
class PhantomCase:
    """One case: image (z, y, x) int16 in HU, segmentation (z, y, x) uint8, spacing (z, y, x) in mm."""

    image: np.ndarray
    segmentation: np.ndarray
    spacing_mm: tuple[float, float, float]


def make_case(seed: int, absent_organs: bool = True) -> PhantomCase:
    """Draw one case.

    Args:
        seed: Decides everything about the case.
        absent_organs: Whether organs may be missing (as after surgery).

    Returns:
        The case; about (64, 96, 96) voxels of 3 x 1.5 x 1.5 mm.
    """
    rng = np.random.default_rng([VERSION, seed])
    spacing = (float(rng.choice([2.5, 3.0, 3.5])), *(float(round(rng.uniform(1.4, 1.65), 2)),) * 2)
    shape = tuple(round(length / s) for length, s in zip(_FIELD_OF_VIEW_MM, (spacing[0], 1.5, 1.5), strict=True))
    patient = draw_patient(rng, absent_organs)
    canvas = Canvas(_warped_points(rng, shape, spacing), spacing,
                    smooth_noise(rng, shape, spacing, length_mm=9), background=-1000)
    paint_patient(canvas, patient, rng, _textures(rng, shape, spacing, patient))
    return PhantomCase(_scan(canvas.image, rng, patient), canvas.segmentation, spacing)


def _warped_points(rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """Coordinates of every voxel in the patient's own frame, in mm: pose, body size and a smooth deformation."""
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    middle = rng.normal(0, (6, 2, 2)).astype(np.float32)
    grid = [axis + m for axis, m in zip(np.meshgrid(*axes, indexing="ij"), middle, strict=True)]
    points = np.stack(turned(grid, rotation(rng.normal(0, (4, 3, 3)))))
    points /= rng.normal(1.0, (0.05, 0.04, 0.04)).clip(0.9, 1.1).astype(np.float32)[:, None, None, None]
    for component, amplitude in zip(points, (3.5, 2.5, 2.5), strict=True):
        component += amplitude * smooth_noise(rng, shape, spacing, length_mm=48)
        component += 0.8 * smooth_noise(rng, shape, spacing, length_mm=18)
    return points


def _textures(rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...],
              patient: Patient) -> dict[str, np.ndarray]:
    """Random fields shared by all organs: fine grain, coarse mottling, and strands of tissue in the fat."""
    mottle = smooth_noise(rng, shape, spacing, length_mm=12)
    strands = smooth_noise(rng, shape, spacing, length_mm=7)
    # Thin patients have little fat between the organs: soft tissue shows in more of it.
    stranded = 1 / (1 + np.exp(-(strands - patient.fat_threshold) / 0.25))
    return {"mottle": mottle, "stranded": stranded.astype(np.float32),
            "grain": ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), 0.7) * 2.5}


def _scan(image: np.ndarray, rng: np.random.Generator, patient: Patient) -> np.ndarray:
    """What the scanner makes of it: blur (more along z), slow shading, correlated noise, whole HU."""
    blurred = ndimage.gaussian_filter(image, (0.45, 0.5, 0.5))
    ramp = np.linspace(-1, 1, image.shape[0], dtype=np.float32)[:, None, None] * rng.normal(0, 4)
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape).astype(np.float32), (0, 0.6, 0.6))
    noise *= patient.noise / noise.std()
    return np.clip(np.round(blurred + ramp + noise), -1024, 1500).astype(np.int16)
