# SPDX-License-Identifier: Apache-2.0
"""Normal or low-memory steps: what the user asked for, or what the device's memory holds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from nnunetv2.utilities.helpers import empty_cache
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.reliability.compile_fallback import may_fall_back, run_eager
from nnunet_dhc.nnunet.reliability.device_errors import is_device_lost, is_out_of_memory
from nnunet_dhc.nnunet.training.low_memory_step import low_memory_step
from nnunet_dhc.nnunet.training.pasted_patches import mixed_with_labeled
from nnunet_dhc.nnunet.training.whole_step import StepInputs, StepOutcome, WeightingStates, weighting_states, whole_step

if TYPE_CHECKING:
    from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer


class StepMode:
    """Runs the steps of a training up to the gradients.

    With "auto" and "on" a step that does not fit into the device's memory is done again with less at a time: first in
    the low-memory mode, with the labeled and the unlabeled patches each together, then with half as many patches, and
    so on down to one. "on" begins in the low-memory mode. Under DDP the mode stays what it is at the start, because the
    ranks would have to change together.

    Where torch.compile fails, it does so at the first call: a first step that fails is done again without it, whatever
    has failed, because the backward pass of a compiled network doesn't say where an error comes from.

    Args:
        setting: "auto", "on" or "off".
        trainer: After ``initialize``.

    Raises:
        NotImplementedError: "on" with networks whose batch normalization couples the patches.
    """

    def __init__(self, setting: str, trainer: PairTrainer) -> None:
        couples_patches = any(isinstance(module, _BatchNorm) for module in trainer.pair.modules())
        if setting == "on" and couples_patches:
            raise NotImplementedError(
                "low_memory=on needs networks without batch normalization, which couples the patches; use nnU-Net's "
                "instance normalization, or a smaller batch_size or patch_size in the plans"
            )
        self._adapts = setting != "off" and not couples_patches and not trainer.is_ddp
        self._in_halves = trainer.device.type == "cpu" and not couples_patches and not trainer.is_ddp
        self.patches_at_once: int | None = trainer.batch_size if setting == "on" else None
        self._is_first = True

    @property
    def name(self) -> str:
        """For the log: "normal", or "low memory" and the number of patches at once."""
        if self.patches_at_once is None:
            return "normal"
        return f"low memory, {self.patches_at_once} patch{'es' if self.patches_at_once > 1 else ''} at once"

    def gradients(self, trainer: PairTrainer, inputs: StepInputs) -> StepOutcome:
        """The losses of a step, with their gradients added to those in the parameters."""
        is_first, self._is_first = self._is_first, False
        before = weighting_states(trainer)
        if not (is_first and may_fall_back(trainer)):
            return self._adapted_gradients(trainer, inputs, before)
        try:
            return self._adapted_gradients(trainer, inputs, before)
        except Exception as error:
            if isinstance(error, UserError) or is_out_of_memory(error) or is_device_lost(error):
                raise
            run_eager(trainer, error)
        start_anew(trainer, before)
        return self._adapted_gradients(trainer, inputs, before)

    def _adapted_gradients(self, trainer: PairTrainer, inputs: StepInputs, before: WeightingStates) -> StepOutcome:
        while True:
            try:
                mixed = inputs
                if inputs.paste_masks is not None:
                    mixed = mixed_with_labeled(trainer, inputs, self.patches_at_once)
                if self.patches_at_once is None:
                    outcome = whole_step(trainer, mixed, before, self._in_halves)
                else:
                    outcome = low_memory_step(trainer, mixed, before, self.patches_at_once)
                return outcome if mixed.pseudo_counts is None else replace(outcome, counts=mixed.pseudo_counts)
            except RuntimeError as error:
                if not (self._adapts and is_out_of_memory(error)) or self.patches_at_once == 1:
                    raise
            # here the error is gone, and with it the tensors of its frames
            start_anew(trainer, before)
            was, self.patches_at_once = self.name, self._fewer_patches(trainer.batch_size)
            trainer.print_to_log_file(
                f"A step ({was}) does not fit into the memory of the device: going on in the mode {self.name}. The "
                "result is the same, a step takes a quarter to a half longer. To start in this mode: low_memory=on"
            )

    def _fewer_patches(self, batch_size: int) -> int:
        return batch_size if self.patches_at_once is None else max(1, self.patches_at_once // 2)


def start_anew(trainer: PairTrainer, before: WeightingStates) -> None:
    """Undo what a step that failed has left."""
    trainer.optimizer.zero_grad(set_to_none=True)
    for weighting, state in zip(trainer.objective.weightings, before, strict=True):
        weighting.load_state_dict(state)
    empty_cache(trainer.device)
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)  # that of the steps that fit is what a user wants to know
