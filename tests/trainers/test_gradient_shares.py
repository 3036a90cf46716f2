# SPDX-License-Identifier: Apache-2.0
"""The unsupervised share of the gradient at the logits, by hand and in half precision."""

from __future__ import annotations

import pytest
import torch

from nnunet_dhc.nnunet.training.gradient_shares import ShareMeasurement

SHAPE = (2, 3, 4, 4, 4)  # the first patch is labeled


def measured(networks, loss_scale: float = 1.0) -> tuple[float, float]:
    """Of networks with their (supervised, unsupervised) terms and logits, with lambda = 0.5."""
    shares = ShareMeasurement()
    for supervised, unsupervised, logits in networks:
        shares.add_network(supervised, unsupervised, 0.5, logits, 1, loss_scale)
    return shares.read()


def shares_of(dtype: torch.dtype, slope: float, loss_scale: float) -> tuple[float, float]:
    """Terms that are linear in the logits: the supervised one on the labeled patch, the other on both."""
    networks = []
    for _ in range(2):
        logits = torch.zeros(SHAPE, dtype=dtype, requires_grad=True)
        networks.append((slope * logits[:1].float().sum(), slope * logits.float().sum(), logits))
    return measured(networks, loss_scale)


@pytest.mark.parametrize(("dtype", "slope", "loss_scale"), [
    (torch.float64, 1.0, 1.0),
    (torch.float32, 1e-9, 1.0),
    (torch.float16, 2.0**-30, 2.0**16),  # below the smallest half-precision number, as with large patches
])
def test_shares_by_hand(dtype, slope, loss_scale):
    of_all, of_unlabeled = shares_of(dtype, slope, loss_scale)
    supervised, unsupervised, unlabeled = 1.0, 0.5 * 2**0.5, 0.5  # norms, in units of one patch of both networks
    assert of_all == pytest.approx(unsupervised / (supervised + unsupervised), rel=1e-5)
    assert of_unlabeled == pytest.approx(unlabeled / (supervised + unsupervised), rel=1e-5)


def test_share_of_the_unlabeled_patches_is_that_of_the_second_part_of_the_batch():
    logits = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    unsupervised = 3 * logits[:1].sum() + 4 * logits[1:].sum()
    of_all, of_unlabeled = measured([(logits[:1].sum(), unsupervised, logits)])
    assert of_all == pytest.approx(2.5 / 3.5) and of_unlabeled == pytest.approx(2 / 3.5)


def test_a_term_that_settings_empty_has_no_share():
    logits = torch.zeros(SHAPE, requires_grad=True)
    term, nothing = logits.sum(), torch.zeros(())
    assert measured([(term, nothing, logits)]) == (0, 0)
    assert measured([(nothing, term, logits)])[0] == 1


def test_nothing_is_left_without_the_scale():
    assert torch.tensor(shares_of(torch.float16, 2.0**-30, 1.0)).isnan().all()
