# SPDX-License-Identifier: Apache-2.0
"""A second pair whose weights follow those of the trained one slowly: a steadier maker of pseudo labels."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nnunet_dhc.nnunet.network.cotrained_pair import CoTrainedPair


class AveragedPair:
    """Moving average of the weights of both sub-networks, W <- m W + (1 - m) w after each step.

    It begins with the weights of the pair as they are, and takes no gradient. All ranks of DDP have the same weights
    and so the same average.

    Args:
        pair: The pair in training.
        momentum: m, in (0, 1).

    Source: the mean teacher of Tarvainen and Valpola (NeurIPS 2017), here of two networks.
    """

    def __init__(self, pair: CoTrainedPair, momentum: float) -> None:
        self.pair = deepcopy(pair).requires_grad_(False)
        self.pair.votes = None  # A and B teach each other, each alone
        self._average = get_ema_multi_avg_fn(momentum)

    @torch.no_grad()
    def update(self, pair: CoTrainedPair) -> None:
        """Follow the weights of the pair after a step; what is no weight (running statistics) is copied."""
        self._average(list(self.pair.parameters()), list(pair.parameters()), None)
        for average, network in zip(self.pair.sub_networks, pair.sub_networks, strict=True):
            for mine, trained in zip(average.buffers(), network.buffers(), strict=True):
                mine.copy_(trained)

    def state_dict(self) -> dict[str, Tensor]:
        return self.pair.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.pair.load_state_dict(state)
