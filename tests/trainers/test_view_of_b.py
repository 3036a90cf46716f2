# SPDX-License-Identifier: Apache-2.0
"""Patches that B sees with other intensities than A."""

from __future__ import annotations

import torch
from tiny_training import log_lines, make_trainer
from two_ranks import batches, start

from nnunet_dhc.nnunet.training.view_of_b import with_view_of_b
from nnunet_dhc.nnunet.training.whole_step import StepInputs


def started(dataset, **settings):
    """A trainer in float64 before its first step; no case is loaded."""
    trainer = make_trainer(dataset, lambda_max=1.0, ramp_length=0.0, **settings)
    trainer.print_to_log_file = lambda *_, **__: None
    start(trainer)
    return trainer


def gradients(trainer, network: str) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in getattr(trainer.pair, f"sub_network_{network}").parameters()]


def test_b_alone_sees_other_intensities(tiny_dataset) -> None:
    """On labeled patches, where A learns nothing from B, only B's gradient depends on the setting."""
    step = {**batches(1)[0], "unlabeled": None}
    of_a, of_b = [], []
    for strength in (0.0, 0.3):
        torch.manual_seed(1)
        trainer = started(tiny_dataset, perturbation_b=strength)
        trainer.train_step(step)
        of_a.append(gradients(trainer, "a"))
        of_b.append(gradients(trainer, "b"))
    assert all(map(torch.equal, *of_a))
    assert not any(map(torch.equal, *of_b))


def test_labels_of_the_previous_stage_stay_as_they_are(tiny_dataset) -> None:
    trainer = started(tiny_dataset, perturbation_b=0.3)
    batch = batches(1)[0]
    images = torch.cat((batch["data"], batch["data"] > 0), dim=1)  # one channel, as the dataset has, and one label
    inputs = with_view_of_b(trainer, StepInputs(images, batch["target"], False, 0.0))
    assert inputs.images is images
    assert not torch.isclose(inputs.images_b[:, :1], images[:, :1]).all()
    assert torch.equal(inputs.images_b[:, 1:], images[:, 1:])


def test_without_the_setting_both_see_the_same(tiny_dataset) -> None:
    batch = batches(1)[0]
    inputs = StepInputs(batch["data"], batch["target"], False, 0.0)
    assert with_view_of_b(started(tiny_dataset, perturbation_b=0.0), inputs) is inputs


def test_trains(tiny_dataset) -> None:
    trainer = make_trainer(
        tiny_dataset, num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1, perturbation_b=0.15
    )
    trainer.run_training()
    assert log_lines(trainer)[0]["skipped_steps"] == 0
