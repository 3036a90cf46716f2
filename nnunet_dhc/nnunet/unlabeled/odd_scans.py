# SPDX-License-Identifier: Apache-2.0
"""Tell scans that are nothing like the labeled ones (another modality, a wrong spacing), from images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_SAMPLED_VOXELS = 100_000
_SPACING_FACTOR = 3.0
_VOLUME_FACTOR = 10.0


class ImageSummary(NamedTuple):
    """What two scans are compared by: spacing, extent, low, middle and high intensity of each channel, orientation."""

    spacing_mm: tuple[float, ...]
    size_mm: tuple[float, ...]
    intensities: tuple[tuple[float, float, float], ...]
    orientation: str | None = None


def summarize(data: np.ndarray, properties: Mapping[str, Any]) -> ImageSummary:
    """Summary of an image, shape (c, x, y, z), from a regular sample of its voxels and what nnU-Net's reader tells."""
    spacing = tuple(float(value) for value in properties["spacing"])
    size = tuple(float(count * step) for count, step in zip(data.shape[1:], spacing, strict=True))
    sampled = [channel.reshape(-1)[:: max(1, channel.size // _SAMPLED_VOXELS)] for channel in data]
    intensities = tuple(tuple(float(v) for v in np.percentile(values, (0.5, 50, 99.5))) for values in sampled)
    return ImageSummary(spacing, size, intensities, orientation(properties))


def orientation(properties: Mapping[str, Any]) -> str | None:
    """Where the axes of the file point to, for example "RAS"; None for 2D, or where the reader reorients or can't say.

    nnU-Net's readers for ITK and for nibabel keep the axes of the file, so a scan stored in another orientation is
    turned or mirrored for the network.
    """
    import nibabel

    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        affine = None if "reoriented_affine" in stuff else stuff["original_affine"]
    else:
        direction = np.asarray(properties.get("sitk_stuff", {}).get("direction", ()))
        affine = None
        if direction.size == 9:
            affine = np.eye(4)
            affine[:3, :3] = np.diag((-1, -1, 1)) @ direction.reshape(3, 3)  # ITK's axes are left, posterior, superior
    return None if affine is None else "".join(map(str, nibabel.aff2axcodes(affine)))


def from_json(content: Any) -> ImageSummary | None:
    """Inverse of what JSON makes of a summary."""
    if content is None:
        return None
    spacing, size, intensities, *rest = content  # caches of earlier versions have no orientation
    return ImageSummary(tuple(spacing), tuple(size), tuple(tuple(channel) for channel in intensities), *rest)


def why_odd(
    scan: ImageSummary, references: Sequence[ImageSummary], normalization_schemes: Sequence[str]
) -> str | None:
    """In which respect a scan lies far outside of the labeled ones, or None.

    Spacing: an axis (in order of size) finer or coarser than all labeled ones by a factor of 3. Volume: by a factor of
    10. Intensities: a percentile outside of the labeled range by half of its width; not where the plans bring
    every image to zero mean anyway. Orientation: one that no labeled scan has.
    """
    # one that was read when the dataset had other channels tells nothing
    references = [reference for reference in references if len(reference.intensities) == len(scan.intensities)]
    if not references:
        return None
    spacings = np.sort([reference.spacing_mm for reference in references], axis=1)
    spacing = np.sort(scan.spacing_mm)
    if np.any(spacing < spacings.min(0) / _SPACING_FACTOR) or np.any(spacing > spacings.max(0) * _SPACING_FACTOR):
        return f"spacing {_by(scan.spacing_mm)} mm"
    volumes = [float(np.prod(reference.size_mm)) for reference in references]
    volume = float(np.prod(scan.size_mm))
    if not min(volumes) / _VOLUME_FACTOR <= volume <= max(volumes) * _VOLUME_FACTOR:
        return f"size {_by(scan.size_mm)} mm"
    orientations = {reference.orientation for reference in references}
    if None not in orientations | {scan.orientation} and scan.orientation not in orientations:
        return f"axes {scan.orientation}, labeled ones {' or '.join(sorted(orientations))}"
    for channel, scheme in enumerate(normalization_schemes):
        if scheme == "ZScoreNormalization":
            continue
        known = np.array([reference.intensities[channel] for reference in references])
        margin = 0.5 * float(np.max(known[:, 2] - known[:, 0]))
        values = np.array(scan.intensities[channel])
        if np.any(values < known.min(0) - margin) or np.any(values > known.max(0) + margin):
            low, _, high = scan.intensities[channel]
            where = f" of channel {channel}" if len(normalization_schemes) > 1 else ""
            return f"intensities{where} from {low:.4g} to {high:.4g}"
    return None


def _by(values: Sequence[float]) -> str:
    return "x".join(f"{value:.3g}" for value in values)
