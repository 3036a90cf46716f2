# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds beside nnU-Net's own content, so that a run goes on as if it had never stopped."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnunet_dhc.core.class_weighting import ClassWeighting
from nnunet_dhc.nnunet.training.checkpoint import STATE_KEY, read_checkpoint
from nnunet_dhc.nnunet.training.recipe import Recipe

if TYPE_CHECKING:
    from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer


@dataclass(frozen=True)
class PairState:
    """State of a pair in training; all of it loads with ``weights_only=True``.

    Attributes:
        weighting_a, weighting_b: States of the class weightings.
        monitor: State of the alarms.
        averaged_pair: Averaged weights of both sub-networks; None where nothing is averaged.
        recipe: Every setting, as `Recipe.to_json` writes it.
        data: `TrainingData.fingerprint`.
        class_names: Of the k classes, background first.
        decided_by_labels: Settings of the recipe that it leaves to the labels, and what these decided.
    """

    weighting_a: dict[str, Any]
    weighting_b: dict[str, Any]
    monitor: dict[str, Any]
    averaged_pair: dict[str, Tensor] | None
    recipe: dict[str, Any]
    data: dict[str, str]
    class_names: list[str]
    decided_by_labels: dict[str, Any]

    @classmethod
    def of(cls, trainer: PairTrainer) -> PairState:
        """That of a trainer between two steps."""
        of_a, of_b = trainer.objective.weightings
        return cls(
            weighting_a=of_a.state_dict(),
            weighting_b=of_b.state_dict(),
            monitor=trainer.monitor.state_dict(),
            averaged_pair=None if trainer.averaged_pair is None else trainer.averaged_pair.state_dict(),
            recipe=trainer.recipe.to_json(),
            data=trainer.data.fingerprint,
            class_names=trainer.class_names,
            decided_by_labels={name: getattr(trainer.recipe, name) for name in trainer.settings_of_labels},
        )

    @classmethod
    def read(cls, filename: str, trainer_name: str) -> PairState:
        """That of a checkpoint, which may be replaced afterwards.

        Raises:
            UserError: See `read_checkpoint`.
        """
        saved = read_checkpoint(filename, trainer_name)[STATE_KEY]
        complete = {"averaged_pair": None, "class_names": [], "decided_by_labels": _decided_earlier(saved), **saved}
        return cls(**copy.deepcopy({field.name: complete[field.name] for field in fields(cls)}))

    def content(self) -> dict[str, Any]:
        """What `read` reads; the tensors are no copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def restore_weightings(self, recipe: Recipe, weighting_a: ClassWeighting, weighting_b: ClassWeighting) -> None:
        """Let class weightings go on where these were.

        Raises:
            ValueError: These are of another kind or number of classes.
        """
        for name, weighting in (("weighting_a", weighting_a), ("weighting_b", weighting_b)):
            before, now = self.recipe.get(name), getattr(recipe, name)
            if before not in (None, now):  # several weightings have states of the same form
                raise ValueError(f"{name} was {before} and is {now}")
            weighting.load_state_dict(getattr(self, name))


def _decided_earlier(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What the labels decided in a checkpoint that doesn't list it: at most the exponent."""
    decided: dict[str, Any] = {"background_weight": None}
    if saved.get("labels_decide_exponent", True) and "weight_exponent_final" in saved["recipe"]:
        decided["weight_exponent_final"] = saved["recipe"]["weight_exponent_final"]
    return decided
