# SPDX-License-Identifier: Apache-2.0
"""Seconds spent in the parts of a training step, without waiting for the device inside the step."""

from __future__ import annotations

from time import perf_counter

import torch


class StepTimer:
    """Marks the ends of a step's parts; CUDA events on a GPU, the clock elsewhere.

    Call ``start()``, then ``mark(part)`` at the end of each part; ``read()`` gives the seconds by part since the last
    reading, to be called once an epoch (it waits for the device).
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._intervals: list[tuple[str, object, object]] = []
        self._last: object = None

    def start(self) -> None:
        self._last = self._now()

    def mark(self, part: str) -> None:
        now = self._now()
        self._intervals.append((part, self._last, now))
        self._last = now

    def read(self) -> dict[str, float]:
        """Seconds by part; starts again from zero."""
        if self._on_cuda and self._intervals:
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for part, start, end in self._intervals:
            elapsed = start.elapsed_time(end) / 1000 if self._on_cuda else end - start
            seconds[part] = seconds.get(part, 0.0) + elapsed
        self._intervals.clear()
        return seconds

    def _now(self) -> object:
        if not self._on_cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
