# SPDX-License-Identifier: Apache-2.0
"""What an epoch's log says of validation patches, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_dhc.core.label_spaces import ClassLabels
from nnunet_dhc.nnunet.training.epoch_statistics import TrainingStatistics, ValidationStatistics

NO_OVERLAPS = torch.zeros(2, 3, 2, dtype=torch.long)


def logits_of(*classes: int) -> torch.Tensor:
    """One patch of that many voxels; 4 for the class, 0 for the two others."""
    logits = torch.zeros(1, 3, len(classes), 1)
    for voxel, value in enumerate(classes):
        logits[0, value, voxel] = 4.0
    return logits


def test_dice_of_each_network_agreement_and_gap():
    statistics = ValidationStatistics(ClassLabels(3))
    target = torch.tensor([1, 1, 2, 0]).reshape(1, 1, 4, 1)
    a, b = logits_of(1, 1, 0, 0), logits_of(1, 0, 2, 0)
    statistics.add(a, b, (a + b) / 2, target)
    values = statistics.read(across_ranks=False)
    assert values["dice_a"] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert values["dice_a"][1] == 0  # exactly: an alarm watches for it
    assert values["dice_b"] == pytest.approx([2 / 3, 1.0], abs=1e-6)
    # where they differ, the mean of the logits is a tie, and the first class wins: 1, 0, 0, 0
    assert values["dice_mean"] == pytest.approx([2 / 3, 0.0], abs=1e-6)
    assert values["agreement"] == pytest.approx(2 * 1 / (2 + 2))
    # two of four voxels differ, each in two of three logits by 4; one logit of 4 in each voxel of both
    assert values["relative_logit_gap"] == pytest.approx((16 / 12) / (16 / 12))


def test_networks_that_are_one_have_no_gap():
    statistics = ValidationStatistics(ClassLabels(3))
    for _ in range(2):
        statistics.add(*[logits_of(1, 2)] * 3, torch.tensor([1, 1]).reshape(1, 1, 2, 1))
    values = statistics.read(across_ranks=False)
    assert values["relative_logit_gap"] == 0
    assert values["agreement"] == 1
    assert values["dice_mean"] == pytest.approx([2 / 3, 0.0], abs=1e-6)


def test_gap_is_that_of_all_batches():
    statistics = ValidationStatistics(ClassLabels(3))
    for classes_b in ((0, 2), (1, 2), (1, 2), (1, 2)):  # of 16 logits of 4, in both together, two lack a counterpart
        a, b = logits_of(1, 2), logits_of(*classes_b)
        statistics.add(a, b, (a + b) / 2, torch.zeros(1, 1, 2, 1, dtype=torch.long))
    assert statistics.read(across_ranks=False)["relative_logit_gap"] == pytest.approx(2 / 8)


def test_shares_of_pseudo_labels_are_those_of_all_steps():
    statistics = TrainingStatistics(2)
    for of_a, of_b in (([3, 1], [2, 2]), ([1, 3], [4, 0])):
        statistics.add(np.zeros(5), 0, torch.tensor([of_a, of_b]), NO_OVERLAPS, has_unlabeled=True, finite=True)
    statistics.add(np.zeros(5), 0, None, NO_OVERLAPS, has_unlabeled=False, finite=True)
    found = statistics.read()
    assert (found["pseudo_label_share_a"], found["pseudo_label_share_b"]) == ([0.5, 0.5], [0.75, 0.25])
    assert (found["steps"], found["steps_with_unlabeled"]) == (3, 2)


def test_losses_are_means_over_finite_steps():
    statistics = TrainingStatistics(2)
    for value, finite in ((1.0, True), (float("nan"), False), (3.0, True)):
        statistics.add(np.full(5, value), 0, None, NO_OVERLAPS, has_unlabeled=False, finite=finite)
    found = statistics.read()
    assert found["losses"]["total"] == 2 and (found["steps"], found["skipped_steps"]) == (3, 1)


def test_skipped_steps_alone_have_no_loss_and_no_counts():
    statistics = TrainingStatistics(2)
    overlaps = NO_OVERLAPS + 4
    statistics.add(np.full(5, np.nan), 0, torch.tensor([[3, 1], [0, 4]]), overlaps, has_unlabeled=True, finite=False)
    found = statistics.read()
    assert np.isnan([*found["losses"].values(), *found["pseudo_label_share_a"], statistics.supervised_loss]).all()
    assert np.isnan([*found["training_dice_a"], *found["training_dice_b"]]).all()


def test_dice_of_training_is_that_of_all_steps_and_of_labeled_classes():
    statistics = TrainingStatistics(3)
    of_a = [[0, 2, 0], [1, 4, 1], [2, 4, 0]]  # true positives, predicted, labeled; class 2 is labeled nowhere
    of_b = [[0, 0, 0], [6, 0, 0], [2, 4, 0]]
    for _ in range(2):
        statistics.add(np.zeros(5), 0, None, torch.tensor([of_a, of_b]), has_unlabeled=False, finite=True)
    found = statistics.read()
    assert found["training_dice_a"] == pytest.approx([0.5, np.nan], nan_ok=True)
    assert found["training_dice_b"] == pytest.approx([0.0, np.nan], nan_ok=True)
