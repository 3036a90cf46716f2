# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from nnunet_dhc.core.rampup import gaussian_rampup


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 6.738e-4), (30, 1.742e-3), (75, 6.005e-3), (150, 2.865e-2), (225, 7.316e-2), (300, 0.1)],
)
def test_golden_values(epoch: int, expected: float) -> None:
    # the released schedule, lambda 0.1 over 300 epochs; printed with 4 digits
    assert 0.1 * gaussian_rampup(epoch / 300) == pytest.approx(expected, rel=2e-4)


def test_clipped_outside() -> None:
    assert gaussian_rampup(-1) == gaussian_rampup(0)
    assert gaussian_rampup(2) == gaussian_rampup(1) == 1
