# SPDX-License-Identifier: Apache-2.0
"""Another view of the patches of a step for sub-network B."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nnunet_dhc.core.perturbation import perturbed
from nnunet_dhc.nnunet.training.whole_step import StepInputs
from nnunet_dhc.nnunet.unlabeled.raw_images import number_of_channels

if TYPE_CHECKING:
    from nnunet_dhc.trainers.pair_trainer import PairTrainer


def with_view_of_b(trainer: PairTrainer, inputs: StepInputs) -> StepInputs:
    """The inputs of a step with other intensities for B, where the recipe says so.

    What a cascade appends to the channels of the scan, the labels of the previous stage, stays as it is.
    """
    strength = trainer.recipe.perturbation_b
    if strength == 0:
        return inputs
    scan, previous_stage = inputs.images.tensor_split([number_of_channels(trainer.dataset_json)], dim=1)
    return replace(inputs, images_b=torch.cat((perturbed(scan, strength), previous_stage), dim=1))
