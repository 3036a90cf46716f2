# SPDX-License-Identifier: Apache-2.0
"""Find the preprocessed file that stopped a training: nnU-Net's workers report that they failed, not on which file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nnunet_dhc.nnunet.unlabeled.unlabeled_store import case_files

# Reading all of a large dataset would take longer than anybody waits for an error message.
_LIMIT_S = 120.0


@dataclass(frozen=True)
class CaseFolder:
    """Preprocessed cases of one folder."""

    folder: str
    identifiers: Sequence[str]
    unlabeled: bool = False
    with_nonzero_mask: bool = False

    def files(self, identifier: str) -> list[str]:
        """Paths that loading this case opens."""
        if self.unlabeled:
            kinds = ("image", "nonzero") if self.with_nonzero_mask else ("image",)
            return [os.path.join(self.folder, case_files(identifier)[kind]) for kind in kinds]
        stem = os.path.join(self.folder, identifier)
        if os.path.isfile(f"{stem}.npz"):
            return [f"{stem}.npz", f"{stem}.pkl"]
        return [f"{stem}.b2nd", f"{stem}_seg.b2nd", f"{stem}.pkl"]


@dataclass(frozen=True)
class Damage:
    """A file that can't be read, the case it belongs to, and why; ``path`` is a folder where all of it is gone."""

    path: str
    identifier: str | None
    reason: str
    unlabeled: bool


def find_damage(folders: Sequence[CaseFolder], limit_s: float = _LIMIT_S) -> Damage | None:
    """First folder or file that can't be read: missing, truncated, or (while time allows) damaged inside."""
    for folder in folders:
        try:
            os.listdir(folder.folder)
        except OSError as error:
            return Damage(folder.folder, None, error.strerror or str(error), folder.unlabeled)
    end = time.monotonic() + limit_s
    for whole in (False, True):
        for folder in folders:
            for identifier, path in _paths(folder):
                if time.monotonic() > end:
                    return None
                reason = _problem(path, whole)
                if reason is not None:
                    return Damage(path, identifier, reason, folder.unlabeled)
    return None


def read_without_mapping(dataset: Any) -> None:
    """Let a dataset read its files instead of mapping them into the memory of this process, at the same speed.

    Reading behind the end of a mapped file that was cut ends the process: workers may end so, a training not.
    """
    if hasattr(dataset, "mmap_kwargs"):  # of nnU-Net's datasets, those of blosc2 files
        dataset.mmap_kwargs = {}


@contextmanager
def without_mapping(trainer: Any) -> Iterator[None]:
    """`read_without_mapping` for every dataset that the trainer opens meanwhile."""
    dataset_class = trainer.dataset_class

    class WithoutMapping(dataset_class):  # a class, since nnU-Net asks it for identifiers, too
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            read_without_mapping(self)

    trainer.dataset_class = WithoutMapping
    try:
        yield
    finally:
        trainer.dataset_class = dataset_class


def _paths(folder: CaseFolder) -> Iterator[tuple[str, str]]:
    for identifier in folder.identifiers:
        for path in folder.files(identifier):
            yield identifier, path


def _problem(path: str, whole: bool) -> str | None:
    if not os.path.isfile(path):
        return "is missing"
    try:
        if path.endswith(".b2nd"):
            _read_blosc2(path, whole)
        elif whole:
            with open(path, "rb") as file:
                while file.read(1 << 22):
                    pass
        elif os.path.getsize(path) == 0:
            return "is empty"
    except (RuntimeError, ValueError, OSError) as error:
        return f"is damaged ({' '.join(str(error).split())})"
    return None


def _read_blosc2(path: str, whole: bool) -> None:
    import blosc2

    # not mapped into memory: reading behind the end of a mapped file ends the process
    array = blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1})
    if whole:
        for number in range(array.schunk.nchunks):
            array.schunk.decompress_chunk(number)
