# SPDX-License-Identifier: Apache-2.0
"""Types of numbers that several verbs take."""

from __future__ import annotations

from argparse import ArgumentTypeError


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isdecimal() and int(text) > 0):
        raise ArgumentTypeError(f"{text} is no number from 1 on")
    return int(text)
