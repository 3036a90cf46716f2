# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnunet_dhc.core.label_spaces import ClassLabels, LabelSpace, RegionLabels


def test_pseudo_label_of_classes() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [1.0, 2.0, -1.0]]).T.reshape(1, 3, 2, 1, 1)
    pseudo = ClassLabels(3).pseudo_label(logits)
    assert pseudo.shape == (1, 1, 2, 1, 1) and pseudo.dtype == torch.uint8
    assert pseudo.flatten().tolist() == [1, 1]
    assert ClassLabels(3).pseudo_label(torch.zeros(1, 3, 2, 1, 1)).flatten().tolist() == [0, 0]  # ties: the first


def test_pseudo_label_of_regions() -> None:
    pseudo = RegionLabels(2, has_ignore_channel=True).pseudo_label(torch.tensor([-1.0, 0.5]).reshape(1, 2, 1, 1, 1))
    assert pseudo.shape == (1, 2, 1, 1, 1) and pseudo.dtype == torch.bool
    assert pseudo.flatten().tolist() == [False, True]


def test_counts_of_regions() -> None:
    # four voxels: in none, in the first, in both, ignored
    target = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1]]).reshape(1, 3, 4, 1, 1)
    assert RegionLabels(2, has_ignore_channel=True).count(target).tolist() == [1, 2, 1]
    assert RegionLabels(2).count(target[:, :2]).tolist() == [1, 3, 1]
    # a pseudo label has no ignore channel and is counted whole
    assert RegionLabels(2, has_ignore_channel=True).count(target[:, :2].bool()).tolist() == [1, 3, 1]


def test_overlap_of_classes() -> None:
    prediction = torch.tensor([0, 0, 1, 1, 2, 2]).reshape(1, 1, 6, 1, 1)
    target = torch.tensor([0, 1, 1, 3, 0, 2]).reshape(1, 1, 6, 1, 1)  # 3 is ignored
    overlap = ClassLabels(3, ignore_label=3).overlap(prediction, target)
    assert overlap.true_positives.tolist() == [1, 1, 1]
    assert overlap.predicted.tolist() == [2, 1, 2]
    assert overlap.labeled.tolist() == [2, 2, 1]


def test_overlap_of_regions() -> None:
    prediction = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 1, 0, 0]]).reshape(1, 2, 5, 1, 1).bool()
    target = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]).reshape(1, 3, 5, 1, 1)
    overlap = RegionLabels(2, has_ignore_channel=True).overlap(prediction, target)
    assert overlap.true_positives.tolist() == [1, 2, 1]
    assert overlap.predicted.tolist() == [2, 2, 1]
    assert overlap.labeled.tolist() == [1, 3, 2]


@pytest.mark.parametrize("labels", [ClassLabels(4, ignore_label=4), RegionLabels(4, has_ignore_channel=True)])
def test_overlap_with_oneself_and_counts_agree(labels: LabelSpace) -> None:
    torch.manual_seed(0)
    target = labels.pseudo_label(torch.randn(2, 4, 5, 6, 7))
    overlap = labels.overlap(target, target)
    for counts in overlap:
        assert counts.dtype == torch.int64
        assert torch.equal(counts, labels.count(target))


def test_confident_classes() -> None:
    # softmax of (ln 9, 0) is (0.9, 0.1)
    logits = torch.tensor([[2.1972246, 0.0], [0.0, 0.1]]).T.reshape(1, 2, 2, 1, 1)
    labels = ClassLabels(2)
    kept = labels.with_ignore().keep_confident(labels.pseudo_label(logits), logits, 0.8)
    assert kept.flatten().tolist() == [0, 2]
    assert labels.with_ignore().count(kept).tolist() == [1, 0]


def test_confident_regions() -> None:
    logits = torch.tensor([[2.2, -2.2], [2.2, 0.1]]).T.reshape(1, 2, 2, 1, 1)
    labels = RegionLabels(2)
    kept = labels.with_ignore().keep_confident(labels.pseudo_label(logits), logits, 0.8)
    assert kept[:, 2].flatten().tolist() == [False, True]
    assert labels.with_ignore().count(kept).tolist() == [0, 1, 0]


@pytest.mark.parametrize("shape", [(20, 17, 33), (8, 8)])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.bool, torch.float32])
def test_downsampling_is_nnunets(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    module = pytest.importorskip("batchgeneratorsv2.transforms.utils.deep_supervision_downsampling")
    scales: list[tuple[float, ...]] = [
        (1.0,) * len(shape),
        (0.5,) * len(shape),
        (1.0,) + (0.25,) * (len(shape) - 1),
        (1 / 3, 0.125, 0.25)[: len(shape)],
    ]
    torch.manual_seed(0)
    target = torch.randint(0, 2 if dtype == torch.bool else 100, (2, 3, *shape)).to(dtype)
    transform = module.DownsampleSegForDSTransform(scales)
    samples = [transform(segmentation=sample)["segmentation"] for sample in target]
    expected = [torch.stack(scaled) for scaled in zip(*samples, strict=True)]
    for scaled in expected:
        actual = LabelSpace.downsample(target, scaled.shape[2:])
        assert actual.dtype == dtype
        assert torch.equal(actual, scaled)


def test_downsampling_to_the_same_size_is_free() -> None:
    target: Tensor = torch.zeros(1, 1, 4, 4, 4)
    assert LabelSpace.downsample(target, (4, 4, 4)) is target


def test_a_pasted_reference_of_regions_is_not_ignored() -> None:
    """Voxels: one pasted, one not; channels: two regions and, of the pseudo label, where it is unsure."""
    reference = torch.tensor([[1, 1], [1, 0]]).reshape(1, 2, 2, 1, 1)
    pseudo = torch.tensor([[0, 1], [0, 0], [1, 0]]).bool().reshape(1, 3, 2, 1, 1)
    mask = torch.tensor([True, False]).reshape(1, 1, 2, 1, 1)
    found = RegionLabels(2).reference_where(mask, reference, pseudo)
    assert found[0, :, :, 0, 0].tolist() == [[True, True], [True, False], [False, False]]
