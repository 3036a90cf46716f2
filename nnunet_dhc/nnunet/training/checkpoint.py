# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or absent, with our state under a key of its own."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import sync_folder
from nnunet_dhc.nnunet.reliability.device_errors import is_device_lost, is_out_of_memory
from nnunet_dhc.nnunet.reliability.explained_errors import is_full
from nnunet_dhc.nnunet.reliability.graceful_stop import StopSignals

STATE_KEY = "nnunet_dhc"
FORMAT = 1


def save_extended(save_stock: Callable[[str], None], filename: str, state: dict[str, Any]) -> None:
    """Write nnU-Net's checkpoint plus our state to ``filename`` by a rename, so that a kill never leaves half a file.

    nnU-Net builds and saves its dictionary in one method, so its file is written first, mapped into memory, and written
    again with our key.

    Args:
        save_stock: nnU-Net's ``save_checkpoint``; it writes nothing when checkpointing is disabled.
        filename: Final path.
        state: Tensors, numbers, strings and containers of them (loads with ``weights_only=True``).
    """
    stock, extended = f"{filename}.stock.tmp", f"{filename}.tmp"
    checkpoint = None
    with StopSignals.held():
        try:
            save_stock(stock)
            if not os.path.isfile(stock):
                return
            checkpoint = torch.load(stock, map_location="cpu", weights_only=False, mmap=True)
            with open(extended, "wb") as file:
                torch.save({**checkpoint, STATE_KEY: {"format": FORMAT, **state}}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(extended, filename)
            sync_folder(os.path.dirname(filename))
        except (OSError, RuntimeError) as error:  # torch's own writer says RuntimeError for a full disk
            if is_device_lost(error) or is_out_of_memory(error):
                raise
            raise UserError(
                f"cannot write {filename} ({_reason(error, filename)}); the previous checkpoint is kept. Free "
                "disk space or make the folder writable, then continue with --c"
            ) from error
        finally:
            checkpoint = None  # Windows removes no mapped file
            for leftover in (stock, extended):
                if os.path.exists(leftover):
                    os.remove(leftover)


def checkpoint_bytes(content: Mapping[str, Any]) -> bytes:
    """What ``torch.save`` writes, for files written in one step: into a file, it says RuntimeError for a full disk."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def set_aside(folder: str, names: Iterable[str]) -> list[str]:
    """Rename files or folders in a folder to ``<name>.before``; the names of those that were there."""
    there = [name for name in names if os.path.exists(os.path.join(folder, name))]
    for name in there:
        path = os.path.join(folder, name)
        before = f"{path}.before"
        if os.path.isdir(before):
            shutil.rmtree(before)
        os.replace(path, before)
    return there


def share_content(filename: str, other: str) -> bool:
    """Let ``other`` be the checkpoint ``filename`` under a second name, by a hard link; False where there are none.

    Neither of them may be written in place from then on, only replaced, which is what ``save_extended`` does.
    """
    link = f"{other}.tmp"
    with StopSignals.held():
        try:
            os.link(filename, link)
            os.replace(link, other)
        except OSError:  # exFAT and some network file systems
            return False
        finally:
            if os.path.exists(link):
                os.remove(link)
        sync_folder(os.path.dirname(other))
    return True


def _reason(error: Exception, filename: str) -> str:
    """What went wrong; call it while the unfinished file still takes up its room."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    return "No space left on device" if is_full(os.path.dirname(filename)) else " ".join(str(cause).split())[:200]


def read_checkpoint(filename: str, trainer_name: str) -> dict[str, Any]:
    """Read a checkpoint of this package and check that it is one.

    Raises:
        UserError: Truncated, foreign (another trainer's) or of a later format; the message names the file.
    """
    try:
        checkpoint = torch.load(filename, map_location="cpu", weights_only=False, mmap=True)
    except Exception as error:
        raise UserError(
            f"{filename} cannot be read ({type(error).__name__}: it is damaged or not a checkpoint); "
            f"{_other_checkpoint(filename)}"
        ) from error
    if not isinstance(checkpoint, dict) or STATE_KEY not in checkpoint:
        written_by = checkpoint.get("trainer_name", "an unknown program") if isinstance(checkpoint, dict) else "?"
        if written_by == trainer_name:
            raise UserError(
                f"{filename} was written by {written_by}, which trains no pair of networks: choose -tr of nnunet_dhc "
                "(nnunet_dhc methods lists them)"
            )
        raise UserError(
            f"{filename} was written by {written_by} and holds no state of {trainer_name}; to start from its "
            "weights use `nnunet_dhc import` and -pretrained_weights"
        )
    if checkpoint[STATE_KEY]["format"] > FORMAT:
        raise UserError(
            f"{filename} was written by a later nnunet_dhc (format {checkpoint[STATE_KEY]['format']}, this one "
            f"reads up to {FORMAT}); update nnunet_dhc"
        )
    written_by = checkpoint.get("trainer_name", "?")
    if without_epochs(written_by) != without_epochs(trainer_name):
        raise UserError(
            f"{filename} was written by {written_by}, this is {trainer_name}; continue it with -tr {written_by}, or "
            "start from its weights with -pretrained_weights"
        )
    return checkpoint


def without_epochs(trainer_name: str) -> str:
    """The name without the number of epochs in it, which may change when a training goes on."""
    return re.sub(r"_\d+epochs?$", "", trainer_name)


def _other_checkpoint(filename: str) -> str:
    folder = Path(filename).parent
    given = Path(filename)
    others = [
        name
        for name in ("checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_final.pth")
        if (folder / name).is_file()
        and not (given.is_file() and given.samefile(folder / name))  # see share_content
    ]
    if others:
        return f"move it away to continue from {others[0]} in the same folder"
    return "there is no other checkpoint in that folder: train again without --c"
