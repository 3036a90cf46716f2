# SPDX-License-Identifier: Apache-2.0
"""Read images and label maps without nnU-Net, so that reports are made where torch is absent."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_dhc.errors import UserError
from nnunet_dhc.nifti_integrity import damage_of_gzip, is_nifti, known_damage_of_nifti

_PICTURE_ENDINGS = (".png", ".bmp", ".jpg", ".jpeg")  # pixels of pictures have no size in mm; SimpleITK gives 1 mm
_TIFF_ENDINGS = (".tif", ".tiff")
_PLACED_ENDINGS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")


def simple_itk() -> Any:
    """SimpleITK, imported when it is needed; it has no type annotations."""
    return import_module("SimpleITK")


def read_image(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Voxels in array order (z, y, x) and the spacing of the same axes, in mm."""
    sitk = simple_itk()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        if path.name.endswith((".nii", ".nii.gz")):
            return _read_nifti(path)  # ITK refuses directions that are not orthonormal
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{path} can't be read ({reason}); is the file complete?") from None
    spacing = tuple(float(value) for value in image.GetSpacing()[::-1])
    if path.suffix.lower() in _TIFF_ENDINGS:  # ITK takes the resolution of printing, nnU-Net doesn't
        spacing = _tiff_spacing(path) or (1.0,) * len(spacing)
    return sitk.GetArrayFromImage(image), spacing


def tells_place(path: Path) -> bool:
    """Whether the format keeps spacing, origin and direction in the file itself."""
    return path.name.endswith(_PLACED_ENDINGS)


def tells_spacing(path: Path) -> bool:
    """Whether the size of a voxel is known: not of pictures, and of TIFF files from the JSON file beside them alone."""
    ending = path.suffix.lower()
    return _tiff_spacing(path) is not None if ending in _TIFF_ENDINGS else ending not in _PICTURE_ENDINGS


def other_place(first: Path, second: Path) -> str | None:
    """In what the headers of two files differ, so that equal voxels lie elsewhere in the patient; None if in nothing.

    Spacing and origin in mm, and direction; read without the voxels. Files that tell no place are taken as equal.
    """
    one, other = _geometry(first), _geometry(second)
    if one is None or other is None:
        return None
    for name, here, there in zip(("spacing", "origin", "direction"), one, other, strict=True):
        if len(here) == len(there) and not np.allclose(here, there, rtol=1e-3, atol=1e-2):
            return f"{name} {_numbers(here)} and {_numbers(there)}"
    return None


def read_label_map(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    """An integer label map and its spacing in mm."""
    _check_whole(path)
    voxels, spacing = _read_picture(path) if path.suffix.lower() in _PICTURE_ENDINGS else read_image(path)
    if voxels.ndim == len(spacing) + 1:
        if not (voxels == voxels[..., :1]).all():
            raise UserError(f"{path} is a color picture: a label map has one number a pixel.")
        voxels = voxels[..., 0]
    if not np.issubdtype(voxels.dtype, np.integer):
        rounded = np.rint(voxels)
        if not np.array_equal(rounded, voxels):
            raise UserError(f"{path} holds values that are not whole numbers: it is not a label map.")
        voxels = rounded.astype(np.int64)
    if voxels.size and int(voxels.min()) < 0:
        raise UserError(f"{path} holds negative labels ({int(voxels.min())}): nnU-Net's labels start at 0.")
    return voxels, spacing


def _read_picture(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    """As nnU-Net reads it: with the values 0 and 1 where a pixel has one bit, which are 0 and 255 for ITK."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            voxels = np.asarray(picture)
    except Exception as error:  # each format has errors of its own
        raise UserError(f"{path} can't be read ({error}); is the file complete?") from None
    return voxels.astype(np.uint8) if voxels.dtype == bool else voxels, (1.0, 1.0)


def _check_whole(path: Path) -> None:
    """Refuse a NIfTI or compressed file that was cut off: ITK reads what is missing as background, without an error."""
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}).") from None
    if path.name.endswith(".gz") and not is_gzip:
        raise UserError(f"{path} is no gzip file, as its name says it is: compress it with gzip, or make it again.")
    if is_nifti(str(path)):
        damage = known_damage_of_nifti(str(path))
    elif path.name.endswith(".gz"):
        damage = damage_of_gzip(str(path))
    else:
        return
    if damage is not None:
        raise UserError(f"{path} {damage}: make it again.")


def _geometry(path: Path) -> tuple[tuple[float, ...], ...] | None:
    """Spacing, origin and direction from the header of a medical image; None for other files."""
    if not tells_place(path):
        return None
    sitk = simple_itk()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None  # directions that are not orthonormal, which ITK refuses
    return reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _read_nifti(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    import nibabel

    try:
        image: Any = nibabel.load(path)
        voxels = np.asanyarray(image.dataobj)
    except Exception as error:
        raise UserError(f"{path} can't be read ({error}); is the file complete?") from None
    zooms = tuple(float(value) for value in image.header.get_zooms()[: voxels.ndim])
    return voxels.transpose(), zooms[::-1]


def _tiff_spacing(path: Path) -> tuple[float, ...] | None:
    """3D TIFF files of nnU-Net keep their spacing in a JSON file beside them."""
    stem = path.name.removesuffix(path.suffix)
    for name in (stem, stem.rsplit("_", 1)[0]):
        sidecar = path.with_name(f"{name}.json")
        if sidecar.is_file():
            return tuple(float(value) for value in json.loads(sidecar.read_text(encoding="utf-8"))["spacing"])
    return None
