# SPDX-License-Identifier: Apache-2.0
"""Which axes may be mirrored when labels name a side of the body."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_OPPOSITES = {
    "left": "right",
    "l": "r",
    "lt": "rt",
    "lh": "rh",
    "anterior": "posterior",
    "superior": "inferior",
    "upper": "lower",
    "dorsal": "ventral",
    "cranial": "caudal",
}
STOCK, STOCK_WITHOUT_MIRRORING = "nnUNetTrainer", "nnUNetTrainerNoMirroring"
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def opposite_labels(names: Iterable[str]) -> tuple[str, str] | None:
    """First two names that differ only in a side, such as ``left_kidney`` and ``right_kidney``; None without any.

    A network can't tell such a pair apart in images mirrored across the side, unless it finds other structures that
    aren't symmetric. A side without its opposite (``inferior_vena_cava``) names an organ, not a side.
    """
    by_words = {tuple(word.lower() for word in _WORD.findall(name)): name for name in names}
    for words, name in by_words.items():
        for position, word in enumerate(words):
            opposite = (*words[:position], _OPPOSITES.get(word), *words[position + 1 :])
            if opposite in by_words:
                return name, by_words[opposite]
    return None


def stock_trainer(names: Iterable[str]) -> str:
    """Trainer of nnU-Net that mirrors where the setting "auto" does."""
    return STOCK if opposite_labels(names) is None else STOCK_WITHOUT_MIRRORING


def mirror_axes_of(
    setting: str | Sequence[int] | None, stock_axes: tuple[int, ...], names: Iterable[str], dimensions: int = 3
) -> tuple[int, ...]:
    """Axes to mirror along, of those that nnU-Net would mirror.

    Args:
        setting: The recipe's ``mirror_axes``: axes of the preprocessed scan, None for nnU-Net's, or "auto": none if
            labels name opposite sides, since a scan's header doesn't say which of its axes are mirrored in the plans'
            axis order.
        stock_axes: nnU-Net's choice for this patch, as axes of the patch.
        names: Names of the labels.
        dimensions: Of the patch. In a 2D patch axis 0 is axis 1 of the scan: nnU-Net cuts slices along the first.
    """
    if setting == "auto":
        setting = None if opposite_labels(names) is None else ()
    return stock_axes if setting is None else tuple(
        axis for axis in stock_axes if axis + 3 - dimensions in setting
    )


def mirroring_note(setting: str | Sequence[int] | None, names: Iterable[str]) -> str | None:
    """What to tell the user where "auto" leaves mirroring out."""
    pair = opposite_labels(names) if setting == "auto" else None
    return pair and (
        f"Labels {pair[0]} and {pair[1]} differ in their side: no mirroring in training and prediction. "
        f"nnU-Net's mirroring: mirror_axes=null; the comparable stock trainer is {STOCK_WITHOUT_MIRRORING}"
    )
