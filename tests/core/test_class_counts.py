# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from golden import assert_golden

from nnunet_dhc.core.class_counts import _scatter_count, count_agreement, count_voxels, hard_dice


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(17,), (2, 1, 5, 4), (2, 1, 3, 5, 7), (0,)])
def test_counts_by_hand(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    label_map = torch.randint(0, 5, shape).to(dtype)  # 4 classes and the ignore label 4
    counts = count_voxels(label_map, 4, ignore_label=4)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [int((label_map == k).sum()) for k in range(4)]


def test_counts_of_a_mask() -> None:
    assert count_voxels(torch.tensor([True, False, True]), 2).tolist() == [1, 2]


def test_counts_of_a_view() -> None:
    label_map = torch.arange(24).reshape(2, 3, 4).remainder(3)[:, :, ::2].transpose(0, 1)
    assert count_voxels(label_map, 3).sum() == 12


@pytest.mark.parametrize("ignore_label", [0, 1, 3, 9])
def test_ignore_label_anywhere(ignore_label: int) -> None:
    label_map = torch.tensor([0, 1, 1, 2, 2, 2, ignore_label, ignore_label])
    expected = [0 if k == ignore_label else int((label_map == k).sum()) for k in range(3)]
    assert count_voxels(label_map, 3, ignore_label).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_the_way_of_accelerators_counts_alike(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    label_map = torch.randint(0, 120, (5000,)).to(dtype)
    assert torch.equal(_scatter_count(label_map, 121), torch.bincount(label_map, minlength=121))


@pytest.mark.parametrize("num_classes", [2, 126, 127, 128, 255])
@pytest.mark.parametrize("size", [0, 1, 4, 1001])
def test_bytes_count_alike_in_pairs_and_singly(num_classes: int, size: int) -> None:
    torch.manual_seed(size)
    label_map = torch.randint(0, num_classes, (size + 1,), dtype=torch.uint8)
    for part in (label_map[:size], label_map[1:]):  # the second starts at an odd address
        assert torch.equal(count_voxels(part, num_classes), torch.bincount(part, minlength=num_classes))


@pytest.mark.parametrize(("num_classes", "ignore_label"), [(3, None), (3, 3), (3, 0), (3, 9), (181, None), (181, 181)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_agreement_voxel_by_voxel(num_classes: int, ignore_label: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    prediction = torch.randint(0, num_classes, (2, 1, 9, 8, 7)).to(torch.uint8)
    target = torch.where(torch.rand(prediction.shape) < 0.5, prediction, prediction.flip(2)).to(dtype)
    valid = torch.ones_like(prediction, dtype=torch.bool)
    if ignore_label is not None:
        target[:, :, ::3] = ignore_label
        valid = target != ignore_label
    agreed, predicted, labeled = count_agreement(prediction, target, num_classes, ignore_label)
    p, t = prediction[valid].long(), target[valid].long()
    assert torch.equal(agreed, torch.bincount(p[p == t], minlength=num_classes)[:num_classes])
    assert torch.equal(predicted, torch.bincount(p, minlength=num_classes)[:num_classes])
    assert torch.equal(labeled, torch.bincount(t, minlength=num_classes)[:num_classes])


def test_counts_beyond_float32() -> None:
    # 2^24 + 3 voxels: one more than float32 can count by ones
    label_map = torch.zeros(2**24 + 3, dtype=torch.uint8)
    assert count_voxels(label_map, 2).tolist() == [2**24 + 3, 0]


def test_hard_dice_by_hand() -> None:
    dice = hard_dice(torch.tensor([3, 0, 0, 5, 0]), torch.tensor([4, 0, 0, 5, 4]), torch.tensor([6, 4, 0, 5, 0]))
    # 2 * 3 / 10; missed: 1e-8 / 4; perfect; painted where nobody labeled it: 1e-8 / 4
    assert_golden(dice[[0, 1, 3, 4]], (0.6, 2.5e-9, 1.0, 2.5e-9), atol=0)
    assert dice[2].isnan()
    assert dice.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("ignore_label", [None, 0, 7])
def test_counts_on_cuda_without_host_synchronization(ignore_label: int | None) -> None:
    label_map = torch.randint(0, 8, (2, 1, 33, 17, 9), dtype=torch.int16)
    moved = label_map.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        counts = count_voxels(moved, 8, ignore_label)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(counts.cpu(), count_voxels(label_map, 8, ignore_label))
