# SPDX-License-Identifier: Apache-2.0
"""Find truncated or damaged NIfTI files, and NaN in them, which ITK reads without an error as zeros.

SimpleITK 2.5, nnU-Net's usual reader, fills what is missing from a truncated ``.nii`` or ``.nii.gz`` with zeros and
replaces NaN and infinity by zeros. So the file itself is read once more, in pieces: length, checksum and finite values.
"""

from __future__ import annotations

import gzip
import os
import zlib
from typing import IO, Any

import numpy as np

_PIECE_BYTES = 1 << 22


def is_nifti(path: str) -> bool:
    """Whether the name says NIfTI in one file."""
    return path.endswith((".nii", ".nii.gz"))


def damage_of_nifti(path: str, must_be_finite: bool = True) -> str | None:
    """What is wrong with the bytes of a NIfTI file, or None."""
    try:
        layout = _layout(path)
    except Exception as error:
        return f"is no readable NIfTI file ({type(error).__name__})"
    return _damage_of_content(path, *layout, must_be_finite)


def known_damage_of_nifti(path: str) -> str | None:
    """As `damage_of_nifti`, whatever its values; None also where nibabel can't read the header.

    Other readers take headers that nibabel refuses, as quaternions that aren't quite normalized.
    """
    try:
        layout = _layout(path)
    except Exception:
        return damage_of_gzip(path) if path.endswith(".gz") else None
    return _damage_of_content(path, *layout, must_be_finite=False)


def _damage_of_content(
    path: str, offset: int, dtype: np.dtype, shape: tuple[int, ...], must_be_finite: bool
) -> str | None:
    expected = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    compressed = path.endswith(".gz")
    if not compressed and dtype.kind not in "fc":
        size = os.path.getsize(path)
        return _too_short(size, expected) if size < expected else None
    try:
        with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
            size, nan, infinite = _scan(file, offset, expected, dtype)
    except (EOFError, OSError, zlib.error) as error:
        return _unreadable(error)
    if size < expected:
        return _too_short(size, expected)
    return non_finite(nan, infinite, int(np.prod(shape, dtype=np.int64))) if must_be_finite else None


def damage_of_gzip(path: str) -> str | None:
    """What is wrong with a compressed file, whatever is in it, or None."""
    try:
        with gzip.open(path, "rb") as file:
            while file.read(_PIECE_BYTES):
                pass
    except (EOFError, OSError, zlib.error) as error:
        return _unreadable(error)
    return None


def non_finite(nan: int, infinite: int, total: int) -> str | None:
    """Say how many voxels are no numbers."""
    parts = [f"{count} {name}" for count, name in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"has {' and '.join(parts)} voxels of {total}" if parts else None


def _layout(path: str) -> tuple[int, np.dtype, tuple[int, ...]]:
    """Where the voxels begin in the file, in bytes, their type, and their number along each axis."""
    import nibabel

    image: Any = nibabel.load(path)
    return int(image.dataobj.offset), image.header.get_data_dtype(), image.shape


def _unreadable(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "is truncated (the compressed data end too early)"
    if isinstance(error, (zlib.error, gzip.BadGzipFile)):
        return f"is damaged ({error})"
    return f"can't be read ({getattr(error, 'strerror', None) or error})"


def _too_short(size: int, expected: int) -> str:
    return f"is truncated ({size} of {expected} bytes)"


def _scan(file: IO[bytes] | gzip.GzipFile, offset: int, expected: int, dtype: np.dtype) -> tuple[int, int, int]:
    """Bytes in all, and NaN and infinite voxels between ``offset`` and ``expected``."""
    size = len(file.read(offset))
    nan = infinite = 0
    check = dtype.kind in "fc"
    # A multiple of every item size, so that no voxel is cut in two.
    while piece := file.read(_PIECE_BYTES):
        if check and size < expected:
            usable = min(len(piece), expected - size) // dtype.itemsize
            voxels = np.frombuffer(piece, dtype, usable)
            if not np.isfinite(voxels).all():
                nan += int(np.isnan(voxels).sum())
                infinite += int(np.isinf(voxels).sum())
        size += len(piece)
    return size, nan, infinite
