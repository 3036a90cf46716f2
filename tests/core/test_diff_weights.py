# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from golden import assert_golden
from torch import Tensor

from nnunet_dhc.core import DiffDW
from nnunet_dhc.core.class_counts import hard_dice
from nnunet_dhc.core.diff_weights import learning_speed
from nnunet_dhc.core.label_spaces import ClassLabels

NAN = float("nan")
DICE = [(0.9, 0.5, 0.1, 0.2), (0.95, 0.4, 0.1, 0.4), (0.94, 0.6, 0.3, 0.1), (0.94, 0.6, 0.3, 0.1)]


def test_prescribed_dice() -> None:
    weighting = DiffDW(4, mode="released")
    learned = [
        (0.329676, 0.177275, 0.032236, 0.067245),
        (0.323136, 0.173730, 0.031591, 0.068673),
        (0.316674, 0.171877, 0.035354, 0.067299),
        (0.310340, 0.168440, 0.034647, 0.065953),
    ]
    unlearned = [
        (0, 0, 0, 0),
        (0, 0.00044629, 0, 0),
        (2.12e-6, 0.00043736, 0, 0.00831777),
        (2.07e-6, 0.00042861, 0, 0.00815141),
    ]
    reversed_dice = [
        (0.982, 0.990, 0.998, 0.996),
        (0.96336, 0.9822, 0.99604, 0.98808),
        (0.945293, 0.970556, 0.990119, 0.986318),
        (0.927587, 0.959145, 0.984317, 0.984592),
    ]
    weights = [
        (2.472249, 2.821654, 4, 3.446082),
        (0.407213, 4, 0.670306, 0.569306),
        (0.537796, 1.810466, 0.298981, 4),
        (0.528658, 1.792317, 0.298955, 4),
    ]
    for step, dice in enumerate(DICE):
        # class 0 has a tiny unlearning at steps 3 and 4, which costs float32 digits of w
        assert_golden(weighting.update(torch.tensor(dice)), weights[step], atol=4e-6)
        state = weighting.state_dict()
        assert_golden(state["learned"], learned[step])
        assert_golden(state["unlearned"], unlearned[step], atol=1e-8)
        assert_golden(state["reversed_dice"], reversed_dice[step])


def test_first_step_by_hand() -> None:
    # class 0: (0.9 - 1e-8) ln(0.9 / 1e-8) / 50 = 0.329676; d = (1e-8 / 0.329676)^0.2; r = 0.98 + 0.02 * 0.1
    raw = [(1e-8 / (1e-8 + x * math.log(x / 1e-8) / 50)) ** 0.2 * (0.98 + 0.02 * (1 - x)) for x in DICE[0]]
    weights = DiffDW(4, mode="released").update(torch.tensor(DICE[0]))
    assert_golden(weights, [4 * value / max(raw) for value in raw])


def test_tau_of_two() -> None:
    weighting = DiffDW(4, mode="released", tau=2)
    expected = [
        (1.454623, 2.245622, 4, 3.271265),
        (0.096928, 4, 0.475826, 0.327810),
        (0.123249, 1.050179, 0.146145, 4),
        (0.078596, 0.876034, 0.149461, 4),
    ]
    for dice, weights in zip(DICE, expected, strict=True):
        assert_golden(weighting.update(torch.tensor(dice)), weights, atol=4e-6)


def test_window_of_the_paper() -> None:
    # Eq. 5 with the factor of the Population Stability Index; the first Dice is the starting point. NumPy only.
    weighting = DiffDW(
        4, mode="released", scale=1.0, normalise="none", init="first_observation", accumulation="window"
    )
    assert_golden(weighting.update(torch.tensor(DICE[0])), (1, 1, 1, 1))  # nothing is known yet
    expected = [
        (0.004098, 11.165242, 0.9, 0.022376),
        (0.057535, 0.772539, 0.054418, 1.868596),
        (0.088918, 1.081554, 0.078226, 2.989754),
    ]
    for dice, weights in zip(DICE[1:], expected, strict=True):
        assert_golden(weighting.update(torch.tensor(dice)), weights, atol=4e-6)


def test_window_forgets_what_is_older_than_tau_observations_of_the_class() -> None:
    torch.manual_seed(0)
    dice = torch.rand(12, 3)
    dice[5, 1] = NAN  # class 1 misses one step, so its window reaches one step further back
    long = DiffDW(3, tau=4, accumulation="window")
    for row in dice:
        long.update(row)
    for index, rows in ((0, dice[7:, 0]), (1, dice[[7, 8, 9, 10, 11], 1]), (2, dice[7:, 2])):
        previous, now = rows[:-1], rows[1:]
        change = (now - previous) * (now / previous).log()
        state = long.state_dict()
        torch.testing.assert_close(state["learned"][:, index].sum(), change[now > previous].sum())
        torch.testing.assert_close(state["unlearned"][:, index].sum(), change[now <= previous].sum())
        torch.testing.assert_close(state["reversed_dice"][:, index].sum(), (1 - now).sum())


def _dice_of(label: list[int], prediction: list[int]) -> Tensor:
    labels = ClassLabels(4)
    shape = (1, 1, len(label), 1, 1)
    return hard_dice(*labels.overlap(torch.tensor(prediction).reshape(shape), torch.tensor(label).reshape(shape)))


