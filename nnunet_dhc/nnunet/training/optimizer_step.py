# SPDX-License-Identifier: Apache-2.0
"""From the gradients of a step to changed parameters: clipping, mixed precision, and steps that must not count."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.training.whole_step import StepOutcome

if TYPE_CHECKING:
    from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer

GRADIENT_NORM_LIMIT = 12  # nnU-Net's, here for each sub-network by itself
STEPS_TO_FIND_A_SCALE = 25  # torch's gradient scaler begins at 2^16 and halves; below 2^-9 no gradient of 1 overflows


class Ending(Enum):
    """How a step ended.

    Class weights go back only where the loss is not finite: behind a finite one their counts are sound.
    """

    STEPPED = "the parameters have changed"
    OVERFLOWED = "the loss is finite, but a gradient left the range of half precision; the scaler halves its scale"
    SKIPPED = "the loss is not finite on some rank, or a gradient isn't in full precision; nothing has changed"


class StepTaken(NamedTuple):
    """What the host knows of a step.

    Attributes:
        losses: In the order of ``LOSS_TERMS``, float64.
        empty_cross_entropies: Of this step.
        ending: How it ended.
    """

    losses: np.ndarray
    empty_cross_entropies: float
    ending: Ending


class OptimizerStep:
    """Takes the steps of a training, each from the gradients that lie in the parameters.

    Args:
        trainer: Its optimizer, gradient scaler and networks are those of the time of a step.
    """

    def __init__(self, trainer: PairTrainer) -> None:
        self._trainer = trainer
        self._without_change = 0

    def take(self, outcome: StepOutcome) -> StepTaken:
        """Clip, step both networks or neither, and keep the average of their weights up to date."""
        trainer = self._trainer
        *losses, empty, norm, non_finite = self._read(outcome, self.clip_gradients())
        loss_is_finite = non_finite == 0
        ending = self._ending(loss_is_finite, bool(np.isfinite(norm)))
        if trainer.grad_scaler is not None:
            if loss_is_finite:
                trainer.grad_scaler.step(trainer.optimizer)  # skips both networks when any gradient is not finite
            trainer.grad_scaler.update()
        elif ending is Ending.STEPPED:
            trainer.optimizer.step()
        if trainer.averaged_pair is not None and ending is Ending.STEPPED:
            trainer.averaged_pair.update(trainer.pair)
        self._without_change = 0 if ending is Ending.STEPPED else self._without_change + 1
        return StepTaken(np.asarray(losses, dtype=np.float64), empty, ending)

    def clip_gradients(self) -> Tensor:
        """Clip the gradient of each sub-network by itself; the norms before, (2,)."""
        trainer = self._trainer
        if trainer.grad_scaler is not None:
            trainer.grad_scaler.unscale_(trainer.optimizer)
        networks = trainer.pair.sub_networks
        return torch.stack([nn.utils.clip_grad_norm_(each.parameters(), GRADIENT_NORM_LIMIT) for each in networks])

    def stop_if_nothing_changes(self, cases: Iterable[str]) -> None:
        """End a training whose newest steps have all changed nothing.

        Args:
            cases: Of the patches of the newest step, for the message.

        Raises:
            UserError: These are as many steps as the recipe allows.
        """
        trainer = self._trainer
        limit = trainer.recipe.max_non_finite_steps
        if trainer.grad_scaler is not None:
            limit = max(limit, STEPS_TO_FIND_A_SCALE)
        if self._without_change >= limit:
            kept = f"the last good checkpoint is in {trainer.output_folder}"
            raise UserError(
                f"the loss or its gradient was not finite in {self._without_change} steps in a row (last cases: "
                f"{', '.join(cases)}); {kept if trainer.can_be_continued else 'no checkpoint was written'}. Check "
                f"these images, and settings that were changed; then continue with: {trainer.resume_command}"
            )

    def _ending(self, loss_is_finite: bool, gradient_is_finite: bool) -> Ending:
        if loss_is_finite and gradient_is_finite:
            return Ending.STEPPED
        return Ending.OVERFLOWED if loss_is_finite and self._trainer.grad_scaler is not None else Ending.SKIPPED

    @staticmethod
    def _read(outcome: StepOutcome, norms: Tensor) -> np.ndarray:
        """Everything that the host needs of a step, in the one place where it waits for the device."""
        terms = outcome.terms
        of_terms = (terms.supervised_a, terms.supervised_b, terms.unsupervised_a, terms.unsupervised_b)
        values = [outcome.total, *of_terms, terms.empty_cross_entropies, norms.sum(), outcome.non_finite.float()]
        return torch.stack(values).detach().cpu().numpy()
