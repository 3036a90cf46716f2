# SPDX-License-Identifier: Apache-2.0
"""Who decides on a class: both networks, or the one that has learned it."""

from __future__ import annotations

import torch
from torch import Tensor

LEARNED = 0.1  # Dice from which on a network has learned a class, if little of it


def votes_of(dice_a: Tensor, dice_b: Tensor, abstain_below: float, before: Tensor | None = None) -> Tensor | None:
    """Part of each network in what both say of each class.

    A network abstains from a class that the other one has learned and it has not: v_Xi = 0 where dice_Yi >= 0.1 and
    dice_Xi < abstain_below * dice_Yi, with Y the other network, whose part is 1 there. Elsewhere both have 1/2. Where a
    Dice is NaN, all stays as before.

    Args:
        dice_a, dice_b: Dice of each network on patches that it was trained on, (k,), background included; NaN for a
            class that these patches don't have.
        abstain_below: In [0, 1]; 0 lets both vote on everything.
        before: What was returned before.

    Returns:
        (2, k) float32, rows A and B, each column sums to 1; None where nobody abstains. Both vote on the background.

    Source: own.
    """
    of_a, of_b = dice_a < abstain_below * dice_b, dice_b < abstain_below * dice_a
    unlearned = torch.stack((of_a & (dice_b >= LEARNED), of_b & (dice_a >= LEARNED)))
    unlearned[:, 0] = False
    votes = torch.full(unlearned.shape, 0.5)
    votes[unlearned] = 0.0
    votes[unlearned.flip(0)] = 1.0
    if before is not None and abstain_below > 0:
        votes = torch.where(torch.isnan(dice_a) | torch.isnan(dice_b), before.to(votes.device), votes)
    return votes if (votes != 0.5).any() else None


def combined_logits(logits_a: Tensor, logits_b: Tensor, votes: Tensor | None) -> Tensor:
    """What both networks say together: the mean of their logits, or, where one abstains from a class, log-odds.

    Log-odds of each class against the background, from the networks that vote on it.

    z_i = v_Ai (a_i - a_0) + v_Bi (b_i - b_0). Where both vote on every class, its softmax is that of the mean of the
    logits. Regions, which are sigmoids, have no background to compare with: z_i = v_Ai a_i + v_Bi b_i. A constant that
    is added to a logit of both networks is added to z.

    The odds of two classes against each other are those of neither network where one of them abstains from one of the
    two: a class that one network vetoes as background can lose to another one on which that network has no say.

    Args:
        logits_a, logits_b: (b, c, *spatial).
        votes: From `votes_of`, (2, k), background included: c = k for classes, c = k - 1 for regions. None: the mean.

    Source: own; the mean is DHC's.
    """
    if votes is None:
        return (logits_a + logits_b) / 2
    if votes.shape[1] == logits_a.shape[1]:
        logits_a, logits_b = logits_a - logits_a[:, :1], logits_b - logits_b[:, :1]
    else:
        votes = votes[:, 1:]
    of_a, of_b = votes.to(logits_a.dtype).view(2, 1, -1, *[1] * (logits_a.ndim - 2))
    combined: Tensor = of_a * logits_a + of_b * logits_b
    return combined
