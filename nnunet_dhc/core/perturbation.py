# SPDX-License-Identifier: Apache-2.0
"""Random changes of intensity, so that two networks see the same patch differently."""

from __future__ import annotations

import torch
from torch import Tensor


def perturbed(images: Tensor, strength: float) -> Tensor:
    """Patches with another gain and offset in each channel, and noise in each voxel.

    x' = exp(s g) x + s (o + n),  g, o ~ N(0, 1) per patch and channel,  n ~ N(0, 1) per voxel and channel

    Args:
        images: Patches, shape (b, c, *spatial), floating point, in standard deviations of the normalised intensities.
        strength: s >= 0.

    Returns:
        As ``images``; torch's global generator of their device draws.
    """
    per_channel = (*images.shape[:2], *(1 for _ in images.shape[2:]))
    gain, offset = (torch.randn(per_channel, dtype=images.dtype, device=images.device) for _ in range(2))
    return torch.exp(strength * gain) * images + strength * (offset + torch.randn_like(images))
