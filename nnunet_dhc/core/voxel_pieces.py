# SPDX-License-Identifier: Apache-2.0
"""A batch of logits a piece at a time, with buffers that every piece uses again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CPU_PIECE_ELEMENTS = 1 << 20
PIECE_ELEMENTS = 1 << 25  # elsewhere: about what one large 3D patch of many classes has


class SamplesRead(NamedTuple):
    """Which samples of a batch a target belongs to, and how they are read.

    Attributes:
        first: Sample of the first row of the target.
        rows: How many rows the target has, one for each sample from there on.
        ignore_label: Value of voxels that take no part; below 0, all do.
        overlap: Whether the sums for soft Dice are made too.
    """

    first: int
    rows: int
    ignore_label: int
    overlap: bool


class PieceReading(NamedTuple):
    """A target as far as it belongs to the samples of a piece.

    Attributes:
        number: Of the target.
        rows: Of the target.
        ignore_label, overlap: As in `SamplesRead`.
    """

    number: int
    rows: slice
    ignore_label: int
    overlap: bool

    def index_and_mask(self, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Class of each voxel, 0 where it is ignored, and 1 where it isn't; None where none is."""
        index = target.long()
        if self.ignore_label < 0:
            return index, None
        valid = index != self.ignore_label
        return index * valid, valid.to(dtype)


class Piece(NamedTuple):
    """Some voxels of neighbouring samples that take part in the same readings.

    Attributes:
        samples, voxels: Where it lies in the logits, (b, k, n).
        readings: In the order of the targets.
        buffers: Of its shape, (s, k, v); what the piece before has left is in them.
    """

    samples: slice
    voxels: slice
    readings: list[PieceReading]
    buffers: list[Tensor]


class VoxelPieces:
    """Iterates over the pieces of a batch.

    On the CPU a piece fits into the cache. Elsewhere it is whole samples, as many as a limit allows, since each
    operation has to be launched: a 2D batch has dozens of small patches.

    Args:
        logits: (b, k, n).
        num_buffers: For each piece.
        targets: Which samples each target belongs to.

    Attributes:
        dtype: Of the buffers, in which to compute: float32, or float64 for logits of it.
    """

    def __init__(self, logits: Tensor, num_buffers: int, targets: Sequence[SamplesRead]) -> None:
        self.dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        self._shape = logits.shape
        self._targets = targets
        _, k, n = logits.shape
        on_cpu = logits.device.type == "cpu"
        self._voxels = max(1, min(n, CPU_PIECE_ELEMENTS // k)) if on_cpu else n
        self._samples = max(1, (CPU_PIECE_ELEMENTS if on_cpu else PIECE_ELEMENTS) // (k * n))
        self._groups = list(self._alike_samples())
        size = max((last - first for first, last in self._groups), default=0) * k * self._voxels
        self._buffers = [torch.empty(size, dtype=self.dtype, device=logits.device) for _ in range(num_buffers)]

    def __iter__(self) -> Iterator[Piece]:
        _, k, n = self._shape
        for first, last in self._groups:
            samples = last - first
            readings = [
                PieceReading(number, slice(first - read.first, last - read.first), read.ignore_label, read.overlap)
                for number, read in enumerate(self._targets)
                if number in self._read_by(first)
            ]
            for start in range(0, n, self._voxels):
                stop = min(start + self._voxels, n)
                shape = (samples, k, stop - start)
                shaped = [buffer[: samples * k * (stop - start)].view(shape) for buffer in self._buffers]
                yield Piece(slice(first, last), slice(start, stop), readings, shaped)

    def _alike_samples(self) -> Iterator[tuple[int, int]]:
        """First and last + 1 of neighbouring samples that take part in the same readings, in groups of the limit."""
        b, first = self._shape[0], 0
        for last in range(1, b + 1):
            if last == b or last - first == self._samples or self._read_by(first) != self._read_by(last):
                yield first, last
                first = last

    def _read_by(self, sample: int) -> list[int]:
        """Numbers of the targets that a sample has a row in."""
        return [
            number for number, read in enumerate(self._targets) if read.first <= sample < read.first + read.rows
        ]
