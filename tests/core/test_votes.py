# SPDX-License-Identifier: Apache-2.0
"""Who decides on a class: networks that have learned it."""

from __future__ import annotations

import pytest
import torch

from nnunet_dhc.core.votes import combined_logits, votes_of

NAN = float("nan")
BOTH, A_ALONE, B_ALONE = [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]


def test_a_network_abstains_from_what_it_has_learned_far_worse():
    dice_a = torch.tensor([0.9, 0.80, 0.39, 0.40, 0.0, 0.00, NAN, 0.3])
    dice_b = torch.tensor([0.1, 0.39, 0.80, 0.80, 0.1, 0.00, 0.9, NAN])
    votes = votes_of(dice_a, dice_b, 0.5)
    assert votes.T.tolist() == [BOTH, A_ALONE, B_ALONE, BOTH, B_ALONE, BOTH, BOTH, BOTH]


def test_nobody_abstains_for_a_network_that_has_not_learned_the_class_either():
    """One that floods a class has a little of it right, and would decide against the neighbors."""
    dice_a, dice_b = torch.tensor([0.9, 0.09, 0.0, 0.10]), torch.tensor([0.9, 0.0, 0.02, 0.0])
    assert votes_of(dice_a, dice_b, 0.25).T.tolist() == [BOTH, BOTH, BOTH, A_ALONE]


def test_patches_without_a_class_change_nothing_for_it():
    before = torch.tensor([BOTH, B_ALONE, A_ALONE, BOTH]).T
    dice_a, dice_b = torch.tensor([1.0, NAN, 0.5, NAN]), torch.tensor([1.0, NAN, 0.5, NAN])
    assert votes_of(dice_a, dice_b, 0.25, before).T.tolist() == [BOTH, B_ALONE, BOTH, BOTH]
    nothing = torch.full((4,), NAN)  # an epoch of skipped steps
    assert torch.equal(votes_of(nothing, nothing, 0.25, before), before)
    assert votes_of(nothing, nothing, 0.25) is None
    assert votes_of(nothing, nothing, 0.0, before) is None  # abstaining was switched off since


@pytest.mark.parametrize(("dice_b", "abstain_below"), [([1.0, 0.9, 0.8], 0.5), ([1.0, 0.9, 0.01], 0.0)])
def test_where_nobody_abstains_there_are_no_votes(dice_b, abstain_below):
    assert votes_of(torch.tensor([1.0, 0.5, 0.9]), torch.tensor(dice_b), abstain_below) is None


def test_where_both_vote_on_everything_the_result_is_that_of_the_mean_of_the_logits():
    a, b = torch.randn(2, 2, 4, 3, 5, 2)
    votes = torch.full((2, 4), 0.5)
    torch.testing.assert_close(combined_logits(a, b, votes).softmax(1), ((a + b) / 2).softmax(1))


def test_a_class_has_the_odds_of_the_network_that_has_learned_it():
    a, b = torch.randn(2, 1, 3, 4, 4)
    a[:, 2] = -30.0  # never learned
    votes = torch.tensor([BOTH, BOTH, B_ALONE]).T
    probabilities, of_b = combined_logits(a, b, votes).softmax(1), b.softmax(1)
    torch.testing.assert_close(probabilities[:, 2] / probabilities[:, 0], of_b[:, 2] / of_b[:, 0])
    odds_of_mean = (((a + b) / 2)[:, 1] - ((a + b) / 2)[:, 0]).exp()
    torch.testing.assert_close(probabilities[:, 1] / probabilities[:, 0], odds_of_mean)


def test_regions_are_decided_one_by_one():
    a, b = torch.randn(2, 1, 3, 4, 4)
    votes = torch.tensor([BOTH, BOTH, B_ALONE, A_ALONE]).T  # the first column is "in no region", which has no logit
    expected = torch.stack(((a + b)[:, 0] / 2, b[:, 1], a[:, 2]), 1)
    torch.testing.assert_close(combined_logits(a, b, votes), expected)


@pytest.mark.parametrize("num_logits", [4, 3])
def test_constants_on_the_logits_of_both_networks_come_through(num_logits):
    """What `nnunet_dhc adjust` puts into the biases of A and of B is what the pair's logits get."""
    a, b = torch.randn(2, 2, num_logits, 3, 3, dtype=torch.float64)
    votes = torch.tensor([BOTH, A_ALONE, B_ALONE, BOTH]).T
    offsets = torch.tensor([0.0, 1.5, -2.0, 0.5], dtype=torch.float64)[-num_logits:].view(1, -1, 1, 1)
    if num_logits == 3:
        offsets = offsets + 1  # a region has no background that must stay
    shifted = combined_logits(a + offsets, b + offsets, votes)
    torch.testing.assert_close(shifted, combined_logits(a, b, votes) + offsets)
