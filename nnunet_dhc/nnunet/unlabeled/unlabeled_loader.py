# SPDX-License-Identifier: Apache-2.0
"""Patches of unlabeled cases: nnU-Net's sampling and augmentation where there is no label to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from threadpoolctl import threadpool_limits

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.unlabeled.unlabeled_store import case_files

PREPROCESSED_AGAIN = "run nnunet_dhc preprocess (or the training again), which rebuilds it"
PREDICTED_AGAIN = "continue the training with --c, which predicts it again"


class UnlabeledDataset:
    """Preprocessed unlabeled cases behind the interface of nnU-Net's datasets.

    It holds a folder and a list of names, so that a worker process gets it cheaply; files are opened per patch.

    Args:
        folder: The folder of the store.
        identifiers: Cases to draw from.
        folder_with_segs_from_previous_stage: Predictions of the previous stage of a cascade, as nnU-Net stores them.
        with_nonzero_mask: Whether augmentation needs the nonzero mask.
    """

    def __init__(
        self,
        folder: str | Path,
        identifiers: Sequence[str],
        folder_with_segs_from_previous_stage: str | Path | None = None,
        with_nonzero_mask: bool = False,
    ) -> None:
        blosc2.set_nthreads(1)
        self.source_folder = str(folder)
        self.identifiers = identifiers if isinstance(identifiers, list) else list(identifiers)
        self.folder_with_segs_from_previous_stage = folder_with_segs_from_previous_stage
        self.with_nonzero_mask = with_nonzero_mask
        # As nnU-Net: memory mapping does not work with blosc2 on Windows.
        self.mmap_kwargs = {} if os.name == "nt" else {"mmap_mode": "r"}

    @property
    def needs_segmentation(self) -> bool:
        """Whether augmentation must see a segmentation channel (nonzero mask, or the previous stage of a cascade)."""
        return self.with_nonzero_mask or self.folder_with_segs_from_previous_stage is not None

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Open a case.

        Returns:
            Image (c, x, y, z) and nonzero mask (1, x, y, z; -1 outside) as blosc2 arrays (without a mask: zeros that
            take no memory), the previous stage's segmentation (x, y, z) or None, and properties without any label.
        """
        data = self._open(identifier, "image")
        seg = self._open(identifier, "nonzero") if self.with_nonzero_mask else _no_segmentation(data)
        seg_prev = None
        if self.folder_with_segs_from_previous_stage is not None:
            seg_prev = self._open(identifier, "previous stage")
        return data, seg, seg_prev, {"class_locations": {}}

    def _open(self, identifier: str, kind: str) -> Any:
        with self.naming_damage(identifier, kind):
            path = self._path(identifier, kind)
            return blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, **self.mmap_kwargs)

    @contextmanager
    def naming_damage(self, identifier: str, kind: str) -> Iterator[None]:
        """Say which file was damaged; what is damaged inside shows only where voxels are unpacked."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            path = self._path(identifier, kind)
            remedy = PREDICTED_AGAIN if kind == "previous stage" else PREPROCESSED_AGAIN
            raise unreadable_case(identifier, path, error, remedy) from error

    def _path(self, identifier: str, kind: str) -> str:
        names = case_files(identifier)
        if kind == "previous stage":
            return os.path.join(str(self.folder_with_segs_from_previous_stage), names["image"])
        return os.path.join(self.source_folder, names[kind])


class HiddenLabelsDataset:
    """nnU-Net's labeled cases as if they had no labels.

    Args:
        labeled: nnU-Net's dataset of the labeled cases.
        with_nonzero_mask: Whether augmentation needs the nonzero mask, which nnU-Net keeps in the segmentation.
    """

    def __init__(self, labeled: Any, with_nonzero_mask: bool) -> None:
        self.labeled = labeled
        self.with_nonzero_mask = with_nonzero_mask
        self.identifiers = list(labeled.identifiers)
        self.source_folder = labeled.source_folder
        self.folder_with_segs_from_previous_stage = labeled.folder_with_segs_from_previous_stage

    @property
    def mmap_kwargs(self) -> dict[str, Any]:
        """How files are opened, where they can be mapped."""
        return self.labeled.mmap_kwargs

    @mmap_kwargs.setter
    def mmap_kwargs(self, value: dict[str, Any]) -> None:
        self.labeled.mmap_kwargs = value

    @property
    def needs_segmentation(self) -> bool:
        """As of `UnlabeledDataset`."""
        return self.with_nonzero_mask or self.folder_with_segs_from_previous_stage is not None

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """As of `UnlabeledDataset`; where there is a mask, the loader takes the labels out of what it unpacks of it."""
        data, seg, seg_prev, _ = self.labeled.load_case(identifier)
        return data, seg if self.with_nonzero_mask else _no_segmentation(data), seg_prev, {"class_locations": {}}

    def naming_damage(self, identifier: str, kind: str) -> AbstractContextManager[None]:
        """Nothing: of labeled cases the training finds the damaged file, as it does in nnU-Net's own loaders."""
        return nullcontext()


