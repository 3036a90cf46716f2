# SPDX-License-Identifier: Apache-2.0
"""Say in one line why workers give nothing more: one was killed, a file is damaged, a folder went away."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.reliability.damaged_files import CaseFolder, Damage, find_damage
from nnunet_dhc.nnunet.reliability.device_errors import is_device_lost, is_out_of_memory

_SHARED_MEMORY = "/dev/shm"


class GuardedStream:
    """One of nnU-Net's streams of batches; when it fails, the error says why.

    Args:
        stream: An augmenter.
        explain: Gets the exception and the worker processes, gives the exception to raise instead.
    """

    def __init__(self, stream: Any, explain: Callable[[Exception, Sequence[Any]], Exception]) -> None:
        self.stream = stream
        self._explain = explain
        self._workers: Sequence[Any] = ()

    def __iter__(self) -> GuardedStream:
        return self

    def __next__(self) -> Any:
        if not self._workers:
            # the list itself, which the first batch fills; a stream that reports an error has another, empty one
            self._workers = getattr(self.stream, "_processes", ())
        try:
            return next(self.stream)
        except Exception as error:
            explained = self._explain(error, self._workers)
            if explained is error:
                raise
            raise explained from error


def explain_loading_failure(
    error: Exception, workers: Sequence[Any], folders: Sequence[CaseFolder], preprocess: str, resume: str
) -> Exception:
    """The ``UserError`` for an exception that came out of a stream, or the exception itself if nothing is known.

    Args:
        error: What nnU-Net raised.
        workers: Its worker processes, ended by now.
        folders: Where the cases lie.
        preprocess: nnU-Net's command that makes labeled cases again.
        resume: The command that continues the training.
    """
    if is_out_of_memory(error) or is_device_lost(error):
        return error  # no file is to blame, and reading all of them takes minutes
    signals = sorted({-worker.exitcode for worker in workers if _was_killed(worker)})
    if getattr(signal, "SIGKILL", None) not in signals:  # Windows has none
        damage = find_damage(folders)
        if damage is not None:
            return UserError(_of_damage(damage, preprocess, resume))
    if signals:
        names = " and ".join(signal.Signals(number).name for number in signals)
        return UserError(
            f"A data worker was ended by {names}, most often by the system for lack of memory ({_free_memory()}): "
            f"set nnUNet_n_proc_DA to fewer than {len(workers)} workers, then continue with: {resume}"
        )
    if "background workers" in str(error):
        return UserError(
            f"A data worker failed; its own error is printed above. Once that is repaired, continue with: {resume}"
        )
    return error


def killed_while_validating(number: int, resume: str, is_kept: bool = True) -> str:
    """What to do when a worker of the final validation was ended by a signal.

    Args:
        number: Of the signal.
        resume: The command that continues the training, or starts it again.
        is_kept: There is a checkpoint of the trained model.
    """
    then = "The trained model is complete: set" if is_kept else "No checkpoint was kept (--disable_checkpointing): set"
    return (
        f"A worker of the final validation was ended by {signal.Signals(number).name}, most often by the system for "
        f"lack of memory ({_free_memory()}). {then} nnUNet_def_n_proc to fewer processes, then "
        f"{'repeat the validation' if is_kept else 'train again'} with: {resume}"
    )


def _was_killed(worker: Any) -> bool:
    return worker.exitcode is not None and worker.exitcode < 0 and worker.exitcode != -signal.SIGTERM


def _of_damage(damage: Damage, preprocess: str, resume: str) -> str:
    if damage.identifier is None:
        return (
            f"The folder of preprocessed cases {damage.path} can't be read any more ({damage.reason}): bring it back, "
            f"then continue with: {resume}"
        )
    if damage.unlabeled:
        remedy = f"delete it (it is made again at the start), then continue with: {resume}"
    else:
        remedy = f"make it again with: {preprocess}; then continue with: {resume}"
    return f"The preprocessed file {damage.path} of case {damage.identifier} {damage.reason}: {remedy}"


def _free_memory() -> str:
    texts = []
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        free, whole = os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
        texts.append(f"{free / 1e9:.1f} of {whole / 1e9:.1f} GB of RAM")
    except (AttributeError, ValueError, OSError):
        pass  # not on Windows
    if os.path.isdir(_SHARED_MEMORY):
        shared = shutil.disk_usage(_SHARED_MEMORY)
        texts.append(f"{shared.free / 1e9:.1f} of {shared.total / 1e9:.1f} GB of {_SHARED_MEMORY}")
    return f"free now: {', '.join(texts)}" if texts else "memory is full"
