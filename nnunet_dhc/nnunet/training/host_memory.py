# SPDX-License-Identifier: Apache-2.0
"""How the C library treats the memory that a training on the CPU frees in every step."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_OTHER_CHOICES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of giving it back to the system.

    By default glibc returns every tensor of more than 32 MB at once, and the system clears each page again when the
    next tensor needs it: up to a third of a training step on the CPU. The price is that the process stays as large as
    it once was. Does nothing with another C library or where the environment has chosen an allocator or its settings.
    """
    if sys.platform != "linux" or any(name.startswith(_OTHER_CHOICES) for name in os.environ):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    never, none = -1, 0
    library.mallopt(_M_TRIM_THRESHOLD, never)
    library.mallopt(_M_MMAP_MAX, none)
