# SPDX-License-Identifier: Apache-2.0
"""Sub-networks A and B as one module, so that saving, loading, DDP, compile and prediction stay on nnU-Net's code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_dhc.core.votes import combined_logits

_ONEDNN_BLOCK_CHANNELS = 16
_MOST_GRAPHS = 64  # both, a and b, each with and without gradients, for ten sizes of batch, and the mean
Output = Literal["mean", "both", "a", "b"]
Logits = Tensor | list[Tensor]


class CoTrainedPair(nn.Module):
    """Two sub-networks that see the same patches.

    ``output`` says what ``forward`` gives; it is an explicit switch because validation and prediction both put the
    module into evaluation mode and need different outputs:

    - ``"mean"`` (default, what nnU-Net's predictor gets): the mean of the logits of A and B, but for classes from which
      one of them abstains,
    - ``"both"``: the tuple (logits of A, logits of B),
    - ``"a"``, ``"b"``: one sub-network alone.

    Logits have shape (b, k, *spatial); with deep supervision they are a list, full resolution first.

    Attributes:
        votes: From `core.votes.votes_of`; None where both vote on every class. Only where it isn't None is it a part of
            the state dict, so that checkpoints without it are read as before.
    """

    votes: Tensor | None

    def __init__(self, sub_network_a: nn.Module, sub_network_b: nn.Module) -> None:
        super().__init__()
        self.sub_network_a = sub_network_a
        self.sub_network_b = sub_network_b
        self.output: Output = "mean"
        self.register_buffer("votes", None)

    @property
    def sub_networks(self) -> tuple[nn.Module, nn.Module]:
        return self.sub_network_a, self.sub_network_b

    def forward(self, images: Tensor) -> Logits | tuple[Logits, Logits]:
        if self.output == "a":
            return self.sub_network_a(images)
        if self.output == "b":
            return self.sub_network_b(images)
        logits_a, logits_b = self.sub_network_a(images), self.sub_network_b(images)
        return (logits_a, logits_b) if self.output == "both" else self.combined(logits_a, logits_b)

    def combined(self, logits_a: Logits, logits_b: Logits) -> Logits:
        """What the pair says, from what its sub-networks say."""
        if isinstance(logits_a, (list, tuple)):
            return [self.combined(a, b) for a, b in zip(logits_a, logits_b, strict=True)]
        return combined_logits(logits_a, logits_b, self.votes)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        saved = state_dict.get(f"{prefix}votes")
        self.votes = None if saved is None else torch.empty_like(saved, device=next(self.parameters()).device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @contextmanager
    def giving(self, output: Output) -> Iterator[None]:
        """Give another output inside a ``with`` block."""
        previous, self.output = self.output, output
        try:
            yield
        finally:
            self.output = previous


def unwrapped(network: nn.Module) -> CoTrainedPair:
    """The pair inside nnU-Net's DDP and compile wrappers."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


def allow_graphs_of_all_outputs() -> None:
    """Let torch.compile make a graph of its own for every output and size of batch of the pair.

    Dynamo's limit is 8 graphs. The low-memory mode needs more on its way down to one patch at once, and what comes
    after the limit runs uncompiled, with a warning alone. At a second size Dynamo would make a graph for any size, for
    which inductor leaves the layout of convolutions as it is on a GPU (``decide_layout_opt``); stock nnU-Net, whose
    batches have one size, never gets there.
    """
    config = torch._dynamo.config
    config.automatic_dynamic_shapes = False
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch 2.5
    setattr(config, limit, max(getattr(config, limit), _MOST_GRAPHS))


def store_channels_last(network: nn.Module) -> bool:
    """Keep the weights of a narrow 3D network with the channels last, and oneDNN its activations; whether it is narrow.

    Only the order in memory changes. oneDNN's own order on a CPU holds blocks of 16 channels. A first stage of 8
    feature maps fills half of one, and the channels last save a third of a training step; from 16 on they save
    nothing (docs/results/step_cost.md).
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    widths = [module.out_channels for module in convolutions if max(module.kernel_size) > 1]
    if not widths or min(widths) >= _ONEDNN_BLOCK_CHANNELS:
        return False
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            module.to(memory_format=torch.channels_last_3d)
    return True


def initialize_convolutions(network: nn.Module, scheme: Literal["kaiming", "xavier"]) -> None:
    """Draw the weights of all convolutions anew (transposed ones and biases keep what they have, as in DHC's code)."""
    draw = nn.init.kaiming_normal_ if scheme == "kaiming" else nn.init.xavier_normal_
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            draw(module.weight)


def initialize_sub_networks(pair: CoTrainedPair, scheme_a: str, scheme_b: str) -> None:
    """Apply ``initialize_convolutions`` where a scheme is not ``"plans"``; all ranks start with rank 0's draw."""
    for network, scheme in zip(pair.sub_networks, (scheme_a, scheme_b), strict=True):
        if scheme != "plans":
            initialize_convolutions(network, scheme)
            if dist.is_available() and dist.is_initialized():
                for parameter in network.parameters():
                    dist.broadcast(parameter.data, 0)
