# SPDX-License-Identifier: Apache-2.0
"""How golden values are compared, and the six voxels that several tests share.

Golden values come from two independent computations: the stated formulas in float64 NumPy, and the functions of
xmed-lab/DHC@b3dee97 run in float32 on the CPU with their device calls removed; the two agree to 2e-6 relative. Where a
value has another origin, the test says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RELATIVE_TOLERANCE = 1e-5  # float32 state against goldens with 6-7 digits


def assert_golden(actual: Tensor, expected: Sequence[float] | float, atol: float = 2e-6) -> None:
    """atol: the goldens are printed with 6 decimals."""
    torch.testing.assert_close(
        actual.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=RELATIVE_TOLERANCE, atol=atol
    )


def logits_of(voxels: Sequence[Sequence[float]]) -> Tensor:
    """One logit vector per voxel -> (1, k, voxels, 1, 1)."""
    return torch.tensor(voxels, dtype=torch.float32).T.reshape(1, len(voxels[0]), len(voxels), 1, 1).contiguous()


def labels_of(classes: Sequence[int]) -> Tensor:
    """One class per voxel -> (1, 1, voxels, 1, 1)."""
    return torch.tensor(classes, dtype=torch.int64).reshape(1, 1, len(classes), 1, 1)
