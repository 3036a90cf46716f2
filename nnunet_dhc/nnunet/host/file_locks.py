# SPDX-License-Identifier: Apache-2.0
"""Locks that a killed process loses by itself; on file systems without locks, work goes on without one."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

_POLL_S = 0.5
_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
# Newer versions would leave a marker file there, which stays when its process is killed and then refuses everybody.
_OPTIONS = inspect.signature(FileLock.__init__).parameters
_NO_MARKER = {"fallback_to_soft": False} if "fallback_to_soft" in _OPTIONS else {}


def held_lock(path: str | os.PathLike) -> FileLock | None:
    """The lock, which this process holds now; None where the file system has no locks.

    Raises:
        Timeout: Another process holds it.
        OSError: The file can't be written.
    """
    lock = FileLock(path, **_NO_MARKER)
    try:
        lock.acquire(timeout=0)
    except NotImplementedError:
        return None
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            return None
        raise
    return lock


@contextmanager
def released_at_end(lock: FileLock | None) -> Iterator[None]:
    """Give a held lock back after a ``with`` block; nothing to do for None."""
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def awaited_lock(path: str | os.PathLike, say: Callable[[str], None], while_waiting: str) -> FileLock | None:
    """The same, after waiting for another process that holds it; ``say`` gets ``while_waiting`` once then.

    Raises:
        OSError: The file can't be written.
    """
    try:
        return held_lock(path)
    except Timeout:
        say(while_waiting)
    lock = FileLock(path, **_NO_MARKER)
    lock.acquire(poll_interval=_POLL_S)
    return lock
