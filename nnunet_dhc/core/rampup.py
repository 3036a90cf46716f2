# SPDX-License-Identifier: Apache-2.0
"""How the weight of the unsupervised loss grows."""

from __future__ import annotations

import math


def gaussian_rampup(progress: float) -> float:
    """Rise from 0.0067 to 1 along a Gaussian.

    r = exp(-5 * (1 - clip(progress, 0, 1))^2)

    Args:
        progress: epoch / ramp length in epochs; clipped to [0, 1].

    Returns:
        Factor on lambda_max, in [exp(-5), 1].

    Source: Laine and Aila (ICLR 2017); DHC (MICCAI 2023) section 2.
    Deviations: none.
    """
    return math.exp(-5.0 * (1.0 - min(max(progress, 0.0), 1.0)) ** 2)
