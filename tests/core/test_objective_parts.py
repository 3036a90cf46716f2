# SPDX-License-Identifier: Apache-2.0
"""Which parts of a step the co-training objective takes for what."""

from __future__ import annotations

import pytest
import torch
from golden import labels_of, logits_of

from nnunet_dhc.core import DistDW, SimiS, Unweighted
from nnunet_dhc.core.co_training import CoTrainingObjective, LossComposition
from nnunet_dhc.core.label_spaces import ClassLabels, RegionLabels

LABELS = ClassLabels(3)
PSEUDO = torch.cat([labels_of((0, 1, 1, 2, 0, 0)), labels_of((0, 0, 2, 2, 2, 1))])  # one labeled, one unlabeled patch
TARGET = labels_of((0, 1, 2, 2, 0, 0))


def objective(weighting=None, factors=(1.0,), **composition) -> CoTrainingObjective:
    weighting = Unweighted(3) if weighting is None else weighting
    return CoTrainingObjective(LABELS, weighting, Unweighted(3), LossComposition(**composition), factors)


@pytest.mark.parametrize(("from_labeled", "counted"), [(False, [5, 3, 4]), (True, [3, 2, 1])])
def test_weighting_by_all_pseudo_labels_reads_labeled_patches_too(from_labeled, counted):
    seen = []
    weighting = SimiS(3)
    weighting.initialize(torch.tensor([10, 5, 1]))
    weighting.update = lambda counts: seen.append(counts.tolist())
    objective(weighting, counts_from_labeled=from_labeled).update_weights_of(weighting, PSEUDO, TARGET)
    assert seen == [counted]


def test_ignored_voxels_of_labeled_patches_are_not_counted():
    """Nothing supervises them where there are no unlabeled patches."""
    ignored = TARGET.clone()
    ignored.view(-1)[:2] = 3  # of labels 0 and 1 in the pseudo label
    made = CoTrainingObjective(
        ClassLabels(3, ignore_label=3), Unweighted(3), Unweighted(3), LossComposition(counts_from_labeled=True)
    )
    update = made.update_weights_of(made.weightings[1], PSEUDO, ignored)
    assert update.counts.tolist() == [2, 1, 1]


def test_exponent_of_the_background_is_of_no_other_class():
    made = objective()
    weights = torch.tensor([0.25, 1.0, 4.0])
    made.weight_exponents = (0.0, 0.5)
    torch.testing.assert_close(made._tempered(weights), torch.tensor([4.0, 2.0, 4.0]))
    made.weight_exponents = (1.0, 0.0)
    torch.testing.assert_close(made._tempered(weights), torch.tensor([0.25, 4.0, 4.0]))


def test_no_region_is_without_gradient():
    """Were it at 0, as DistDW has the most frequent one, nothing would train its output; a class still has voxels."""
    regions = RegionLabels(2)
    made = CoTrainingObjective(regions, DistDW(3), Unweighted(3), LossComposition(supervised_ce=1.0))
    made.weightings[0].initialize(torch.tensor([1000, 9000, 100]))  # no region, a frequent and a rare one
    assert made.weightings[0].weights[1] == 0
    weights, _ = made.loss_weights
    torch.testing.assert_close(weights[1], 0.1 * weights[2])
    made.background_weight, made.weight_exponents = 0.02, (0.0, 1.0)  # of no meaning for regions
    torch.testing.assert_close(made.loss_weights[0], weights)
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    target = (torch.rand(1, 2, 4, 4) > 0.5).float()
    made.losses_of(made.sums([logits], [target], None), weights).supervised.backward()
    assert (logits.grad[0].abs().sum((1, 2)) > 0).all()
    of_classes = CoTrainingObjective(LABELS, DistDW(3), Unweighted(3), LossComposition())
    of_classes.weightings[0].initialize(torch.tensor([9000, 1000, 100]))
    assert of_classes.loss_weights[0][0] == 0


def test_background_weight_is_that_of_both_networks_before_the_exponent():
    made = objective()
    made.weight_exponents, made.background_weight = (0.5, 1.0), 0.25
    for weights in made.loss_weights:
        torch.testing.assert_close(weights, torch.tensor([0.5, 1.0, 1.0]))


def test_empty_cross_entropies_of_both_terms_are_counted():
    weights = torch.tensor([0.0, 1.0, 1.0])
    background = torch.zeros_like(TARGET)
    logits = torch.cat([logits_of(((1, 0, 0),) * 6)] * 2)
    made = objective(supervised_ce=1.0, supervised_dice=0.0, unsupervised_ce=1.0, unsupervised_on_labeled=False)
    for target, peer, empty in ((background, background, 2), (TARGET, background, 1), (TARGET, TARGET, 0)):
        terms = made.losses_of(made.sums([logits], [target], peer), weights)
        assert int(terms.empty_cross_entropies) == empty


@pytest.mark.parametrize("deep", [True, False])
def test_unsupervised_deep_supervision(deep):
    outputs = [torch.cat([logits_of(((2, 0, 1),) * 6)] * 2)] * 2
    made = objective(
        factors=(0.75, 0.25), supervised_ce=0.0, supervised_dice=0.0, unsupervised_ce=1.0,
        unsupervised_on_labeled=False, unsupervised_deep_supervision=deep,
    )
    sums = made.sums(outputs, [TARGET, TARGET], TARGET)
    assert [entry is not None for entry in sums.unsupervised] == [True, deep]
    whole = torch.nn.functional.cross_entropy(outputs[0][1:], TARGET[:, 0])
    torch.testing.assert_close(made.losses_of(sums, torch.ones(3)).unsupervised, whole)
