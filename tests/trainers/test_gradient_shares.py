# SPDX-License-Identifier: Apache-2.0
"""The unsupervised share of the gradient at the logits, by hand and in half precision."""

from __future__ import annotations

import pytest
import torch

from nnunet_dhc.core.co_training import CoTrainingTerms
from nnunet_dhc.nnunet.training.gradient_shares import gradient_shares

SHAPE = (2, 3, 4, 4, 4)  # the first patch is labeled


def shares_of(dtype: torch.dtype, slope: float, loss_scale: float) -> tuple[float, float]:
    """Terms that are linear in the logits: the supervised one on the labeled patch, the other on both."""
    logits = [torch.zeros(SHAPE, dtype=dtype, requires_grad=True) for _ in range(2)]
    supervised = [slope * of_network[:1].float().sum() for of_network in logits]
    unsupervised = [slope * of_network.float().sum() for of_network in logits]
    terms = CoTrainingTerms(*supervised, *unsupervised, torch.zeros(()))
    return gradient_shares(terms, 0.5, *logits, num_labeled=1, loss_scale=loss_scale)


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


def test_a_term_that_settings_empty_has_no_share():
    logits = [torch.zeros(SHAPE, requires_grad=True) for _ in range(2)]
    term, nothing = [of_network.sum() for of_network in logits], torch.zeros(())
    assert gradient_shares(CoTrainingTerms(*term, nothing, nothing, nothing), 0.5, *logits, num_labeled=1) == (0, 0)
    assert gradient_shares(CoTrainingTerms(nothing, nothing, *term, nothing), 0.5, *logits, num_labeled=1)[0] == 1


def test_nothing_is_left_without_the_scale():
    assert torch.tensor(shares_of(torch.float16, 2.0**-30, 1.0)).isnan().all()
