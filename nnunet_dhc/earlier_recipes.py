# SPDX-License-Identifier: Apache-2.0
"""Recipes that trainings of earlier versions have recorded; standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a training did whose recipe lacks the setting: the trainers' present value isn't that.
_BEFORE_THERE_WAS = {"abstain_below": 0.0, "background_weight": None}


def completed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded recipe with what its training did by settings that weren't there yet."""
    return {**_BEFORE_THERE_WAS, **recipe}
