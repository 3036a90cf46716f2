# SPDX-License-Identifier: Apache-2.0
"""Work on one scan, as a process of its own can do it: preprocess it without a label, or only hash it."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_dhc.nnunet.host.atomic_files import temporary_path, write_and_sync
from nnunet_dhc.nnunet.host.raw_images import RawCase, number_of_channels
from nnunet_dhc.nnunet.unlabeled.odd_scans import ImageSummary, orientation, summarize
from nnunet_dhc.nnunet.unlabeled.scan_checks import BadScan, one_line, read_checked, voxel_hash

# 16 GB as float32; the largest whole-body CT at 0.5 mm has a tenth of it.
_MOST_VOXELS = 4e9


@dataclass(frozen=True)
class CaseJob:
    """What every case needs: sent to each worker once."""

    plans: dict[str, Any]
    configuration_name: str
    dataset_json: dict[str, Any]
    folder: str
    with_nonzero_mask: bool

    def plans_manager(self) -> Any:
        """nnU-Net's, of these plans."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.plans)


@dataclass
class CaseResult:
    """What a worker hands back: files under temporary names, or what is wrong with the scan."""

    identifier: str
    bad: str | None = None
    unchanged: bool = False
    warnings: list[str] = field(default_factory=list)
    written: dict[str, str | None] = field(default_factory=dict)
    voxels: str | None = None
    spacing: tuple[float, ...] | None = None
    shape: tuple[int, ...] | None = None
    summary: ImageSummary | None = None


def is_2d_dataset(plans: dict[str, Any]) -> bool:
    """Whether the images of the dataset are single slices, as planning decides it."""
    return int(plans["original_median_shape_after_transp"][0]) == 1


KnownImage = tuple[str | None, tuple[float, ...] | None, str | None]
"""Voxels, by their hash, spacing and orientation of an image."""


@dataclass(frozen=True)
class CaseTask:
    """One scan and, where it was preprocessed before with these plans, what it was then."""

    case: RawCase
    known: KnownImage | None = None


@dataclass(frozen=True)
class HashTask:
    """A labeled or test case under its key in ``LabeledHashes``."""

    key: str
    case: RawCase


@dataclass(frozen=True)
class HashResult:
    """Voxel hash and summary of a labeled or test image; None if it can't be read."""

    key: str
    voxels: str | None = None
    summary: ImageSummary | None = None


def preprocess_case(job: CaseJob, task: CaseTask) -> CaseResult:
    """Preprocess one scan into temporary files.

    A scan that was only copied or touched (same voxels, spacing and orientation) is not preprocessed again.

    Raises:
        OSError: The result can't be written (disk full, no permission).
        MemoryError: The scan doesn't fit into memory.
    """
    result = CaseResult(task.case.identifier)
    arrays = preprocessed_arrays(job, task, result)
    if arrays is not None:
        _write(job, task.case, *arrays, result)
    return result


def preprocessed_arrays(
    job: CaseJob, task: CaseTask, result: CaseResult
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]] | None:
    """Preprocess one scan with the plans' own preprocessor, without a label.

    Args:
        result: Takes what is found out about the scan, and what is wrong with it.

    Returns:
        Image (c, x, y, z), float32, the preprocessor's segmentation, which without a label is the nonzero mask (0
        inside, -1 outside), and properties; None for a bad scan, or one that was preprocessed before.

    Raises:
        OSError: The disk or the network fails.
        MemoryError: The scan doesn't fit into memory.
    """
    case = task.case
    plans_manager = _WatchedPlans(job.plans_manager(), job, result, task.known)
    configuration_manager = plans_manager.get_configuration(job.configuration_name)
    try:
        preprocessor = configuration_manager.preprocessor_class(verbose=False)
        with contextlib.redirect_stdout(io.StringIO()):
            data, seg, properties = preprocessor.run_case(
                list(case.files), None, plans_manager, configuration_manager, job.dataset_json
            )
        if result.voxels is None:  # a preprocessor with a reader of its own
            plans_manager.image_reader_writer_class().read_images(list(case.files))
    except BadScan as error:
        result.bad = str(error)
        return None
    except _SameImage:
        result.unchanged = True
        return None
    except (MemoryError, OSError):
        raise
    except Exception as error:
        result.bad = f"can't be preprocessed ({type(error).__name__}: {one_line(error)})"
        return None
    if not np.isfinite(data).all():
        result.bad = "has NaN or infinite voxels after preprocessing"
        return None
    result.shape = tuple(int(size) for size in data.shape)
    return data.astype(np.float32, copy=False), seg, properties


