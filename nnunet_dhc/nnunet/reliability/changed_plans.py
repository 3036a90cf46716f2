# SPDX-License-Identifier: Apache-2.0
"""Name what is different between the plans that a run started with and those that it would go on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOT_PLANS = {"continue_training"}  # nnU-Net hands its command line over in the plans


def changed_plans(before: Mapping[str, Any], now: Mapping[str, Any], configuration: str) -> list[str]:
    """Dotted names of the entries that differ; other configurations than this run's do not matter."""
    return sorted(_differences(_relevant(before, configuration), _relevant(now, configuration), ""))


def changed_inputs_and_outputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted names of the entries of two ``dataset.json`` that differ, of those that make the network's shape."""
    keys = ("labels", "regions_class_order", "channel_names", "modality")
    return sorted(_differences(*({key: content.get(key) for key in keys} for content in (before, now)), ""))


def _relevant(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    kept = {key: value for key, value in plans.items() if key not in _NOT_PLANS and key != "configurations"}
    return {**kept, configuration: plans.get("configurations", {}).get(configuration, {})}


def _differences(before: Any, now: Any, name: str) -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = []
        for key in {*before, *now}:
            names += _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        return names
    return [name] if _plain(before) != _plain(now) else []


def _plain(value: Any) -> Any:
    """Tuples and arrays as the lists that a JSON file gives."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
