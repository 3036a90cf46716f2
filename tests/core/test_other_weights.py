# SPDX-License-Identifier: Apache-2.0
"""CReST, SimiS and CLD."""

from __future__ import annotations

import pytest
import torch
from golden import assert_golden

from nnunet_dhc.core import CLD, CReST, SimiS
from nnunet_dhc.core.cld_weights import cld_sampling_rates, cld_weights
from nnunet_dhc.core.crest_weights import crest_weights
from nnunet_dhc.core.simis_weights import share_gap_weights

LABELED = (1000, 100, 10, 1)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((1000, 100, 10, 1), (0.1, 0.2154435, 0.4641589, 1)),
        ((1000, 100, 100, 10), (0.2154435, 0.4641589, 0.4641589, 1)),
        ((1000, 100, 0, 0), (2.154435e-4, 2.154435e-4, 0.4641589, 1)),
        ((1111, 0, 0, 0), (2.08e-4, 2.08e-4, 2.08e-4, 1)),  # printed with 3 digits
    ],
)
def test_crest_released(counts: tuple[int, ...], expected: tuple[float, ...]) -> None:
    assert_golden(crest_weights(torch.tensor(counts), "released"), expected, atol=1e-7)


@pytest.mark.parametrize("weighting", [CReST(4), SimiS(4)], ids=["crest", "simis"])
def test_counts_of_nothing_leave_the_weights(weighting: CReST | SimiS) -> None:
    before = weighting.initialize(torch.tensor(LABELED)).clone()
    assert torch.equal(weighting.update(torch.zeros(4)), before)


def test_crest_sequence() -> None:
    for mode in ("released", "robust"):
        weighting = CReST(4, mode=mode)  # type: ignore[arg-type]
        assert_golden(weighting.initialize(torch.tensor(LABELED)), (0.1, 0.2154435, 0.4641589, 1))
        assert_golden(weighting.update(torch.tensor((1000, 10, 100, 1))), (0.1, 0.2179306, 0.4616717, 1))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # by hand: ratios (1, .464, .1, .1) reversed to (.1, .1, .464, 1); the tied classes share (.464 + 1) / 2
        ((1000, 100, 0, 0), (0.1, 0.1, 0.7320794, 0.7320794)),
        # ratios (1, x, x, x), x = 1111^(-1/3), reversed to (x, x, x, 1); three tied
        ((1111, 0, 0, 0), (0.0965534, *[(2 * 0.0965534 + 1) / 3] * 3)),
        ((250, 250, 250, 250), (1, 1, 1, 1)),
        ((0, 0, 0, 0), (1, 1, 1, 1)),
    ],
)
def test_crest_robust_gives_equal_classes_equal_weights(
    counts: tuple[int, ...], expected: tuple[float, ...]
) -> None:
    assert_golden(crest_weights(torch.tensor(counts)), expected)


@pytest.mark.parametrize("mode", ["released", "robust"])
def test_simis_sequence(mode: str) -> None:
    weighting = SimiS(4, mode=mode)  # type: ignore[arg-type]
    assert_golden(weighting.initialize(torch.tensor(LABELED)), (3.96, 3.9924033, 3.9956436, 3.9959676))
    counts = torch.tensor((1000, 10, 100, 1))
    assert_golden(4 * share_gap_weights(counts), (0, 3.5643566, 3.2403240, 3.5967598))
    assert_golden(weighting.update(counts), (3.9204001, 3.9881230, 3.9880905, 3.9919755))
    # initializing again starts over
    assert_golden(weighting.initialize(torch.tensor(LABELED)), (3.96, 3.9924033, 3.9956436, 3.9959676))


def test_simis_equal_counts() -> None:
    equal = torch.full((4,), 250)
    assert_golden(share_gap_weights(equal), (0, 0, 0, 0), atol=0)
    robust, released = SimiS(4), SimiS(4, mode="released")
    for weighting in (robust, released):
        weighting.initialize(torch.tensor(LABELED))
    before = robust.weights.clone()
    for counts in (equal, torch.zeros(4)):
        torch.testing.assert_close(robust.update(counts), before, rtol=0, atol=0)
    torch.testing.assert_close(released.update(equal), 0.99 * before)


def test_cld_weights() -> None:
    assert_golden(cld_weights(torch.tensor(LABELED), "released"), (1, 2.1544347, 4.6415888, 10))
    weighting = CLD(4)
    assert_golden(weighting.initialize(torch.tensor(LABELED)), (1, 2.1544347, 4.6415888, 10))
    assert_golden(weighting.update(), (1, 2.1544347, 4.6415888, 10))


def test_cld_class_without_labeled_voxels() -> None:
    counts = torch.tensor((1_000_000_000, 100, 0))
    assert cld_weights(counts, "released")[2].isinf()
    assert_golden(cld_weights(counts), (1, 100, 100))  # the bound; 1e7^(1/3) and 1e9^(1/3) without it
    assert_golden(cld_weights(counts, max_weight=20.0), (1, 20, 20))
    with pytest.raises(ValueError, match="max_weight"):
        CLD(3, max_weight=0.5)


def test_cld_sampling_rates() -> None:
    assert_golden(cld_sampling_rates(torch.tensor((0.99, 0.8, 0.5, 0.0))), (0.1, 0.4472136, 0.7071068, 1))
    assert_golden(cld_sampling_rates(torch.ones(3)), (0, 0, 0))
