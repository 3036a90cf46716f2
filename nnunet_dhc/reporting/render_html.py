# SPDX-License-Identifier: Apache-2.0
"""The comparison as one page."""

from __future__ import annotations

from typing import Any


def render_html(comparison: dict[str, Any]) -> str:
    return f"<!doctype html><title>x</title>{comparison['verdict']['sentence']}"
