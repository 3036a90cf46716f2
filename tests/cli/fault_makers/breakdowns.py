# SPDX-License-Identifier: Apache-2.0
"""Full and read-only disks, locks that others hold, settings and data that can't be trained with."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from console import Running, configure, fold_folder
from filelock import FileLock
from tiny_data import TinyDataset

from fault_makers.folds import USUAL, usual
from nnunet_dhc.nnunet.reliability.output_folder import LOCK_FILE as TRAINING_LOCK
from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import LOCK_FILE as PREPROCESSING_LOCK

_held: dict[Path, FileLock] = {}


def labeled_not_preprocessed(dataset: TinyDataset) -> None:
    usual(dataset)
    shutil.rmtree(dataset.preprocessed / "nnUNetPlans_3d_fullres")


def unknown_setting(dataset: TinyDataset) -> None:
    usual(dataset)
    configure(dataset, lambda_maximum=0.2)


def bad_setting(dataset: TinyDataset) -> None:
    usual(dataset)
    configure(dataset, lambda_max=-1)


def non_finite_images(dataset: TinyDataset) -> None:
    import blosc2

    usual(dataset)
    for case in USUAL["train"]:
        path = dataset.preprocessed / "nnUNetPlans_3d_fullres" / f"{case}.b2nd"
        array = blosc2.open(str(path))
        shape, chunks, blocks = array.shape, array.chunks, array.blocks
        path.unlink()
        blosc2.asarray(np.full(shape, np.nan, np.float32), urlpath=str(path), chunks=chunks, blocks=blocks)
    configure(dataset, max_non_finite_steps=3)


def lock_held(dataset: TinyDataset) -> None:
    """Be the other process that preprocesses."""
    folder = dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    folder.mkdir()
    _held[dataset.root] = FileLock(folder / PREPROCESSING_LOCK)
    _held[dataset.root].acquire()


def release_lock(running: Running) -> None:
    _held.pop(running.dataset.root).release()


def results_claimed(dataset: TinyDataset) -> Callable[[], None]:
    """Be the other training in the same results folder."""
    usual(dataset)
    fold_folder(dataset).mkdir(parents=True)
    lock = FileLock(fold_folder(dataset) / TRAINING_LOCK)
    lock.acquire()
    return lock.release


def small_disk_for_unlabeled(dataset: TinyDataset) -> Callable[[], None]:
    folder = dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    folder.mkdir()
    return _mounted_disk(folder, "100k")


def small_disk_for_results(dataset: TinyDataset) -> Callable[[], None]:
    usual(dataset)
    configure(dataset, num_epochs=1000, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1)
    return _mounted_disk(dataset.root / "results", "16m")


def fill_results(running: Running) -> None:
    """Leave room for log lines, but for no checkpoint."""
    folder = running.dataset.root / "results"
    free = shutil.disk_usage(folder).free
    (folder / "filler").write_bytes(b"\0" * (free - (48 << 10)))


def read_only_results(dataset: TinyDataset) -> Callable[[], None]:
    usual(dataset)
    folder = dataset.root / "results"
    fold_folder(dataset).mkdir(parents=True)
    if os.geteuid() != 0:
        fold_folder(dataset).chmod(0o555)
        return lambda: fold_folder(dataset).chmod(0o755)
    undo = _mount("--bind", str(folder), str(folder))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    return undo


def _mounted_disk(folder: Path, size: str) -> Callable[[], None]:
    return _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))


def _mount(*arguments: str) -> Callable[[], None]:
    if shutil.which("mount") is None or subprocess.run(["mount", *arguments], capture_output=True).returncode != 0:
        pytest.skip("a small disk is made by mount, which this user may not call")
    return lambda: subprocess.run(["umount", arguments[-1]], check=True)
