# SPDX-License-Identifier: Apache-2.0
"""Random numbers: the seed switch, off by default, because nnU-Net seeds nothing, and those of data workers."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

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
    if not value.isdecimal():
        raise UserError(f"{VARIABLE}={value!r} is no whole number >= 0; correct or unset it")
    return int(value)


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and torch with a sequence of numbers (seed, epoch, rank ...)."""
    state = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


class SeedOncePerWorker(BasicTransform):
    """Give each data worker a state of torch's generator of its own; changes no image.

    batchgenerators seeds NumPy in a worker and leaves torch's generator as the fork copied it. batchgeneratorsv2 asks
    torch whether to apply a transform and which axes to mirror, so all forked workers, those of the unlabeled patches
    too, would decide alike for their first patch, their second, and so on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def apply(self, data_dict: dict, **_: Any) -> dict:
        if os.getpid() != self._process:
            torch.default_generator.seed()  # torch.seed would also seed the GPU, which a forked process must not touch
            self._process = os.getpid()
        return data_dict


@contextmanager
def seeded_workers(trainer: Any) -> Iterator[None]:
    """Let the training transforms that a trainer makes meanwhile begin with `SeedOncePerWorker`."""
    make_transforms = trainer.get_training_transforms

    def make_seeded(*args: Any, **kwargs: Any) -> ComposeTransforms:
        return ComposeTransforms([SeedOncePerWorker(), make_transforms(*args, **kwargs)])

    trainer.get_training_transforms = make_seeded
    try:
        yield
    finally:
        del trainer.get_training_transforms
