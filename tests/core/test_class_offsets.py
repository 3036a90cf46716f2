# SPDX-License-Identifier: Apache-2.0
"""Offsets of the logits: the threshold of theory, the same voxels as a whole scan, nothing where nothing helps."""

from __future__ import annotations

import math

import pytest
import torch

from nnunet_dhc.core.class_offsets import (
    OFFSETS,
    STRENGTHS,
    choose_offsets,
    confusion,
    cross_fitted_dice,
    dice_of_cases,
    dice_of_classes,
    foreground_mean,
    judged_classes,
    reduce_case,
    reduce_regions,
)


def noisy_case(seed: int, bias=(0.0, 0.0, 0.0, 0.0), num_voxels: int = 4000):
    """Logits of four classes, right but for noise and for a constant on each class."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.multinomial(torch.tensor([0.7, 0.2, 0.08, 0.02]), num_voxels, True, generator=generator)
    logits = torch.randn(4, num_voxels, generator=generator)
    logits += 2.5 * torch.nn.functional.one_hot(reference, 4).T + torch.tensor(bias)[:, None]
    return logits.reshape(4, 20, -1), reference.reshape(20, -1)


def whole(logits, reference, offsets):
    predicted = (logits + offsets[:, None, None]).argmax(0)
    return torch.tensor([[((reference == row) & (predicted == column)).sum() for column in range(4)]
                         for row in range(4)])


def mean_dice(cases, offsets):
    return foreground_mean(dice_of_cases(cases, offsets))


@pytest.mark.parametrize("seed", range(3))
def test_reduced_case_counts_what_the_whole_one_does(seed):
    logits, reference = noisy_case(seed)
    logits *= 4  # so that some voxels are beyond all offsets
    case = reduce_case(logits, reference)
    assert 0 < case.settled.sum() < reference.numel() and len(case.reference) == case.logits.shape[1]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        offsets = torch.tensor(OFFSETS)[torch.randint(len(OFFSETS), (4,), generator=generator)]
        difference = confusion(case, offsets) - whole(logits, reference, offsets)
        assert difference.abs().sum() <= 4  # a tie or two within the precision of float16


def test_ignored_voxels_are_left_out():
    logits, reference = noisy_case(0)
    reference[:5] = 4  # an ignore label
    assert confusion(reduce_case(logits, reference), torch.zeros(4)).sum() == (reference < 4).sum()


def test_regions_overlap_and_each_is_above_0_or_not():
    logits = noisy_case(0)[0].half().float()
    members = (noisy_case(1)[0] > 0.3).long()
    members[:, :3] = -1  # an ignore label
    for region, case in enumerate(reduce_regions(logits, members)):
        for offset in OFFSETS:
            predicted, labeled = logits[region, 3:] + offset > 0, members[region, 3:] == 1
            counts = confusion(case, torch.tensor([0.0, offset]))
            expected = [[(~labeled & ~predicted).sum(), (~labeled & predicted).sum()],
                        [(labeled & ~predicted).sum(), (labeled & predicted).sum()]]
            assert torch.equal(counts, torch.tensor(expected))


def test_threshold_of_a_calibrated_class_is_half_its_dice():
    """p uniform on (0, 1): Dice (1 - t^2) / (3/2 - t) is largest, 0.764, at t = (3 - sqrt(5)) / 2 = 0.382."""
    num_voxels = 200_000
    probability = (torch.arange(num_voxels) + 0.5) / num_voxels
    generator = torch.Generator().manual_seed(0)
    reference = (torch.rand(num_voxels, generator=generator) < probability).long()
    case = reduce_case(torch.stack((torch.zeros(num_voxels), torch.logit(probability))), reference)
    chosen = float(choose_offsets([case], [1])[1])
    threshold = (3 - math.sqrt(5)) / 2
    assert chosen == min(OFFSETS, key=lambda offset: abs(offset - math.log((1 - threshold) / threshold))) == 0.5
    dice = mean_dice([case], torch.tensor([0.0, chosen]))
    assert dice == pytest.approx(2 * threshold, abs=0.005) and dice > mean_dice([case], torch.zeros(2)) + 0.01


def test_a_constant_on_a_class_is_found_and_taken_back():
    bias = (0.0, 2.0, 0.0, -3.0)
    cases = [reduce_case(*noisy_case(seed, bias)) for seed in range(4)]
    offsets = choose_offsets(cases, [1, 2, 3])
    assert offsets[0] == 0 and offsets[1] <= -1 and offsets[3] >= 1.5
    without_bias = [reduce_case(*noisy_case(seed)) for seed in range(4)]
    assert mean_dice(cases, offsets) > mean_dice(without_bias, torch.zeros(4)) - 0.01
    assert mean_dice(cases, offsets) > mean_dice(cases, torch.zeros(4)) + 0.1


def test_a_perfect_prediction_is_left_alone():
    logits, reference = noisy_case(0)
    logits = 20 * torch.nn.functional.one_hot(reference, 4).movedim(-1, 0).float() + logits.sign()
    assert not choose_offsets([reduce_case(logits, reference)], [1, 2, 3]).any()


@pytest.mark.parametrize("seed", range(4))
def test_no_other_offset_of_a_single_class_is_better(seed):
    cases = [reduce_case(*noisy_case(seed, (0.0, 2.5, -2.5, -2.5), 2000))]
    offsets = choose_offsets(cases, [1, 2, 3])
    best = mean_dice(cases, offsets)
    for index in (1, 2, 3):
        for offset in OFFSETS:
            changed = offsets.clone()
            changed[index] = offset
            assert mean_dice(cases, changed) <= best + 1e-3  # but for ties within the precision of float16


def test_a_gain_that_nobody_would_see_moves_no_border():
    def missed(number: int):
        """Of 20000 voxels of a class, so many lie below its threshold."""
        reference = torch.arange(30_000).ge(10_000).long()
        logit = torch.where(reference == 1, 9.0, -9.0)
        logit[-number:] = -0.3
        return reduce_case(torch.stack((torch.zeros(30_000), logit)), reference)

    assert not choose_offsets([missed(1)], [1]).any()  # 1 / 40000
    assert choose_offsets([missed(10)], [1])[1] == 0.5


def test_classes_whose_voxels_are_all_clear_are_judged_too():
    reference = noisy_case(0)[1]
    case = reduce_case(40 * torch.nn.functional.one_hot(reference, 4).movedim(-1, 0).float(), reference)
    assert len(case.reference) == 0 and judged_classes([case, case]) == [1, 2, 3]


def test_without_foreground_nothing_is_chosen():
    logits, reference = noisy_case(0)
    logits[0] += 50
    assert not choose_offsets([reduce_case(logits, torch.zeros_like(reference))], [1, 2, 3]).any()


@pytest.mark.parametrize("num_cases", [2, 7])
def test_cross_fitted_offsets_have_not_seen_the_case(num_cases):
    cases = [reduce_case(*noisy_case(seed, (0.0, 1.0, 0.0, -2.0), 600)) for seed in range(num_cases)]
    dice = cross_fitted_dice(cases)
    groups = min(5, num_cases)
    for number, case in enumerate(cases):
        others = [other for index, other in enumerate(cases) if index % groups != number % groups]
        for of_strength, strength in zip(dice, STRENGTHS, strict=True):
            expected = dice_of_classes(confusion(case, strength * choose_offsets(others, [1, 2, 3]))[None])[0]
            assert torch.equal(of_strength[number], expected)


def test_voxels_in_cases_without_a_class_are_shared_by_those_with_it():
    with_it = torch.tensor([[5, 0, 0], [0, 0, 0], [1, 0, 3]])
    without = torch.tensor([[5, 0, 2], [0, 4, 0], [0, 0, 0]])
    dice = dice_of_classes(torch.stack([with_it, without, with_it]))
    nan = float("nan")
    expected = torch.tensor([[nan, 6 / 8], [1.0, nan], [nan, 6 / 8]], dtype=torch.float64)  # 6 / (3 + 4 + 2 / 2)
    torch.testing.assert_close(dice, expected, equal_nan=True)
    assert foreground_mean(dice) == pytest.approx((1 + 6 / 8) / 2)


def stray_case(number: int, has_class: bool):
    """Class 2 is right where a case has it, but for a threshold; five voxels of it are painted in every case."""
    reference = torch.ones(1000, dtype=torch.long)
    reference[:100] = 2 if has_class else 0
    logits = torch.zeros(3, 1000)
    logits[0], logits[1, 100:] = 0.0, 6.0
    logits[2] = -9.0
    logits[2, :100] = torch.linspace(1.0, 5.0, 100) if has_class else -9.0
    logits[2, 100 + number : 105 + number] = 6.5
    return reduce_case(logits, reference)


def test_few_stray_voxels_are_no_reason_to_give_up_a_structure():
    """Removing them would take cases without the class out of a mean that counts them as 0."""
    cases = [stray_case(number, has_class=number < 2) for number in range(6)]
    assert judged_classes(cases) == [1, 2]
    assert choose_offsets(cases, [1, 2])[2] >= 0


def test_a_class_that_one_case_alone_has_gets_no_offset():
    cases = [stray_case(number, has_class=number == 0) for number in range(3)]
    assert judged_classes(cases) == [1] and judged_classes(cases, fewest_cases=1) == [1, 2]
    assert choose_offsets(cases[1:], [1, 2])[2] == 0  # none of these has it
    assert torch.isnan(cross_fitted_dice(cases)[:, 1:, 1]).all()
