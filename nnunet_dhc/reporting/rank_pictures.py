# SPDX-License-Identifier: Apache-2.0
"""Pictures of where A and B disagree, from the small slices that ranking kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_dhc.reporting.pictures import gray_picture, label_colors, label_picture

MOST_CASES = 12
_DIFFER_COLOR = "#D55E00"
_SIDE = 320


def add_rank_pictures(ranking: dict[str, Any], folder: Path) -> None:
    """Put pictures of the scans to label first into ``ranking["overlays"]``.

    Args:
        ranking: What ``rank_cases`` gave.
        folder: Its output folder.
    """
    names = {label: item["name"] for item in sorted(ranking["structures"], key=lambda item: -len(item["labels"]))
             for label in item["labels"]}
    chosen = [line for line in ranking["ranking"] if line["chosen"]]
    for line in chosen[:MOST_CASES]:
        if not line["picture_file"]:
            continue
        try:
            with np.load(folder / line["picture_file"]) as arrays:
                planes = [_plane(facts, number, arrays, names) for number, facts in enumerate(line["planes"])]
        except (OSError, ValueError, KeyError):  # whose texts name the file, and with it the scan
            ranking["notes"].append(f"No picture of {line['case']}: its slices can't be read; run this again.")
            continue
        ranking["overlays"].append({"case": line["case"], "rank": line["rank"], "planes": planes})
    if len(chosen) > MOST_CASES:
        ranking["notes"].append(f"Pictures of the first {MOST_CASES} scans only.")


def _plane(facts: dict[str, Any], number: int, arrays: Any, names: dict[int, str]) -> dict[str, Any]:
    image, a, b = (arrays[f"{number}_{name}"] for name in ("image", "a", "b"))
    spacing = (facts["spacing"][0], facts["spacing"][1])
    colors = _colors(a, b, facts["subject"])
    picture, size = gray_picture(image, (0.0, 255.0), spacing, _SIDE)
    differs = np.where(a != b, 1, 0)
    layers = [
        {"name": "A (white: outline of B)", "picture": label_picture(a, colors, spacing, _SIDE, b)},
        {"name": "B", "picture": label_picture(b, colors, spacing, _SIDE)},
        {"name": "A and B differ", "picture": label_picture(differs, {1: _DIFFER_COLOR}, spacing, _SIDE)},
    ]
    return {
        "plane": facts["plane"], "slice": facts["slice"], "slices": facts["slices"], "size": list(size),
        "image": picture, "layers": layers,
        "legend": [{"name": names.get(label, f"label {label}"), "color": color} for label, color in colors.items()],
    }


def _colors(a: NDArray[Any], b: NDArray[Any], subject: int) -> dict[int, str]:
    """The structure in question first, then those with most disagreement; the others stay gray."""
    labels = [int(label) for label in np.union1d(a, b) if label > 0]
    differ = {label: int(((a == label) != (b == label)).sum()) for label in labels}
    return label_colors(sorted(labels, key=lambda label: (label != subject, -differ[label], label)))
