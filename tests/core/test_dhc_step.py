# SPDX-License-Identifier: Apache-2.0
"""One whole DHC step from the parts, on one labeled and one unlabeled sample of six voxels."""

from __future__ import annotations

import torch
from golden import assert_golden, labels_of, logits_of
from losses_of_logits import cross_entropy_alone, cross_entropy_and_dice

from nnunet_dhc.core import DiffDW, DistDW
from nnunet_dhc.core.class_counts import hard_dice
from nnunet_dhc.core.class_weighting import Unweighted
from nnunet_dhc.core.co_training import CoTrainingObjective, LossComposition
from nnunet_dhc.core.label_spaces import ClassLabels
from nnunet_dhc.core.rampup import gaussian_rampup

A_LABELED = logits_of(((2, 0, 0, 0), (0, 1, 0, 0), (0, 0, 3, 0), (1.2, 1, 0, 0), (0, 0, 0, 0.5), (2, 0, 0, 1)))
B_LABELED = logits_of(((1, 0, 0, 0), (0, 2, 0, 0), (1, 0, 0.5, 0), (0, 1.5, 0, 0), (0, 0, 0, 2), (0.5, 0, 0, 0)))
A_UNLABELED = logits_of(((1, 0, 0, 0), (3, 0, 0, 0), (0, 1, 0, 0), (0, 0, 2, 0), (0, 0, 0, 1), (1, 0, 0.5, 0)))
B_UNLABELED = logits_of(((2, 0, 0, 0), (1, 0, 0, 0), (1, 0.5, 0, 0), (0, 0, 1, 0), (0, 0, 0.5, 1), (0, 1, 0, 0)))
TARGET = labels_of((0, 1, 2, 1, 3, 0))
LABELS = ClassLabels(4)


def test_released_step() -> None:
    a, b = torch.cat([A_LABELED, A_UNLABELED]), torch.cat([B_LABELED, B_UNLABELED])
    pseudo_a, pseudo_b = LABELS.pseudo_label(a), LABELS.pseudo_label(b)
    assert pseudo_a.flatten().tolist() == [0, 1, 2, 0, 3, 0, 0, 0, 1, 2, 3, 0]
    assert pseudo_b.flatten().tolist() == [0, 1, 0, 1, 3, 0, 0, 0, 0, 2, 3, 1]

    dice = hard_dice(*LABELS.overlap(pseudo_a[:1], TARGET))
    assert_golden(dice, (0.8, 0.666667, 1, 1))
    difficulty = DiffDW(4, mode="released").update(dice)
    assert_golden(difficulty, (3.838608, 4, 3.647238, 3.647238))

    counts = LABELS.count(pseudo_b[1:])
    assert counts.tolist() == [3, 1, 1, 1]
    dist = DistDW(4, mode="released")
    dist.initialize(torch.tensor((1000, 100, 10, 1)))
    rarity = dist.update(counts)
    assert_golden(rarity, (0, 1.36, 2.68, 4))

    ce_a, dice_a, _ = cross_entropy_and_dice(LABELS, A_LABELED, TARGET, difficulty, 1.0, True)
    ce_b, dice_b, _ = cross_entropy_and_dice(LABELS, B_LABELED, TARGET, rarity, 1.0, True)
    assert_golden(torch.stack([ce_a, dice_a, ce_a + dice_a]), (0.644427, -2.447464, -1.803037))
    assert_golden(torch.stack([ce_b, dice_b, ce_b + dice_b]), (0.653660, -1.713082, -1.059422))
    cross_a = cross_entropy_alone(LABELS, a, pseudo_b, difficulty)[0]
    cross_b = cross_entropy_alone(LABELS, b, pseudo_a, rarity)[0]
    assert_golden(torch.stack([cross_a, cross_b]), (1.039471, 0.788715))

    supervised = ce_a + dice_a + ce_b + dice_b
    assert_golden(supervised + 0.1 * gaussian_rampup(0.0) * (cross_a + cross_b), -2.861227)
    assert_golden(supervised + 0.1 * gaussian_rampup(150 / 300) * (cross_a + cross_b), -2.810080)

    # the composition of the paper, with the same weights: unsupervised (CE + Dice) / 2
    half_a = sum(cross_entropy_and_dice(LABELS, a, pseudo_b, difficulty, 1.0, True)[:2]) / 2
    half_b = sum(cross_entropy_and_dice(LABELS, b, pseudo_a, rarity, 1.0, True)[:2]) / 2
    assert_golden(torch.stack([half_a, half_b]), (-0.391212, -0.302807))


def test_plain_cross_pseudo_supervision() -> None:
    a, b = torch.cat([A_LABELED, A_UNLABELED]), torch.cat([B_LABELED, B_UNLABELED])
    supervised = [
        sum(cross_entropy_and_dice(LABELS, logits, TARGET, None, 1.0, True)[:2]) for logits in (A_LABELED, B_LABELED)
    ]
    crossed = [
        cross_entropy_alone(LABELS, a, LABELS.pseudo_label(b), None)[0],
        cross_entropy_alone(LABELS, b, LABELS.pseudo_label(a), None)[0],
    ]
    assert_golden(torch.stack(supervised), (-0.011411, 0.075704))
    assert_golden(torch.stack(crossed), (1.033363, 0.966614))


def test_the_mean_as_teacher() -> None:
    """Both learn what the mean of the logits says; where A and B disagree, the surer one decides."""
    a, b = torch.cat([A_LABELED, A_UNLABELED]), torch.cat([B_LABELED, B_UNLABELED])
    objective = CoTrainingObjective(
        LABELS, Unweighted(4), Unweighted(4), LossComposition(teacher_is_mean=True, dice_smooth=1.0)
    )
    pseudo = objective.pseudo_labels(a, b)
    target_a, target_b = objective.peer_targets(*pseudo, a, b)
    assert target_a.flatten().tolist() == target_b.flatten().tolist() == [0, 1, 2, 1, 3, 0, 0, 0, 1, 2, 3, 0]
    assert target_a.flatten().tolist() not in [of_one.flatten().tolist() for of_one in pseudo]
    ones = torch.ones(4)
    terms = objective.terms([a], [b], [TARGET], *pseudo, ones, ones)
    torch.testing.assert_close(terms.unsupervised_a, cross_entropy_alone(LABELS, a, target_a, None)[0])
    torch.testing.assert_close(terms.unsupervised_b, cross_entropy_alone(LABELS, b, target_a, None)[0])


def test_the_mean_as_teacher_is_as_sure_as_networks_that_agree() -> None:
    composition = LossComposition(teacher_is_mean=True, confidence_threshold=0.6)
    objective = CoTrainingObjective(LABELS, Unweighted(4), Unweighted(4), composition)
    pseudo, _ = objective.pseudo_labels(A_LABELED, A_LABELED)
    target, _ = objective.peer_targets(pseudo, pseudo, A_LABELED, A_LABELED)
    # the largest probabilities: 0.71, 0.48, 0.87, 0.42, 0.35, 0.61; 4 is ignored
    assert target.flatten().tolist() == [0, 4, 2, 4, 4, 0]