def hash_case(job: CaseJob, task: HashTask) -> HashResult:
    """Read the images of a labeled or test case, and only these, to compare them with unlabeled ones."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            reader = job.plans_manager().image_reader_writer_class()
            data, properties = reader.read_images(list(task.case.files))
    except MemoryError:
        raise
    except Exception:
        return HashResult(task.key)  # the caller notes that it could not be compared
    return HashResult(task.key, voxel_hash(data), summarize(data, properties))


class _WatchedPlans:
    """A plans manager whose reader checks and hashes what the preprocessor reads, so that it is read once only."""

    def __init__(self, plans_manager: Any, job: CaseJob, result: CaseResult, known: Any) -> None:
        self._plans_manager = plans_manager
        self._job = job
        self._result = result
        self._known = known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plans_manager, name)

    def image_reader_writer_class(self) -> Any:
        return _CheckingReader(self._plans_manager, self._job, self._result, self._known)


class _SameImage(Exception):
    """The image is the one that was preprocessed before."""


class _CheckingReader:
    def __init__(self, plans_manager: Any, job: CaseJob, result: CaseResult, known: Any) -> None:
        self._plans_manager = plans_manager
        self._configuration = plans_manager.get_configuration(job.configuration_name)
        self._reader = plans_manager.image_reader_writer_class()
        self._job = job
        self._result = result
        self._known = known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def read_images(self, image_files: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
        data, properties = read_checked(
            self._reader,
            image_files,
            number_of_channels(self._job.dataset_json),
            is_2d_dataset(self._job.plans),
            self._result.warnings,
            slice_axis=int(self._plans_manager.transpose_forward[0]),
        )
        self._result.voxels = voxel_hash(data)
        self._result.spacing = tuple(float(value) for value in properties["spacing"])
        self._result.summary = summarize(data, properties)
        self._refuse_absurd_size(data.shape[1:], self._result.spacing)
        if self._known == (self._result.voxels, self._result.spacing, orientation(properties)):
            raise _SameImage
        return data, properties

    def _refuse_absurd_size(self, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
        """Refuse what resampling would blow up until memory is full, most often for a spacing in another unit."""
        target = self._configuration.spacing
        axes = self._plans_manager.transpose_forward[-len(target) :]
        ratios = [spacing[axis] / step for axis, step in zip(axes, target, strict=True)]
        voxels = float(np.prod(shape, dtype=float) * np.prod(ratios))
        if voxels > _MOST_VOXELS:
            raise BadScan(
                f"would have {voxels:.1e} voxels at the plans' spacing; its own, {'x'.join(f'{s:g}' for s in spacing)} "
                "mm, is probably wrong"
            )


def _write(
    job: CaseJob, case: RawCase, data: np.ndarray, seg: np.ndarray, properties: dict[str, Any], result: CaseResult
) -> None:
    patch_size = job.plans_manager().get_configuration(job.configuration_name).patch_size
    contents = {"image": (_compressed(data, patch_size), ".b2nd")}
    if job.with_nonzero_mask:
        contents["nonzero"] = (_compressed(np.where(seg < 0, -1, 0).astype(np.int8), patch_size), ".b2nd")
    text = json.dumps({"identifier": case.identifier, **properties}, default=_to_json, ensure_ascii=True)
    contents["properties"] = (text.encode(), ".json")
    try:
        for kind, (content, ending) in contents.items():
            path = temporary_path(job.folder, ending)
            write_and_sync(path, content)
            result.written[kind] = str(path)
    except BaseException:
        for path in result.written.values():
            if path is not None:
                Path(path).unlink(missing_ok=True)
        result.written.clear()
        raise


def _compressed(array: np.ndarray, patch_size: list[int]) -> bytes:
    """nnU-Net's own blosc2 layout, built in memory so that a full disk is an ``OSError`` and nothing else."""
    import blosc2
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    codec, level = blosc2.Codec.LZ4HC, 5
    blocks, chunks = comp_blosc2_params(array.shape, tuple(patch_size), array.itemsize)
    blosc2.set_nthreads(1)
    filters = [nnUNetDatasetBlosc2._select_filter(array, blocks, chunks, codec, level)]
    parameters = {"codec": codec, "filters": filters, "nthreads": 4, "clevel": level}
    packed = blosc2.asarray(np.ascontiguousarray(array), chunks=chunks, blocks=blocks, cparams=parameters)
    return packed.to_cframe()


def _to_json(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
