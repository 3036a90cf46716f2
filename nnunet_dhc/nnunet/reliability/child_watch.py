# SPDX-License-Identifier: Apache-2.0
"""Notice that a process of a pool was killed: the pool would replace it, and its result would be waited for forever."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from nnunet_dhc.nnunet.reliability.graceful_stop import Stopped, within_seconds

_POLL_S = 0.5
_ALL_END_WITHIN_S = 3.0


class ChildWatch:
    """Watches, inside a ``with`` block, the processes that start in it.

    When one is ended by a signal, the main thread gets SIGTERM, which ``StopSignals`` turns into an exception. A pool
    can get stuck in its own clean-up then (the dead process may hold its lock): the process ends after some seconds.

    Args:
        explain: Gives the last line of the process for the number of the signal.
    """

    def __init__(self, explain: Callable[[int], str]) -> None:
        self._explain = explain
        self._end = threading.Event()
        self._before = set(multiprocessing.active_children())
        self._seen: dict[Any, float] = {}  # since when
        self._ended: dict[Any, float] = {}
        self._has_raised = False  # whether the main thread was sent SIGTERM from here
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ChildWatch:
        # only there can an exception be raised from outside
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_kill"):
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()

    def died_from(self) -> int | None:
        """Number of the signal that ended a process, None as long as all are well."""
        now = time.monotonic()
        for process in set(multiprocessing.active_children()) - self._before:
            self._seen.setdefault(process, now)
        for process in self._seen:
            if process.exitcode is not None:
                self._ended.setdefault(process, now)
        for process, ended in self._ended.items():
            was_ended = process.exitcode < 0
            if was_ended and (process.exitcode != -signal.SIGTERM or self._others_live_on(ended, now)):
                return -process.exitcode
        return None

    def killed_by(self, error: BaseException) -> int | None:
        """Number of the signal that ended a process and so led to this error; None where it has another reason.

        A signal that the user or the system sends to the whole group ends the main process itself, as `Stopped`.
        """
        number = self.died_from()
        was_sent_to_all = isinstance(error, Stopped) and error.number == number and not self._has_raised
        return None if was_sent_to_all else number

    def _others_live_on(self, ended: float, now: float) -> bool:
        """A pool ends its own workers with SIGTERM, but all of them."""
        return now - ended > _ALL_END_WITHIN_S and any(
            since < ended and process not in self._ended for process, since in self._seen.items()
        )

    def _watch(self) -> None:
        while not self._end.wait(_POLL_S):
            number = self.died_from()
            if number is not None:
                self._has_raised = True
                with within_seconds(1, self._explain(number)):
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
                    self._end.wait()
                return
