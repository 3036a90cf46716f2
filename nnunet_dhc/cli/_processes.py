# SPDX-License-Identifier: Apache-2.0
"""The number of processes, as several verbs take it."""

from __future__ import annotations

from argparse import ArgumentTypeError


def process_count(text: str) -> int:
    """How many processes work; 0 and 1 work in this one."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text} is no number of processes (0, 1, 2 ...)")
    return int(text)
