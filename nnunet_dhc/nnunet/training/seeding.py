# SPDX-License-Identifier: Apache-2.0
"""The seed switch: an environment variable, off by default, because nnU-Net seeds nothing."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from nnunet_dhc.errors import UserError

VARIABLE = "nnUNet_dhc_seed"


def requested_seed() -> int | None:
    """Seed that the user has asked for, None when the switch is off.

    Raises:
        UserError: The variable is set to something that is no whole number >= 0.
    """
    value = os.environ.get(VARIABLE, "")
    if not value:
        return None
    if not value.isdigit():
        raise UserError(f"{VARIABLE}={value!r} is no whole number >= 0; correct or unset it")
    return int(value)


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and torch with a sequence of numbers (seed, epoch, rank ...)."""
    state = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
