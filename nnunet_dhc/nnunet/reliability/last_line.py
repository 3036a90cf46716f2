# SPDX-License-Identifier: Apache-2.0
"""Inside nnU-Net's own commands, too, bad input ends with one line on standard error instead of a traceback."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nnunet_dhc.errors import UserError


class _OneLine:
    """An exception hook that prints the message of a ``UserError`` alone and leaves the rest to the hook before it."""

    def __init__(self, other: Callable[..., Any]) -> None:
        self._other = other

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if isinstance(error, UserError):
            say_last(str(error))
        else:
            self._other(kind, error, traceback)


def end_with_one_line() -> None:
    """From now on a ``UserError`` that ends this process is printed without a traceback."""
    if not isinstance(sys.excepthook, _OneLine):
        sys.excepthook = _OneLine(sys.excepthook)


def say_last(message: str) -> None:
    """Print the last line of a process on standard error, after all that is still buffered for standard output."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # a pipe whose reader has ended, or a full disk; Python would try again at its end
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with suppress(OSError, ValueError):
        print(f"nnunet_dhc: {message}", file=sys.stderr, flush=True)


def say_crashes() -> None:
    """From now on a process that crashes (SIGBUS, SIGSEGV) says so and where, instead of ending without a word."""
    if not faulthandler.is_enabled():
        try:
            faulthandler.enable()
        except (AttributeError, OSError, RuntimeError, ValueError):
            pass  # standard error is not a file here
