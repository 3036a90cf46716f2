# SPDX-License-Identifier: Apache-2.0
"""The option -device of the verbs that run networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def chosen_device(name: str | None) -> torch.device:
    """The device of that name; without one, CUDA if it is there and else the CPU."""
    import torch

    from nnunet_dhc.nnunet.reliability.device_errors import require_device

    return require_device(torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu")))
