# SPDX-License-Identifier: Apache-2.0
"""Clocks around the parts of a training step, put in from outside so that the step itself stays what it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch


class PartTimer:
    """Adds the seconds of each part of `trainer.train_step` to `seconds`; `remove` takes the clocks out again.

    Args:
        trainer: A trainer of a pair.
        clock: With `start()` and `stop() -> (seconds, ...)`.
    """

    def __init__(self, trainer: Any, clock: Any) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._running: str | None = None
        self._undo: list[Callable[[], None]] = []
        pair, objective = trainer.pair, trainer.objective
        for part, module in (("forward A", pair.sub_network_a), ("forward B", pair.sub_network_b)):
            self._around(module, "forward", part)
        for name, part in (
            ("pseudo_labels", "pseudo labels"), ("update_weights", "class weights"),
            ("update_weights_of", "class weights"), ("terms", "losses"), ("sums", "losses"), ("losses", "losses"),
            ("losses_of", "losses"), ("peer_target", "losses"),
        ):
            self._around(objective, name, part)
        self._around(objective.labels, "pseudo_label", "pseudo labels")
        self._around(trainer.optimizer_step, "clip_gradients", "clip")
        self._around(trainer.optimizer, "step", "optimizer")
        self._around(torch.Tensor, "backward", "backward")
        self._around(torch.autograd, "backward", "backward")
        self._around(torch.Tensor, "to", "transfer", when=_is_transfer)

    def remove(self) -> None:
        for undo in reversed(self._undo):
            undo()

    def _around(
        self, owner: Any, name: str, part: str, when: Callable[..., bool] = lambda *args, **kwargs: True
    ) -> None:
        function = getattr(owner, name)
        was_own = name in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._running is not None or not when(*args, **kwargs):  # parts inside of a part belong to it
                return function(*args, **kwargs)
            self._running = part
            self._clock.start()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += self._clock.stop()[0]
                self._running = None

        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, function) if was_own else delattr(owner, name))


def _is_transfer(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> bool:
    return bool(args) and isinstance(args[0], torch.device) and tensor.device != args[0]
