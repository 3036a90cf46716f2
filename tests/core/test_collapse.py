# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from nnunet_dhc.core.collapse import CollapseMonitor

NAN = float("nan")


def _monitor() -> CollapseMonitor:
    return CollapseMonitor(["liver", "gallbladder"], patience_epochs=3)


def _observe(
    monitor: CollapseMonitor,
    share: float = 0.1,
    share_a: float | None = None,
    dice: float = 0.5,
    gap: float = 0.3,
    contained: bool = True,
) -> list[str]:
    shares = ([0.5, share if share_a is None else share_a], [0.5, share])
    return monitor.observe([True, contained], shares, [0.9, dice], gap)


def test_class_without_pseudo_labels() -> None:
    monitor = _monitor()
    alarms = [_observe(monitor, share=0.0) for _ in range(6)]
    assert [len(a) for a in alarms] == [0, 0, 1, 0, 0, 0]
    assert "'gallbladder'" in alarms[2][0] and "pseudo labels" in alarms[2][0] and "\n" not in alarms[2][0]


def test_network_whose_pseudo_labels_lack_the_class_is_named() -> None:
    monitor = _monitor()
    assert [_observe(monitor, share_a=0.0) for _ in range(2)] == [[], []]
    (alarm,) = _observe(monitor, share=0.0, share_a=0.0)
    assert "pseudo labels of A for 3 epochs" in alarm
    assert not _observe(monitor, share=0.0)
    (alarm,) = _observe(monitor, share=0.0)
    assert "pseudo labels of B for 3 epochs" in alarm
    monitor = _monitor()
    (alarm,) = [_observe(monitor, share=0.0) for _ in range(3)][-1]
    assert "pseudo labels of A and B for 3 epochs" in alarm


def test_class_with_dice_zero() -> None:
    monitor = _monitor()
    alarms = [_observe(monitor, dice=0.0) for _ in range(4)]
    assert [len(a) for a in alarms] == [0, 0, 1, 0]
    assert "'gallbladder'" in alarms[2][0] and "Dice of 0" in alarms[2][0]


def test_networks_that_have_become_one() -> None:
    monitor = _monitor()
    alarms = [_observe(monitor, gap=1e-4) for _ in range(4)]
    assert [len(a) for a in alarms] == [0, 0, 1, 0]
    assert "A and B" in alarms[2][0]
    _observe(monitor, gap=0.1)
    assert [len(_observe(monitor, gap=1e-4)) for _ in range(3)] == [0, 0, 1]


def test_rearmed_after_recovery() -> None:
    monitor = _monitor()
    for share in (0, 0, 0, 0.01):
        _observe(monitor, share=share)
    assert [len(_observe(monitor, share=0.0)) for _ in range(3)] == [0, 0, 1]


def test_an_interrupted_run_of_zeros_is_no_collapse() -> None:
    monitor = _monitor()
    assert not any(_observe(monitor, share=s) for s in (0, 0, 0.1, 0, 0, 0.1))


def test_nan_is_unknown() -> None:
    monitor = _monitor()
    alarms = [_observe(monitor, share=s, dice=NAN, gap=NAN) for s in (0, NAN, 0, NAN, 0)]
    assert [len(a) for a in alarms] == [0, 0, 0, 0, 1]


def test_class_that_the_labels_do_not_contain() -> None:
    monitor = _monitor()
    assert not any(_observe(monitor, share=0.0, dice=0.0, contained=False) for _ in range(5))


def test_resume() -> None:
    monitor = _monitor()
    for _ in range(2):
        _observe(monitor, share=0.0, gap=0.0)
    state = json.loads(json.dumps(monitor.state_dict()))
    resumed = _monitor()
    resumed.load_state_dict(state)
    assert len(_observe(resumed, share=0.0, gap=0.0)) == 2
    of_b_alone = {**state, "epochs_without_pseudo_labels": state["epochs_without_pseudo_labels"]["B"]}
    resumed.load_state_dict(of_b_alone)  # as older checkpoints have it
    assert len(_observe(resumed, share=0.0, gap=0.0)) == 2
    with pytest.raises(ValueError, match="watches"):
        CollapseMonitor(["liver"], 3).load_state_dict(state)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="patience_epochs"):
        CollapseMonitor(["liver"], 0)
    with pytest.raises(ValueError, match="dice has 1 values for 2 classes"):
        _monitor().observe([True, True], ([0.1, 0.1], [0.1, 0.1]), [0.1], 0.1)
    with pytest.raises(ValueError, match="pseudo_label_share of A has 1 values for 2 classes"):
        _monitor().observe([True, True], ([0.1], [0.1, 0.1]), [0.1, 0.1], 0.1)
