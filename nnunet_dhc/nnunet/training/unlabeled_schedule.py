# SPDX-License-Identifier: Apache-2.0
"""When steps draw unlabeled patches, and what these weigh."""

from __future__ import annotations

import math

from nnunet_dhc.core.rampup import gaussian_rampup
from nnunet_dhc.nnunet.training.recipe import Recipe


def lambda_and_rate(recipe: Recipe, epoch: int, num_epochs: int, steps_per_epoch: int) -> tuple[float, float]:
    """Lambda of an epoch and the part of its steps that draw unlabeled patches, whole steps and at least one."""
    ramp = 1.0
    if recipe.ramp_length > 0:
        ramp = gaussian_rampup(max(epoch - recipe.ramp_lag_epochs, 0) / (recipe.ramp_length * num_epochs))
    rate = max(ramp, recipe.unlabeled_minimum_rate) if recipe.unlabeled_schedule == "ramp" else 1.0
    return recipe.lambda_max * ramp, math.ceil(rate * steps_per_epoch - 1e-9) / steps_per_epoch


def draws_unlabeled(step: int, rate: float) -> bool:
    """Whether a step of an epoch draws unlabeled patches: at even distances, from the first step on."""
    return math.ceil((step + 1) * rate - 1e-9) > math.ceil(step * rate - 1e-9)
