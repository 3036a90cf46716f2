# SPDX-License-Identifier: Apache-2.0
"""Faults that hit a training while it runs."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from console import Running, configure
from tiny_data import TinyDataset

from fault_makers.folds import usual


def prepare(dataset: TinyDataset) -> None:
    """A training that would take hours."""
    usual(dataset)
    configure(dataset, num_epochs=1000, num_iterations_per_epoch=4, num_val_iterations_per_epoch=1)


def prepare_short(dataset: TinyDataset) -> None:
    """A training that reaches its final validation at once."""
    usual(dataset)
    configure(dataset, num_epochs=1, num_iterations_per_epoch=1, num_val_iterations_per_epoch=1)


def terminate(running: Running) -> None:
    """SIGTERM to the command alone, as a cluster's scheduler sends it."""
    running.signal(signal.SIGTERM)


def interrupt(running: Running) -> None:
    """SIGINT to the whole group, as a terminal sends it."""
    running.signal(signal.SIGINT, group=True)


def kill_a_worker(running: Running) -> None:
    """What the system does when memory runs out."""
    os.kill(running.workers()[0], signal.SIGKILL)


def kill_validation_workers(running: Running) -> None:
    """One after the other: the pool replaces a dead one, and does no harm where that one had nothing to do."""
    while running.process.poll() is None:
        for pid in running.spawned():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(1)


def truncate_labeled(running: Running) -> None:
    """In place, so that a worker that has it open gets SIGBUS."""
    path = _folder(running) / "case_0.b2nd"
    os.truncate(path, path.stat().st_size // 2)


def truncate_unlabeled(running: Running) -> None:
    """In place and without workers, so that a training that had mapped it into memory would get SIGBUS."""
    path = running.dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled" / "scan_0.b2nd"
    os.truncate(path, path.stat().st_size // 2)


def move_data_away(running: Running) -> None:
    _folder(running).rename(running.dataset.root / "moved away")


def _folder(running: Running) -> Path:
    return running.dataset.preprocessed / "nnUNetPlans_3d_fullres"
