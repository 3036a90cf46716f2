# SPDX-License-Identifier: Apache-2.0
"""Tables in columns of text, as terminals show them."""

from __future__ import annotations

from collections.abc import Container, Sequence

_BOLD, _PLAIN = "\033[1m", "\033[0m"


def aligned(table: Sequence[Sequence[str]], left: Container[int] = (0,),
            bold: Sequence[Sequence[bool]] | None = None) -> list[str]:
    """Lines of a table: the columns ``left`` begin at the left, the others end at the right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = []
    for number, line in enumerate(table):
        cells = [cell.ljust(width) if column in left else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
        if bold is not None:
            cells = [f"{_BOLD}{cell}{_PLAIN}" if flag else cell for cell, flag in zip(cells, bold[number], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
