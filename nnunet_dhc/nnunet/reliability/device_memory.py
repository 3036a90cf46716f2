# SPDX-License-Identifier: Apache-2.0
"""A device whose memory is full, and how errors say so."""

from __future__ import annotations

import torch

# Not every backend has a class for it. cuDNN, where it looks for the fastest algorithm, passes over those whose
# workspace doesn't fit, and then says that it has found no engine; cuBLAS and cuDNN handles say ALLOC_FAILED.
_SIGNS = ("out of memory", "unable to find an engine", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says, or most likely means, that the device's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in _SIGNS)
