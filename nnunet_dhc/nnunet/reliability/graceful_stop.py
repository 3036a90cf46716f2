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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from nnunet_dhc.nnunet.reliability.last_line import say_last

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
# Clusters kill what has not ended some seconds (Docker: 10, SLURM: 30) after SIGTERM.
_CLEANING_LIMIT_S = 8.0
_UNWINDING_LIMIT_S = 9.0


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

    Args:
        give_up: Called, in a thread of its own, if the exception has not come out of the block some seconds after the
            signal: on its way a pool whose workers have died of the same signal can wait for them forever.
    """

    _innermost: StopSignals | None = None

    def __init__(self, give_up: Callable[[Stopped], None] | None = None) -> None:
        self._give_up = give_up
        self._stopped: SimpleQueue[Stopped | None] = SimpleQueue()  # a signal handler may put into it
        self._came_out: SimpleQueue[None] = SimpleQueue()
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
        if self._before and self._give_up is not None:
            threading.Thread(target=self._watch, args=(self._give_up,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        StopSignals._innermost = self._outer
        self._stopped.put(None)
        self._came_out.put(None)

    def ignore(self) -> None:
        """Let nothing interrupt what follows, nor give it up."""
        self._came_out.put(None)
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
            self._stop(number)

    def _stop(self, number: int) -> NoReturn:
        stopped = Stopped(number)
        self._stopped.put(stopped)
        raise stopped

    def _watch(self, give_up: Callable[[Stopped], None]) -> None:
        stopped = self._stopped.get()
        if stopped is None:
            return
        try:
            self._came_out.get(timeout=_UNWINDING_LIMIT_S)
        except Empty:
            give_up(stopped)

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
            signals._stop(signals._pending)


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


def end_at_once(exit_code: int, last_line: str) -> None:
    """End this process and those of multiprocessing without waiting for anything."""
    try:
        for process in multiprocessing.active_children():
            process.kill()
        say_last(last_line)
    finally:
        os._exit(exit_code)


@contextmanager
def within_seconds(exit_code: int, last_line: str, limit: float = _CLEANING_LIMIT_S) -> Iterator[None]:
    """End the process the hard way if cleaning up gets stuck."""

    timer = threading.Timer(limit, end_at_once, (exit_code, last_line))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
