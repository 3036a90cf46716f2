# SPDX-License-Identifier: Apache-2.0
"""The results folder of a fold: writable, written by one training at a time, without leftovers of killed ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import remove_temporary_files
from nnunet_dhc.nnunet.host.file_locks import held_lock, released_at_end

LOCK_FILE = "dhc_training.lock"


@contextmanager
def claimed(folder: str, rank: int = 0) -> Iterator[None]:
    """Keep a second training out of the folder; a killed process loses its claim by itself.

    Raises:
        UserError: Another training writes there.
        OSError: The folder can't be written to.
    """
    if rank != 0:
        yield
        return
    try:
        lock = held_lock(os.path.join(folder, LOCK_FILE))
    except Timeout:
        raise UserError(
            f"Another training is writing to {folder}: wait for it or stop it; for a repeat, point nnUNet_results at "
            "another folder"
        ) from None
    with released_at_end(lock):
        try:
            yield
        finally:
            if lock is not None and os.name != "nt":  # Windows removes no open file; filelock does it there
                Path(lock.lock_file).unlink(missing_ok=True)  # while it is held, so that nobody else's is removed


def remove_unfinished(folder: str, rank: int = 0) -> None:
    """Remove checkpoints that a killed training had not finished writing."""
    if rank == 0:
        remove_temporary_files(folder)
        for path in Path(folder).glob("*.pth*.tmp"):
            path.unlink(missing_ok=True)
