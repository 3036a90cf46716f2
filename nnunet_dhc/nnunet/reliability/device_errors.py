# SPDX-License-Identifier: Apache-2.0
"""A device whose memory is full, or that is lost, and how errors say so."""

from __future__ import annotations

import torch

# Not every backend has a class for it. cuDNN, where it looks for the fastest algorithm, passes over those whose
# workspace doesn't fit, and then says that it has found no engine; cuBLAS and cuDNN handles say ALLOC_FAILED.
_SIGNS = ("out of memory", "unable to find an engine", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says, or most likely means, that the device's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def is_device_lost(error: BaseException) -> bool:
    """Whether an error is one of CUDA itself, after which no call succeeds in this process."""
    return str(error).startswith("CUDA error")
