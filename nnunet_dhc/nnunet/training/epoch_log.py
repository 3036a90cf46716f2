# SPDX-License-Identifier: Apache-2.0
"""``dhc_log.jsonl``: one JSON object an epoch, beside nnU-Net's own log."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from nnunet_dhc.nnunet.host.atomic_files import replace_file

FILE_NAME = "dhc_log.jsonl"


class EpochLog:
    """Append-only log of a run; a line is either whole or dropped by the next reader.

    Args:
        folder: Output folder of the fold.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.path = Path(folder) / FILE_NAME

    def read(self) -> list[dict[str, Any]]:
        """All whole lines, oldest first."""
        return read_epoch_log(self.path)

    def keep_before(self, epoch: int) -> None:
        """Drop the lines from ``epoch`` on: a resumed run writes them again."""
        lines = [line for line in self.read() if line["epoch"] < epoch]
        if self.path.is_file():
            replace_file(self.path, "".join(_to_line(line) for line in lines).encode())

    def append(self, line: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(_to_line(line))


def read_epoch_log(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Lines of a log file; a missing file is an empty log, a torn last line is left out."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _to_line(values: dict[str, Any]) -> str:
    return json.dumps(_json_ready(values), allow_nan=False) + "\n"


def _json_ready(value: Any) -> Any:
    """NaN and infinity become null: they are not JSON; NumPy numbers become Python's."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, dict):
        return {key: _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    if isinstance(value, float):
        return round(value, 7) if math.isfinite(value) else None
    return value
