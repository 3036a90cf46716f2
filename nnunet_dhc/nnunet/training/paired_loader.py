# SPDX-License-Identifier: Apache-2.0
"""Labeled and unlabeled batches side by side, with the time that training waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any


class PairedLoader:
    """Joins nnU-Net's labeled stream with a second, unlabeled one.

    Each batch is the labeled batch of nnU-Net plus ``"unlabeled"``: the unlabeled images (b, c, *spatial), or None when
    there is no unlabeled stream or ``draw_unlabeled`` is off for this step; ``"unlabeled_keys"`` are their identifiers.

    Attributes:
        waited_s: Seconds spent in waiting for batches since it was last set to 0.
    """

    def __init__(self, labeled: Iterator[dict], unlabeled: Iterator[dict] | None) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.draw_unlabeled = True
        self.waited_s = 0.0

    def __iter__(self) -> PairedLoader:
        return self

    def __next__(self) -> dict[str, Any]:
        start = perf_counter()
        batch = dict(next(self.labeled))
        draw = self.unlabeled is not None and self.draw_unlabeled
        unlabeled = next(self.unlabeled) if draw else {"data": None, "keys": []}
        batch["unlabeled"], batch["unlabeled_keys"] = unlabeled["data"], unlabeled["keys"]
        self.waited_s += perf_counter() - start
        return batch
