# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and Ctrl-C end a training at once, but never in the middle of a checkpoint, and leave no process behind.

What an epoch has done is in its checkpoint, so there is nothing to wait for: the signal becomes an exception, the
worker processes are stopped, and the command that resumes is the last line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nnunet_dhc.nnunet.reliability.last_line import say_last

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
# Clusters kill what has not ended some seconds (Docker: 10, SLURM: 30) after SIGTERM.
_CLEANING_LIMIT_S = 8.0


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; a ``KeyboardInterrupt``, because libraries clean up after that."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """What a shell reports for this signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class StopSignals:
    """Turn signals that end a process into ``Stopped`` inside a ``with`` block (in the main thread only).

    Signals that are ignored (``nohup``, background jobs) stay ignored. Processes forked inside the block die from
    SIGTERM as before and ignore Ctrl-C, which reaches them, too: their parent ends them.
    """

    _innermost: StopSignals | None = None

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}
        self._outer: StopSignals | None = None
        self._held = 0
        self._pending: int | None = None

    def __enter__(self) -> StopSignals:
        self._outer, StopSignals._innermost = StopSignals._innermost, self
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    self._before[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        StopSignals._innermost = self._outer

    def ignore(self) -> None:
        """Let nothing interrupt what follows."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, _: Any) -> None:
        if os.getpid() != self._pid:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._held:
            self._pending = number
        else:
            raise Stopped(number)

    @classmethod
    @contextmanager
    def held(cls) -> Iterator[None]:
        """Let a short piece of work finish first: an exception inside torch's writer would abort the process."""
        signals = cls._innermost
        if signals is None:
            yield
            return
        signals._held += 1
        try:
            yield
        finally:
            signals._held -= 1
        if signals._pending is not None and not signals._held:
            raise Stopped(signals._pending)


def end_processes(started_before: Iterable[Any], streams: Iterable[Any]) -> None:
    """Stop every process that multiprocessing has started since, and what waits for them.

    Args:
        started_before: ``multiprocessing.active_children()`` of earlier; these are left alone.
        streams: nnU-Net's augmenters whose workers are to end; None and others without workers are skipped.
    """
    for stream in streams:
        if getattr(stream, "abort_event", None) is not None:
            stream.abort_event.set()  # or its thread would report the workers as dead
    left_alone = set(started_before)
    started = [process for process in multiprocessing.active_children() if process not in left_alone]
    for process in started:
        process.terminate()
    for process in started:
        process.join(2)
        if process.is_alive():
            process.kill()
            process.join(2)
    for stream in streams:
        if hasattr(stream, "_finish"):
            stream._finish(timeout=2, force=True)


@contextmanager
def within_seconds(exit_code: int, last_line: str, limit: float = _CLEANING_LIMIT_S) -> Iterator[None]:
    """End the process the hard way if cleaning up gets stuck."""

    def give_up() -> None:
        for process in multiprocessing.active_children():
            process.kill()
        say_last(last_line)
        os._exit(exit_code)

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
