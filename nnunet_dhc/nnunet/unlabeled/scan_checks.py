# SPDX-License-Identifier: Apache-2.0
"""Read one scan with nnU-Net's reader and say in a few words what is wrong with it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from typing import Any

import numpy as np

from nnunet_dhc.nifti_integrity import damage_of_nifti, is_nifti, non_finite
from nnunet_dhc.wording import counted

_ERROR_PREFIX = re.compile(r"^(ITK|sitk::) ?ERROR: (\w+\(0x[0-9a-f]+\): )?")


class BadScan(Exception):
    """What is wrong with one scan; its message follows the scan's name in a list."""


def read_checked(
    reader: Any,
    image_files: list[str],
    num_channels: int,
    dataset_is_2d: bool,
    warnings: list[str],
    slice_axis: int = 0,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a scan and check its content.

    Args:
        reader: nnU-Net's reader of the plans.
        image_files: One file per channel, in order.
        num_channels: Channels that ``dataset.json`` names.
        dataset_is_2d: Whether the dataset's images are single slices.
        warnings: Gets one text per oddity that nnU-Net itself only warns of.
        slice_axis: Axis of the voxels that the plans make the first one, along which a single slice has length 1.

    Returns:
        Voxels, float32, (c, x, y, z), and the reader's properties.

    Raises:
        BadScan: The scan can't be trained on.
    """
    _check_files(reader, image_files)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            data, properties = reader.read_images(image_files)
    except MemoryError:
        raise
    except Exception as error:
        raise BadScan(_reading_failure(error, printed.getvalue(), len(image_files))) from error
    for what in ("origin", "direction", "affines"):
        if "WARNING" in printed.getvalue() and what in printed.getvalue():
            warnings.append(f"its channels differ in {what.rstrip('s')}")
    if "no spacing file" in printed.getvalue():  # nnU-Net's reader of TIFF takes 1 mm then
        warnings.append("no .json with the spacing, so 1 mm is assumed,")
    if "NaturalImage" in type(reader).__name__ and data.shape[0] != num_channels:  # a file may hold all colors
        raise BadScan(
            f"has {counted(data.shape[0], 'channel')} in {counted(len(image_files), 'file')}, dataset.json names "
            f"{num_channels}: convert it to colors, or add the missing files"
        )
    _check_dimensions(data, num_channels, dataset_is_2d, slice_axis, len(image_files))
    for number in _constant_channels(data, properties):
        where = f"_{number:04d}" if len(image_files) == len(data) else f"{number} of its file"
        warnings.append(f"channel {where} is constant, as if it were missing,")
    return data, properties


def _check_dimensions(
    data: np.ndarray, num_channels: int, dataset_is_2d: bool, slice_axis: int, num_files: int
) -> None:
    """Raise ``BadScan`` unless voxels, (c, x, y, z), have the channels and dimensions of the dataset."""
    if data.shape[0] != num_channels:
        if data.shape[0] == num_files and num_files < num_channels:
            raise BadScan(f"lacks the channel _{num_files:04d}; dataset.json names {num_channels}")
        raise BadScan(f"has {data.shape[0]} channels in {num_files} file(s); dataset.json names {num_channels}")
    slices = data.shape[1 + slice_axis]
    if dataset_is_2d and slices != 1:
        raise BadScan(f"is 3D (shape {_shape(data)}), but the dataset is 2D")
    if not dataset_is_2d and slices == 1:
        raise BadScan(f"is 2D (shape {_shape(data)}), but the dataset is 3D")


def _constant_channels(data: np.ndarray, properties: dict[str, Any]) -> list[int]:
    """Which channels hold one value only; raises ``BadScan`` unless these voxels, (c, x, y, z), can be trained on."""
    spacing = np.asarray(properties["spacing"], dtype=float)
    if not np.all(np.isfinite(spacing)) or np.any(spacing <= 0):
        raise BadScan(f"has the spacing {spacing.tolist()}, which is not positive")
    finite = np.isfinite(data)
    if not finite.all():
        raise BadScan(str(non_finite(int(np.isnan(data).sum()), int(np.isinf(data).sum()), data.size)))
    constant = [number for number, channel in enumerate(data) if channel.min() == channel.max()]
    if len(constant) == len(data):
        raise BadScan(f"is constant (every voxel is {float(data.flat[0]):g})")
    return constant


def voxel_hash(data: np.ndarray) -> str:
    """SHA-256 of shape and float32 voxels of all channels, as read: equal for equal images however they are stored."""
    digest = hashlib.sha256(repr(tuple(data.shape)).encode())
    digest.update(np.ascontiguousarray(data, dtype="<f4").data)
    return digest.hexdigest()


def one_line(error: BaseException, limit: int = 200) -> str:
    """The last line of an exception's text, which is where libraries say what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # ITK appends the text of an old errno to every failure.
    lines = [line for line in lines if not line.startswith("Reason: ")] or lines
    text = _ERROR_PREFIX.sub("", lines[-1]) if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _check_files(reader: Any, image_files: list[str]) -> None:
    if "Nibabel" in type(reader).__name__:
        return  # it reports all of this itself
    for path in image_files:
        damage = damage_of_nifti(path) if is_nifti(path) else None
        if damage is not None:
            raise BadScan(damage if len(image_files) == 1 else f"{os.path.basename(path)} {damage}")


def _reading_failure(error: Exception, printed: str, num_files: int) -> str:
    for what in ("shape", "spacing"):
        if f"same {what}" in printed:
            return f"has channels that differ in {what}"
    if "concatenate" in str(error) and num_files > 1:
        return "has channels that differ in shape"
    return f"can't be read ({one_line(error)})"


def _shape(data: np.ndarray) -> str:
    return "x".join(str(size) for size in data.shape[1:])
