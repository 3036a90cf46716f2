# SPDX-License-Identifier: Apache-2.0
"""Which steps change the parameters, with and without mixed precision."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_dhc.core.co_training import CoTrainingTerms
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.training.optimizer_step import GRADIENT_NORM_LIMIT, Ending, OptimizerStep
from nnunet_dhc.nnunet.training.whole_step import StepOutcome


def made_up_trainer(scaler: torch.amp.GradScaler | None = None) -> SimpleNamespace:
    networks = (nn.Linear(3, 1), nn.Linear(3, 1))
    parameters = [parameter for network in networks for parameter in network.parameters()]
    return SimpleNamespace(
        pair=SimpleNamespace(sub_networks=networks), optimizer=torch.optim.SGD(parameters, lr=0.1), grad_scaler=scaler,
        averaged_pair=None, recipe=SimpleNamespace(max_non_finite_steps=3), output_folder="fold_0",
        can_be_continued=True, resume_command="the same command --c")


def give_gradients(trainer: SimpleNamespace, of_a: float = 1.0) -> None:
    """The same number for each parameter of a network, 1 for B."""
    for value, network in zip((of_a, 1.0), trainer.pair.sub_networks, strict=True):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, value)


def outcome_of(total: float) -> StepOutcome:
    numbers = [torch.tensor(float(number)) for number in range(5)]
    loss = torch.tensor(total)
    return StepOutcome(loss, CoTrainingTerms(*numbers), None, torch.zeros(2, 3, 2), ~torch.isfinite(loss), None)


@pytest.mark.parametrize(("mixed_precision", "total", "gradient", "ending"), [
    (False, 1.0, 1.0, Ending.STEPPED), (False, 1.0, np.inf, Ending.SKIPPED), (False, np.nan, 1.0, Ending.SKIPPED),
    (True, 1.0, 1.0, Ending.STEPPED), (True, 1.0, np.inf, Ending.OVERFLOWED), (True, np.nan, 1.0, Ending.SKIPPED),
    (True, np.nan, np.nan, Ending.SKIPPED),
])
def test_both_networks_step_or_neither(mixed_precision, total, gradient, ending):
    trainer = made_up_trainer(torch.amp.GradScaler("cpu", init_scale=4.0) if mixed_precision else None)
    if mixed_precision:
        trainer.grad_scaler.scale(torch.ones(1))
    give_gradients(trainer)
    trainer.pair.sub_networks[0].bias.grad.fill_(gradient)
    before = [parameter.clone() for group in trainer.optimizer.param_groups for parameter in group["params"]]
    taken = OptimizerStep(trainer).take(outcome_of(total))
    after = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert taken.ending is ending
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [ending is not Ending.STEPPED] * 4
    np.testing.assert_array_equal(taken.losses, [total, 0, 1, 2, 3])
    assert taken.empty_cross_entropies == 4
    if mixed_precision:
        assert trainer.grad_scaler.get_scale() == (4.0 if np.isfinite(gradient) else 2.0)


def test_each_network_is_clipped_by_itself():
    trainer = made_up_trainer()
    give_gradients(trainer, of_a=1e3)
    before = OptimizerStep(trainer).clip_gradients()
    torch.testing.assert_close(before, torch.tensor([2e3, 2.0]))
    assert trainer.pair.sub_networks[0].bias.grad.item() == pytest.approx(GRADIENT_NORM_LIMIT / 2)
    assert trainer.pair.sub_networks[1].bias.grad.item() == 1.0


def test_steps_that_change_nothing_end_the_training_and_name_the_cases():
    trainer = made_up_trainer()
    step = OptimizerStep(trainer)

    def take(total):
        give_gradients(trainer)
        step.take(outcome_of(total))
        step.stop_if_nothing_changes(["case_1", "case_2"])

    for total in (np.nan, np.nan, 1.0, np.nan, np.nan):  # one that steps begins the count anew
        take(total)
    with pytest.raises(UserError, match=r"3 steps in a row \(last cases: case_1, case_2\); the last good checkpoint"):
        take(np.nan)


@pytest.mark.parametrize(("total", "updates"), [(1.0, 1), (np.nan, 0)])
def test_the_average_of_the_weights_follows_steps_that_change_them(total, updates):
    trainer, seen = made_up_trainer(), []
    trainer.averaged_pair = SimpleNamespace(update=seen.append)
    give_gradients(trainer)
    OptimizerStep(trainer).take(outcome_of(total))
    assert seen == [trainer.pair] * updates
