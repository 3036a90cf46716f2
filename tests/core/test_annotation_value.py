# SPDX-License-Identifier: Apache-2.0
"""Value of labeling a scan: counts by hand, empty structures, equal weight of classes, diversity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnunet_dhc.core import annotation_value
from nnunet_dhc.core.annotation_value import (
    annotation_order,
    case_scores,
    class_values,
    count_pair,
    feature_vectors,
)


def logits_of(labels: list[int], k: int = 3, size: float = 40.0) -> torch.Tensor:
    """Logits so large that the softmax is one-hot."""
    return size * torch.nn.functional.one_hot(torch.tensor(labels), k).T.float()


def test_counts_by_hand():
    # A: class 1 at voxels 0 1 2, class 2 at 4. B: class 1 at 1 2 3, class 2 nowhere.
    counts = count_pair(logits_of([1, 1, 1, 0, 2, 0]), logits_of([0, 1, 1, 1, 0, 0]))
    assert counts.predicted_a.tolist() == [3, 1]
    assert counts.predicted_b.tolist() == [3, 0]
    assert counts.overlap.tolist() == [2, 0]
    assert counts.union.tolist() == [4, 1]
    np.testing.assert_allclose(counts.disagreement(), [1 - 4 / 6, 1.0])
    # Where they differ, p is 1/2 and 1/2 (entropy ln 2); where they agree it is 0. Class 1: 2 of 4 voxels differ.
    np.testing.assert_allclose(counts.mean_entropy(), [0.5 * math.log(2) / math.log(3), math.log(2) / math.log(3)],
                               rtol=1e-6)


def test_uniform_prediction_has_entropy_one():
    flat = torch.zeros(4, 5)
    flat[1] += 1e-6  # class 1 wins everywhere
    counts = count_pair(flat, flat)
    np.testing.assert_allclose(counts.mean_entropy(), [1.0, np.nan, np.nan], rtol=1e-6)


def test_same_networks_do_not_disagree():
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 5, 4)
    counts = count_pair(logits, logits)
    np.testing.assert_array_equal(counts.disagreement(), np.zeros(3))
    assert (counts.mean_entropy() > 0).all()


@pytest.mark.parametrize("regions", [False, True])
def test_slabs_sum_to_the_whole_and_networks_may_swap(monkeypatch, regions):
    torch.manual_seed(1)
    a, b = torch.randn(2, 4, 7, 6, 5).half()
    whole, swapped = count_pair(a, b, regions), count_pair(b, a, regions)
    monkeypatch.setattr(annotation_value, "_VOXELS_AT_ONCE", 4 * 11)
    slabs = count_pair(a, b, regions)
    for name in ("predicted_a", "predicted_b", "overlap"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(slabs, name))
    np.testing.assert_allclose(whole.entropy, slabs.entropy, rtol=1e-6)
    np.testing.assert_allclose(whole.entropy, swapped.entropy, rtol=1e-6)
    np.testing.assert_array_equal(whole.disagreement(), swapped.disagreement())


def test_regions_may_overlap():
    a = torch.tensor([[40.0, 40.0, -40.0], [40.0, -40.0, -40.0]])
    b = torch.tensor([[40.0, -40.0, -40.0], [40.0, -40.0, -40.0]])
    counts = count_pair(a, b, regions=True)
    np.testing.assert_allclose(counts.disagreement(), [1 - 2 / 3, 0.0])
    # Region 0: two voxels, one with p = 1/2, whose binary entropy over ln 2 is 1.
    np.testing.assert_allclose(counts.mean_entropy(), [0.5, 0.0], atol=1e-6)


def test_regions_are_uncertain_only_where_they_are_predicted():
    logits = torch.tensor([[40.0, -0.1, -0.1]])
    np.testing.assert_allclose(count_pair(logits, logits, regions=True).mean_entropy(), [0.0], atol=1e-6)


def test_shapes_must_match():
    with pytest.raises(ValueError, match="shape"):
        count_pair(torch.zeros(2, 3), torch.zeros(2, 4))


def test_missing_structures_are_neutral_and_classes_count_the_same():
    nan = np.nan
    disagreement = np.array([[0.2, nan, nan], [0.4, 0.8, nan], [0.6, 0.4, nan]])
    values, found = class_values(disagreement, disagreement)
    assert found.tolist() == [True, True, False]
    np.testing.assert_allclose(values, [[0.2, 0.6], [0.4, 0.8], [0.6, 0.4]])
    np.testing.assert_allclose(case_scores(values), [0.4, 0.6, 0.5])


def test_nothing_found_anywhere():
    values, found = class_values(np.full((2, 3), np.nan), np.full((2, 3), np.nan))
    assert not found.any()
    np.testing.assert_array_equal(case_scores(values), [0.0, 0.0])


def test_features_are_standardized_without_nan():
    volume = np.array([[1.0, 10.0], [1.0, 1000.0], [1.0, 0.0]])
    other = np.array([[0.1, np.nan], [0.2, 0.5], [0.3, 0.7]])
    features = feature_vectors(volume, other, other)
    assert features.shape == (3, 6)
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features[:, 0], np.zeros(3))  # does not vary
    np.testing.assert_allclose(features[:, 2].std(), 1.0)
    assert features[0, 3] == 0.0  # unknown: the mean


def test_copies_of_one_scan_are_not_taken_together():
    scores = np.array([1.0, 0.99, 0.98, 0.5, 0.0])
    features = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    order, novelty = annotation_order(scores, features, diversity=0.5)
    # By hand: after 0, gains are 0.495, 0.49, 0.25 + 0.5 = 0.75, 0.1.
    assert order == [0, 3, 1, 2, 4]
    np.testing.assert_allclose(novelty, [1.0, 1.0, 0.0, 0.0, 0.2])


def test_diversity_zero_is_the_order_of_scores_and_one_is_farthest_point():
    scores = np.array([0.3, 0.9, 0.1, 0.5])
    features = np.array([[1.0], [0.0], [10.0], [5.0]])
    assert annotation_order(scores, features, 0.0)[0] == [1, 3, 0, 2]
    assert annotation_order(scores, features, 1.0)[0] == [1, 2, 3, 0]


def test_order_of_equal_scans_is_that_of_the_pool():
    order, novelty = annotation_order(np.full(3, 0.5), np.zeros((3, 2)))
    assert order == [0, 1, 2]
    assert novelty == [1.0, 0.0, 0.0]
    assert annotation_order(np.zeros(0), np.zeros((0, 2))) == ([], [])
    with pytest.raises(ValueError, match="diversity"):
        annotation_order(np.zeros(1), np.zeros((1, 1)), 1.5)


def test_volumes_count_by_their_logarithm():
    volume = np.array([[0.0], [9.0], [99.0]])  # log1p: 0, 1, 2 times ln 10
    unknown = np.full((3, 1), np.nan)
    np.testing.assert_allclose(feature_vectors(volume, unknown, unknown)[:, 0], [-(1.5**0.5), 0.0, 1.5**0.5])


@pytest.mark.parametrize("regions", [False, True])
def test_what_a_network_abstains_from_is_the_other_ones_alone(regions):
    """A abstains from the second structure: there all is that of B with itself, elsewhere as without votes."""
    torch.manual_seed(2)
    a, b = torch.randn(2, 4, 6, 5, 4)
    structures = 4 if regions else 3
    votes = torch.full((2, structures + 1), 0.5)
    votes[:, 2] = torch.tensor([0.0, 1.0])
    found, plain, of_b = count_pair(a, b, regions, votes), count_pair(a, b, regions), count_pair(b, b, regions)
    second = np.arange(structures) == 1
    np.testing.assert_array_equal(found.of_one_network, second)
    for name in ("predicted_a", "predicted_b", "overlap", "entropy"):
        expected = np.where(second, getattr(of_b, name), getattr(plain, name))
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-6)
    assert np.isnan(found.disagreement()[1]) and np.isfinite(found.disagreement()[~second]).all()
    values, known = class_values(found.disagreement()[None], found.mean_entropy()[None])
    assert known.all() and values[0, 1] == found.mean_entropy()[1]


def test_one_odd_scan_of_many_is_not_the_farthest_of_all():
    """A structure that one scan alone has would lie 14 standard deviations off among 200 scans."""
    volume = np.zeros((200, 1))
    volume[7] = 5.0
    entropy = np.linspace(0.1, 0.5, 200)[:, None]
    features = feature_vectors(volume, entropy, entropy)
    assert features[7, 0] == 3.0 and features.max() <= 3.0 and features.min() >= -3.0
    np.testing.assert_allclose(features[:, 1].std(), 1.0)
