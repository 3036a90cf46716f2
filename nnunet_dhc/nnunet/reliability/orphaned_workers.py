# SPDX-License-Identifier: Apache-2.0
"""Data workers that end with the training, also when it is killed.

The kernel's out-of-memory killer takes the process with the networks. Its forked workers would wait for it forever,
each with the memory of the data that it holds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from functools import cache

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@cache  # a hook can't be taken back, and one is enough
def end_workers_with_this_process() -> None:
    """From now on, what the main thread of this process forks is killed when the process dies; on Linux."""
    if not sys.platform.startswith("linux"):
        return
    prctl = ctypes.CDLL(None).prctl
    forking: dict[str, int | bool] = {}

    def before() -> None:
        # the signal comes when the forking *thread* ends, and only the main one lasts as long as the process
        forking.update(pid=os.getpid(), is_main=threading.current_thread() is threading.main_thread())

    def in_child() -> None:
        if forking["is_main"]:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != forking["pid"]:  # it died between the fork and here
                os._exit(1)

    os.register_at_fork(before=before, after_in_child=in_child)