def test_from_volumes() -> None:
    label = [0] * 10 + [1] * 4 + [2] * 3 + [3] * 3
    steps = [
        ([0] * 20, (0.666667, 2.5e-9, 1e-8 / 3, 1e-8 / 3), (0.131319, 4, 3.995172, 3.995172)),
        (
            [0] * 9 + [1] + [1, 1, 0, 0] + [2, 0, 0] + [0, 0, 0],
            (0.692308, 0.571429, 0.5, 1e-8 / 3),
            (0.130198, 0.134620, 0.138913, 4),
        ),
        (
            [0] * 10 + [1, 1, 1, 0] + [2, 2, 0] + [3, 0, 0],
            (0.833333, 0.857143, 0.8, 0.5),
            (3.700386, 3.817226, 3.940126, 4),
        ),
        (
            [0] * 10 + [1, 1, 1, 1] + [2, 2, 2] + [2, 0, 0],
            (0.909091, 1, 0.857143, 1e-8 / 3),
            (0.127772, 0.131503, 0.136190, 4),
        ),
    ]
    weighting = DiffDW(4, mode="released")
    for prediction, dice, weights in steps:
        assert_golden(_dice_of(label, prediction), dice, atol=1e-6)
        assert_golden(weighting.update(_dice_of(label, prediction)), weights, atol=4e-6)


def test_absent_class_of_a_volume_counts_as_one_half_in_released_mode() -> None:
    label, prediction = [0] * 12 + [1] * 4 + [2] * 4, [0] * 12 + [1] * 4 + [2, 2, 0, 0]
    dice = _dice_of(label, prediction)
    assert dice[3].isnan()
    assert_golden(dice[:3], (0.923077, 1, 0.666667))
    assert_golden(DiffDW(4, mode="released").update(dice), (3.484379, 3.420688, 3.751537, 4), atol=4e-6)


@pytest.mark.parametrize("mode", ["released", "robust"])
def test_all_classes_perfect(mode: str) -> None:
    weighting = DiffDW(4, mode=mode)  # type: ignore[arg-type]
    for _ in range(3):
        weights = weighting.update(torch.ones(4))
    assert_golden(weights, (4, 4, 4, 4))


@pytest.mark.parametrize(
    ("mode", "speed", "reversed_dice", "weights"),
    [
        ("released", (0.069284, 0.079329, 0.995821), (0.066709, 0.357915, 0.751916), (0.018518, 0.113758, 3)),
        ("robust", (0.069284, 0.079329, 1.004936), (0.066709, 0.357915, 1), (0.013797, 0.084760, 3)),
    ],
)
def test_flicker(
    mode: str, speed: tuple[float, ...], reversed_dice: tuple[float, ...], weights: tuple[float, ...]
) -> None:
    # class 2 is missed in even steps and absent in odd ones; NumPy only
    weighting = DiffDW(3, mode=mode)  # type: ignore[arg-type]
    for step in range(200):
        result = weighting.update(torch.tensor([0.95, 0.5 + 0.001 * step, NAN if step % 2 else 1e-12]))
    assert_golden(result, weights, atol=1e-5)
    state = weighting.state_dict()
    assert_golden(state["reversed_dice"], reversed_dice)
    assert_golden(((state["unlearned"] + 1e-8) / (state["learned"] + 1e-8)) ** 0.2, speed, atol=1e-5)


@pytest.mark.parametrize("accumulation", ["ema", "window"])
def test_carry_leaves_an_absent_class_untouched(accumulation: str) -> None:
    weighting = DiffDW(3, accumulation=accumulation)  # type: ignore[arg-type]
    weighting.update(torch.tensor([0.9, 0.3, 0.1]))
    before = weighting.state_dict()
    weighting.update(torch.tensor([0.8, NAN, 0.2]))
    after = weighting.state_dict()
    for name in ("dice", "unlearned", "learned", "reversed_dice"):
        torch.testing.assert_close(after[name][..., 1], before[name][..., 1], rtol=0, atol=0)
        assert not torch.equal(after[name][..., 0], before[name][..., 0]) or name == "learned"


def test_first_observation_says_nothing_about_speed() -> None:
    weighting = DiffDW(3, init="first_observation")
    weighting.update(torch.tensor([0.9, 0.1, NAN]))
    state = weighting.state_dict()
    assert_golden(state["learned"], (0, 0, 0), atol=0)
    weighting.update(torch.tensor([0.9, 0.2, 0.7]))
    expected = (0, 0.02 * 0.1 * math.log(2), 0)
    assert_golden(weighting.state_dict()["learned"], expected, atol=1e-8)


@pytest.mark.parametrize("accumulation", ["ema", "window"])
@pytest.mark.parametrize("normalise", ["max", "none"])
def test_dice_of_exactly_zero(accumulation: str, normalise: str) -> None:
    weighting = DiffDW(3, accumulation=accumulation, normalise=normalise)  # type: ignore[arg-type]
    for dice in ((0, 0, 1), (0, 1, 0), (0.5, 0, 0), (0, 0, 0)):
        assert weighting.update(torch.tensor(dice, dtype=torch.float32)).isfinite().all()


def test_vanished_weights_become_the_scale() -> None:
    # after some 1400 perfect steps 0.98^t < 1e-12; the reference comes to 0 / 0 later still
    weighting = DiffDW(2, tau=2)
    for _ in range(200):
        weights = weighting.update(torch.ones(2))
    assert_golden(weights, (2, 2), atol=0)


def test_unchanged_dice_is_an_unlearning_of_magnitude_zero() -> None:
    unlearned, learned = learning_speed(torch.tensor([0.5, 0.2, 0.4]), torch.tensor([0.5, 0.4, 0.2]))
    assert_golden(unlearned, (0, 0.2 * math.log(2), 0))
    assert_golden(learned, (0, 0, 0.2 * math.log(2)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tau": 0},
        {"tau": 2.5},
        {"tau": float("inf")},
        {"alpha": -3},
        {"scale": -1},
        {"scale": float("nan")},
        {"absent": "zero"},
        {"init": "zero"},
        {"normalise": "sum"},
        {"accumulation": "mean"},
    ],
)
def test_wrong_arguments(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DiffDW(3, **wrong)  # type: ignore[arg-type]
