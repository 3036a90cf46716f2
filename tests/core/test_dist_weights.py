# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from golden import assert_golden

from nnunet_dhc.core import DistDW
from nnunet_dhc.core.dist_weights import distribution_weights

LABELED = (1000, 100, 10, 1)
# (unlabeled counts, weights of the step times k, state after momentum 0.99), released mode
RELEASED_STEPS = [
    ((1000, 10, 100, 1), (0, 2.666667, 1.333333, 4), (0, 1.346667, 2.653333, 4)),
    ((1000, 100, 0, 10), (0, 0.363636, 4, 0.727273), (0, 1.336836, 2.666800, 3.967273)),
    ((1111, 0, 0, 0), (0, 4, 4, 4), (0, 1.363468, 2.680132, 3.967600)),
    ((100, 1000, 10, 1), (1.333333, 0, 2.666667, 4), (0.013333, 1.349833, 2.679997, 3.967924)),
    ((1000, 1000, 10, 10), (0, 0, 4, 4), (0.013200, 1.336335, 2.693197, 3.968245)),
]


def test_released_sequence() -> None:
    weighting = DistDW(4, mode="released")
    assert_golden(weighting.initialize(torch.tensor(LABELED)), (0, 4 / 3, 8 / 3, 4))
    for counts, current, state in RELEASED_STEPS:
        assert_golden(4 * distribution_weights(torch.tensor(counts), "released"), current)
        assert_golden(weighting.update(torch.tensor(counts)), state)


def test_released_sequence_with_momentum_one_half() -> None:
    weighting = DistDW(4, mode="released", momentum=0.5)
    weighting.initialize(torch.tensor(LABELED))
    states = [(0, 2, 2, 4), (0, 1.181818, 3, 2.363636), (0, 2.590909, 3.5, 3.181818)]
    for (counts, _, _), state in zip(RELEASED_STEPS, states, strict=False):
        assert_golden(weighting.update(torch.tensor(counts)), state)


def test_scale_of_the_paper_is_the_released_one_without_k() -> None:
    # Eq. 3-4 of the paper have no factor; the table above divided by 4
    weighting = DistDW(4, mode="released", scale=1.0)
    weighting.initialize(torch.tensor(LABELED))
    assert_golden(weighting.update(torch.tensor(RELEASED_STEPS[0][0])), (0, 1.346667 / 4, 2.653333 / 4, 1))


def test_modes_agree_where_every_class_is_present() -> None:
    released, robust = DistDW(4, mode="released"), DistDW(4)
    for weighting in (released, robust):
        weighting.initialize(torch.tensor(LABELED))
    for counts in ((1000, 10, 100, 1), (100, 1000, 10, 1), (1000, 1000, 10, 10)):
        torch.testing.assert_close(released.update(torch.tensor(counts)), robust.update(torch.tensor(counts)))


@pytest.mark.parametrize(
    ("counts", "released", "robust"),
    [
        # the example of a Synapse-like crop, and what an absent class does to it in both modes
        ((3.7e6, 1.2e5, 6e4, 900), (0, 0.412, 0.495, 1), (0, 0.412, 0.495, 1)),
        ((3.7e6, 1.2e5, 6e4, 0), (0, 0.102, 0.123, 1), (0, 0.227, 0.273, 1)),
    ],
)
def test_absent_class(counts: tuple[float, ...], released: tuple[float, ...], robust: tuple[float, ...]) -> None:
    # printed with 3 decimals
    assert_golden(distribution_weights(torch.tensor(counts), "released"), released, atol=6e-4)
    assert_golden(distribution_weights(torch.tensor(counts), "robust"), robust, atol=6e-4)


@pytest.mark.parametrize("counts", [(250, 250, 250, 250), (0, 0, 0, 0), (1, 1, 0, 1)])
def test_equal_counts_keep_the_state(counts: tuple[int, ...]) -> None:
    # the floor of one voxel makes 0 and 1 equal
    weighting = DistDW(4)
    before = weighting.initialize(torch.tensor(LABELED)).clone()
    torch.testing.assert_close(weighting.update(torch.tensor(counts)), before, rtol=0, atol=0)


def test_equal_labeled_counts_start_from_ones() -> None:
    assert_golden(DistDW(4).initialize(torch.full((4,), 250)), (1, 1, 1, 1), atol=0)


def test_equal_counts_are_nan_for_good_in_released_mode() -> None:
    weighting = DistDW(4, mode="released")
    weighting.initialize(torch.tensor(LABELED))
    assert weighting.update(torch.full((4,), 250)).isnan().all()
    assert weighting.update(torch.tensor(LABELED)).isnan().all()


def test_all_background_gives_the_foreground_the_maximum() -> None:
    assert_golden(distribution_weights(torch.tensor((1111, 0, 0, 0))), (0, 1, 1, 1))


def test_weights_are_ratios_of_logarithms() -> None:
    counts = torch.tensor((8.0, 4.0, 2.0, 1.0))
    by_hand = [math.log2(8 / n) / 3 for n in (8, 4, 2, 1)]
    assert_golden(distribution_weights(counts), by_hand)
