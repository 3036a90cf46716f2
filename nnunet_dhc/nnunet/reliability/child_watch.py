# SPDX-License-Identifier: Apache-2.0
"""Notice that a process of a pool was killed: the pool would replace it, and its result would be waited for forever."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from typing import Any

from nnunet_dhc.nnunet.reliability.graceful_stop import within_seconds

_POLL_S = 0.5


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
        self._seen: set[Any] = set()
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
        self._seen |= set(multiprocessing.active_children()) - self._before
        # a pool ends its own workers with SIGTERM
        codes = [process.exitcode for process in self._seen]
        return next((-code for code in codes if code is not None and code < 0 and code != -signal.SIGTERM), None)

    def _watch(self) -> None:
        while not self._end.wait(_POLL_S):
            number = self.died_from()
            if number is not None:
                with within_seconds(1, self._explain(number)):
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
                    self._end.wait()
                return
