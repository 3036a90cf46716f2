# SPDX-License-Identifier: Apache-2.0
"""Sums over the processes of a distributed run; without one, the value itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    """Processes in the run, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def sum_across_ranks(value: Tensor) -> Tensor:
    """Sum over all ranks, without gradient: for counts, which all ranks must agree on before weights are made.

    Args:
        value: Any shape, the same on all ranks, any dtype that the backend adds.

    Returns:
        The sum, a new tensor of the same shape, dtype and device.
    """
    total = value.detach().clone()
    if num_ranks() > 1:
        dist.all_reduce(total)
    return total


class _DifferentiableSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return sum_across_ranks(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_across_ranks(gradient)


def differentiable_sum_across_ranks(value: Tensor) -> Tensor:
    """Sum over all ranks; the gradient of each rank's value is the sum of all ranks' gradients.

    Where every rank makes the same loss from the sum, the averaging of DistributedDataParallel then gives the gradient
    of that loss.

    Args:
        value: Any shape, the same on all ranks, floating.

    Returns:
        The sum, same shape, dtype and device.
    """
    if num_ranks() == 1:
        return value
    result: Tensor = _DifferentiableSum.apply(value)
    return result
