# SPDX-License-Identifier: Apache-2.0
"""Numbers of things and lists of names, as messages write them; standard library only."""

from __future__ import annotations

from collections.abc import Sequence


def counted(count: int, what: str) -> str:
    """A number of things: "1 case", "2 cases"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def name_some(identifiers: Sequence[str], limit: int = 10) -> str:
    """The first few identifiers and how many more there are, for one line of text."""
    rest = len(identifiers) - limit
    return ", ".join(identifiers[:limit]) + (f" and {rest} more" if rest > 0 else "")