def read_case(folder: str, identifier: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The whole image (c, x, y, z) of a preprocessed case, float32, and its properties.

    Raises:
        UserError: Names the file that is missing or damaged.
    """
    names = case_files(identifier)
    path = os.path.join(folder, names["image"])
    try:
        image = blosc2.open(urlpath=path, mode="r")[:]
        path = os.path.join(folder, names["properties"])
        properties = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable_case(identifier, path, error) from error
    return image, properties


def unreadable_case(
    identifier: str, path: str, error: Exception, remedy: str = PREPROCESSED_AGAIN
) -> UserError:
    """The error of a preprocessed file that vanished or broke after it was written."""
    what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
    return UserError(
        f"The preprocessed file {path} of the case {identifier} {what}: delete it if it is still there, and {remedy}."
    )


class UnlabeledDataLoader(nnUNetDataLoader):
    """nnU-Net's loader without labels: random locations only, and no target in the batch.

    Arguments as in ``nnUNetDataLoader``, without those for labels; a batch is
    ``{"data": (b, c, *spatial) float32, "keys": identifiers}``.
    """

    def __init__(
        self,
        data: UnlabeledDataset | HiddenLabelsDataset,
        batch_size: int,
        patch_size: Sequence[int],
        final_patch_size: Sequence[int],
        label_manager: Any,
        transforms: Any = None,
    ) -> None:
        super().__init__(
            data,
            batch_size,
            patch_size,
            final_patch_size,
            label_manager,
            oversample_foreground_percent=0.0,
            transforms=transforms,
        )
        # An ignore label would make the stock loader look up where a case is annotated.
        self.has_ignore = False
        self.annotated_classes_key = ()

    def get_indices(self) -> list[str]:
        """As nnU-Net, but without turning the whole list of identifiers into an array for each batch."""
        chosen = np.random.choice(len(self.indices), self.batch_size, replace=True, p=self.sampling_probabilities)
        return [self.indices[index] for index in chosen]

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw cases and locations at random, crop, pad and augment."""
        keys = self.get_indices()
        batch = None
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            for index, identifier in enumerate(keys):
                image = self._augmented_patch(identifier)
                if batch is None:
                    batch = torch.empty((self.batch_size, *image.shape), dtype=torch.float32)
                batch[index] = image
        return {"data": batch, "keys": keys}

    def _augmented_patch(self, identifier: str) -> torch.Tensor:
        data, seg, seg_prev, _ = self._data.load_case(identifier)
        lower, upper = self.get_bbox(data.shape[1:], False, None)
        bbox = [list(bounds) for bounds in zip(lower, upper, strict=True)]
        with self._data.naming_damage(identifier, "image"):
            sample = {"image": torch.from_numpy(crop_and_pad_nd(data, bbox, 0)).float()}
        if self._data.needs_segmentation:
            with self._data.naming_damage(identifier, "nonzero"):
                sample["segmentation"] = _crop_segmentation(seg, bbox).clamp(max=0)  # no label, -1 outside of nonzero
        if seg_prev is not None:
            with self._data.naming_damage(identifier, "previous stage"):
                previous = _crop_segmentation(seg_prev, bbox)[None]
            sample["segmentation"] = torch.cat((sample["segmentation"], previous), dim=0)
        if self.patch_size_was_2d:
            sample = {key: value[:, 0] for key, value in sample.items()}
        if self.transforms is not None:
            sample = self.transforms(**sample)
        return sample["image"]


def _no_segmentation(data: Any) -> np.ndarray:
    return np.broadcast_to(np.int8(0), (1, *data.shape[1:]))  # takes no memory


def _crop_segmentation(seg: Any, bbox: list[list[int]]) -> torch.Tensor:
    return torch.from_numpy(crop_and_pad_nd(seg, bbox, -1, cast_cropped_to=np.int16)).to(torch.int16)
