# SPDX-License-Identifier: Apache-2.0
"""A device that is missing, lost, or whose memory is full, and how errors say so."""

from __future__ import annotations

import torch

from nnunet_dhc.errors import UserError

# Not every backend has a class for it. cuDNN, where it looks for the fastest algorithm, passes over those whose
# workspace doesn't fit, and then says that it has found no engine; cuBLAS and cuDNN handles say ALLOC_FAILED. On a CPU
# only a limit of the process is an error, DefaultCPUAllocator's; a full machine kills the process.
_SIGNS = ("out of memory", "unable to find an engine", "alloc_failed", "defaultcpuallocator")


def require_device(device: torch.device) -> torch.device:
    """The device itself.

    Raises:
        UserError: torch sees no such device.
    """
    is_there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device.type in is_there and not is_there[device.type]():
        raise UserError(
            f"-device {device.type}: torch sees no such device; use another one (-device cpu), or see "
            "nnunet_dhc doctor"
        )
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says, or most likely means, that the device's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def is_device_lost(error: BaseException) -> bool:
    """Whether an error is one of CUDA itself, after which no call succeeds in this process."""
    return str(error).startswith("CUDA error")
