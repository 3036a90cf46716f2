# SPDX-License-Identifier: Apache-2.0
"""Write a comparison: JSON first, then what is rendered from it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def write_comparison(comparison: dict[str, Any], folder: Path, name: str = "comparison") -> list[Path]:
    """``<name>.json``, ``<name>.md`` and ``<name>.html`` in ``folder``; returns their paths."""
    from nnunet_dhc.reporting.render_html import render_html
    from nnunet_dhc.reporting.render_markdown import render_markdown

    folder.mkdir(parents=True, exist_ok=True)
    comparison = json_ready(comparison)
    written = [write_text(folder / f"{name}.json", json.dumps(comparison, indent=1, allow_nan=False) + "\n")]
    if comparison["kind"] == "comparison":
        written.append(write_text(folder / f"{name}.md", render_markdown(comparison)))
    written.append(write_text(folder / f"{name}.html", render_html(comparison)))
    return written


def json_ready(value: Any) -> Any:
    """NaN and infinity become null, NumPy numbers become Python's."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_text(path: Path, text: str) -> Path:
    """Write a file in one step; names of files that are no UTF-8 are escaped."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk
    return path
