# SPDX-License-Identifier: Apache-2.0
"""The class with the highest logit, against torch.argmax."""

from __future__ import annotations

import pytest
import torch

from nnunet_dhc.core import pseudo_labels
from nnunet_dhc.core.pseudo_labels import highest_class


@pytest.mark.parametrize("k", [2, 3, 14, 255, 256, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equals_argmax(k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_labels, "CPU_PIECE_VOXELS", 50)  # several pieces, the last one smaller
    logits = torch.randn(2, k, 5, 6, 7, generator=torch.Generator().manual_seed(k)).to(dtype)  # bfloat16 has ties
    found = highest_class(logits)
    assert found.dtype == (torch.uint8 if k <= 255 else torch.int64)
    assert torch.equal(found.long(), logits.argmax(1, keepdim=True))


def test_ties_go_to_the_lowest_class() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]]).T.reshape(1, 4, 2)
    assert highest_class(logits).flatten().tolist() == [1, 0]


def test_strided_logits() -> None:
    logits = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0)).transpose(2, 3)
    assert torch.equal(highest_class(logits).long(), logits.argmax(1, keepdim=True))


def test_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_labels, "CPU_PIECE_VOXELS", 50)
    logits = torch.randn(2, 5, 4, 6, 7, generator=torch.Generator().manual_seed(0))
    found = highest_class(logits.contiguous(memory_format=torch.channels_last_3d))
    assert torch.equal(found.long(), logits.argmax(1, keepdim=True))


def test_not_a_number_stays_a_class() -> None:
    logits = torch.full((1, 3, 4), float("nan"))
    logits[0, 0, 0], logits[0, 1, 1] = float("inf"), float("-inf")
    assert highest_class(logits).max() < 3


def test_no_graph() -> None:
    assert not highest_class(torch.randn(1, 3, 4, requires_grad=True)).requires_grad
