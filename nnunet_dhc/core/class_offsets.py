# SPDX-License-Identifier: Apache-2.0
"""Constants that are added to the logits of each class, chosen by the Dice that they give.

A network that was trained with class weights, or on few labels, paints some classes too large and others too small in
scans that it hasn't seen. Which ones only labels can tell that it wasn't trained on. Adding a constant to a class's
logit moves its border; where posteriors are right, the best Dice is reached at a threshold of half that Dice (Lipton et
al., ECML 2014), so that a large organ needs another constant than a small one.

Source: own, but for that threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OFFSETS = (0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0)
"""What is tried for each class, the smallest change first."""

STRENGTHS = (0.5, 1.0)
"""Factors of the chosen offsets; from few cases, half of what is best on them may be better on others."""

_MOST_GROUPS = 5
_REACH = 4.0
_MOST_SWEEPS = 3
_CHUNK = 1 << 20  # voxels that are float32 at a time
_FEWEST_CASES = 2  # with a class, for an offset of it: one chooses it, another one says whether it helps
_SMALLEST_GAIN = 1e-4  # of the mean Dice; below, the smaller offset is kept


@dataclass(frozen=True)
class CaseLogits:
    """A case, reduced to the voxels whose class an offset can change.

    Attributes:
        logits: (k, n), float16, relative to the largest one of each voxel.
        reference: (n,), int16.
        settled: (k, k), int64, the other voxels by reference (rows) and prediction (columns).
    """

    logits: Tensor
    reference: Tensor
    settled: Tensor


def reduce_case(logits: Tensor, reference: Tensor) -> CaseLogits:
    """Keep what ``choose_offsets`` needs of a case.

    Args:
        logits: (k, *spatial), floating point.
        reference: (*spatial), integers; voxels outside of [0, k), such as those of an ignore label, are left out.

    Returns:
        The case with the voxels whose two largest logits are at most 8 apart; all others are counted.
    """
    num_classes = len(logits)
    kept_logits, kept_reference = [], []
    settled = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    logits, reference = logits.reshape(num_classes, -1), reference.reshape(-1)
    for start in range(0, len(reference), _CHUNK):
        some, labels = logits[:, start : start + _CHUNK], reference[start : start + _CHUNK]
        valid = (labels >= 0) & (labels < num_classes)
        some, labels = some[:, valid].float(), labels[valid].long()
        best, second = some.topk(2, dim=0).values
        contested = best - second <= 2 * _REACH
        kept_logits.append((some - best)[:, contested].half())
        kept_reference.append(labels[contested].short())
        settled += _count(labels[~contested], some[:, ~contested].argmax(0), num_classes)
    return CaseLogits(torch.cat(kept_logits, 1), torch.cat(kept_reference), settled)


def reduce_regions(logits: Tensor, members: Tensor) -> list[CaseLogits]:
    """Overlapping regions, each under a sigmoid: each as two classes, of which the first has a logit of 0.

    Args:
        logits: (r, *spatial), floating point.
        members: (r, *spatial), integers: 1 in the region, 0 outside, -1 where the voxel is left out.

    Returns:
        A case of two classes for each of the r regions.
    """
    return [
        reduce_case(torch.stack((torch.zeros_like(logit), logit)), member)
        for logit, member in zip(logits, members, strict=True)
    ]


def confusion(case: CaseLogits, offsets: Tensor) -> Tensor:
    """Voxels of a case by reference (rows) and prediction (columns), (k, k), int64.

    Args:
        offsets: (k,), each in [-4, 4].
    """
    predicted = (case.logits.float() + offsets[:, None]).argmax(0)
    return case.settled + _count(case.reference, predicted, len(offsets))


def dice_of_classes(confusions: Tensor) -> Tensor:
    """Dice of each foreground class in the cases that have it, whatever the prediction says, so that means compare.

    dice_ci = 2 TP_ci / (predicted_ci + labeled_ci + stray_i / n_i), where stray_i are the voxels of class i in cases
    without it and n_i the cases with it: painting it there costs its volume, not a whole case for a few voxels.

    Args:
        confusions: (cases, k, k) from ``confusion``.

    Returns:
        (cases, k - 1), float64, in [0, 1]; NaN where the reference lacks the class.

    Source: own.
    Deviations: nnU-Net's is 0 where a case without the class has a voxel of it, and none where it hasn't, so that an
        offset which removes the voxel changes which cases are averaged.
    """
    counts = confusions.double()
    predicted, labeled = counts.sum(-2), counts.sum(-1)
    has_class = labeled > 0
    stray = (predicted * ~has_class).sum(0) / has_class.sum(0)
    dice = 2 * counts.diagonal(dim1=-2, dim2=-1) / (predicted + labeled + stray)
    return dice.masked_fill(~has_class, float("nan"))[:, 1:]


def dice_of_cases(cases: Sequence[CaseLogits], offsets: Tensor) -> Tensor:
    """``dice_of_classes`` of cases that all have the same offsets.

    Args:
        cases: At least one.
        offsets: (k,), each in [-4, 4].

    Returns:
        (cases, k - 1), float64, as from `dice_of_classes`.
    """
    return dice_of_classes(torch.stack([confusion(case, offsets) for case in cases]))


def foreground_mean(dice: Tensor) -> float:
    """The mean over cases for each class, then over classes; NaN without any value.

    Args:
        dice: (cases, classes), NaN for no value.
    """
    return float(torch.nanmean(torch.nanmean(dice, 0)))


def judged_classes(cases: Sequence[CaseLogits], fewest_cases: int = _FEWEST_CASES) -> list[int]:
    """Foreground classes that enough cases have to choose an offset and to say whether it helps.

    Args:
        cases: At least one.
        fewest_cases: How many must have a class.

    Returns:
        Their indices in [1, k), ascending.
    """
    num_classes = len(cases[0].settled)
    labeled = [case.settled.sum(1) + torch.bincount(case.reference, minlength=num_classes) for case in cases]
    with_class = (torch.stack(labeled) > 0).sum(0)
    return [index for index in range(1, num_classes) if with_class[index] >= fewest_cases]


def choose_offsets(cases: Sequence[CaseLogits], classes: Sequence[int]) -> Tensor:
    """Offsets of some classes with the best mean Dice, class after class until nothing changes.

    Args:
        cases: At least one.
        classes: Which ones may get an offset, if a case has them; see `judged_classes`.

    Returns:
        (k,), float32, 0 for all others.
    """
    classes = sorted(set(classes).intersection(judged_classes(cases, fewest_cases=1)))
    offsets = torch.zeros(len(cases[0].settled))
    best = foreground_mean(dice_of_cases(cases, offsets))
    if best != best:  # no case has any foreground
        return offsets
    leaders = _leaders(cases, offsets)
    for _ in range(_MOST_SWEEPS):
        before = offsets.clone()
        for index in classes:
            chosen = offsets[index].clone()
            for offset, dice in zip(OFFSETS, _dice_by_offset(cases, leaders, index), strict=True):
                if dice > best + _SMALLEST_GAIN:
                    best, chosen = dice, torch.tensor(offset)
            if chosen != offsets[index]:
                offsets[index] = chosen
                leaders = _leaders(cases, offsets)
        if torch.equal(before, offsets):
            break
    return offsets


def cross_fitted_dice(cases: Sequence[CaseLogits]) -> Tensor:
    """Dice of each case with offsets that were chosen on others: at most five groups of cases, one left out at a time.

    Args:
        cases: At least two.

    Returns:
        (strengths, cases, k - 1), float64: for each of STRENGTHS, of the offsets times it.
    """
    groups, classes = min(_MOST_GROUPS, len(cases)), judged_classes(cases)
    offsets = [
        choose_offsets([case for number, case in enumerate(cases) if number % groups != group], classes)
        for group in range(groups)
    ]
    return torch.stack([
        dice_of_classes(
            torch.stack([confusion(case, strength * offsets[number % groups]) for number, case in enumerate(cases)])
        )
        for strength in STRENGTHS
    ])


def _leaders(cases: Sequence[CaseLogits], offsets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two largest logits with offsets of every voxel and their classes, each (2, n)."""
    found = [(case.logits.float() + offsets[:, None]).topk(2, dim=0) for case in cases]
    return [(top.values, top.indices.short()) for top in found]


def _dice_by_offset(cases: Sequence[CaseLogits], leaders: Sequence[tuple[Tensor, Tensor]], index: int) -> list[float]:
    """Mean Dice for each of OFFSETS of one class, the others as they are in ``leaders``."""
    confusions: list[list[Tensor]] = [[] for _ in OFFSETS]
    for case, (values, classes) in zip(cases, leaders, strict=True):
        num_classes = len(case.settled)
        leads = classes[0] == index
        others = torch.where(leads, values[1], values[0])
        winner = torch.where(leads, classes[1], classes[0])
        own = case.logits[index].float()
        near = own + _REACH > others
        fixed = case.settled + _count(case.reference[~near], winner[~near], num_classes)
        own, others, winner, reference = own[near], others[near], winner[near], case.reference[near]
        for number, offset in enumerate(OFFSETS):
            predicted = torch.where(own + offset > others, index, winner)
            confusions[number].append(fixed + _count(reference, predicted, num_classes))
    return [foreground_mean(dice_of_classes(torch.stack(of_offset))) for of_offset in confusions]


def _count(reference: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    pairs = torch.bincount(reference.long() * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)
