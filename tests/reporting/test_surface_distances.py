# SPDX-License-Identifier: Apache-2.0
"""Surface distances against values worked by hand and against other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_dhc.reporting.surface_distances import distances_between, surface_points


def _distances(prediction, reference, spacing):
    return distances_between(surface_points(prediction, spacing), surface_points(reference, spacing))


def _mask(shape, *voxels):
    mask = np.zeros(shape, dtype=bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def test_two_voxels_two_millimeters_apart():
    # One step along an axis with a spacing of 2 mm: every distance is 2.
    found = _distances(_mask((4, 4, 4), (1, 1, 1)), _mask((4, 4, 4), (2, 1, 1)), (2.0, 1.0, 1.0))
    assert found.hd95 == 2.0
    assert found.assd == 2.0


def test_diagonal_with_anisotropic_spacing():
    # One step of 3 mm and one of 4 mm: 5 mm.
    found = _distances(_mask((4, 4, 4), (1, 1, 1)), _mask((4, 4, 4), (2, 2, 1)), (3.0, 4.0, 1.0))
    assert found.hd95 == pytest.approx(5.0)


def test_both_directions_enter_the_mean():
    # Prediction {0, 1}, reference {0} on a line of 1 mm: distances 0 and 1 one way, 0 the other; mean of three = 1/3.
    found = _distances(_mask((1, 1, 5), (0, 0, 0), (0, 0, 1)), _mask((1, 1, 5), (0, 0, 0)), (1.0, 1.0, 1.0))
    assert found.assd == pytest.approx(1 / 3)
    # Directed 95th percentiles by linear interpolation: 0.95 and 0; the larger counts.
    assert found.hd95 == pytest.approx(0.95)


def test_the_inside_is_no_surface():
    cube = np.zeros((7, 7, 7), dtype=bool)
    cube[1:6, 1:6, 1:6] = True
    assert len(surface_points(cube, (1.0, 1.0, 1.0))) == 5**3 - 3**3


def test_the_border_of_the_image_is_a_surface():
    assert len(surface_points(np.ones((3, 3, 3), dtype=bool), (1.0, 1.0, 1.0))) == 26


def test_a_2d_mask_has_an_outline_not_two_faces():
    mask = np.zeros((1, 7, 7), dtype=bool)
    mask[0, 1:6, 1:6] = True
    assert len(surface_points(mask, (1.0, 1.0, 1.0))) == 25 - 9


def test_identical_masks_have_no_distance():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(12, 14, 16)), 2) > 0.05
    found = _distances(mask, mask, (2.5, 0.7, 0.7))
    assert found.hd95 == 0.0
    assert found.assd == 0.0


def _pair(seed):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(20, 26, 30)), 2.5)
    other = smooth + 0.4 * ndimage.gaussian_filter(rng.normal(size=smooth.shape), 2.5)
    return smooth > 0.05, np.roll(other > 0.05, 2, axis=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 1.1)])
def test_agrees_with_the_distance_transforms_of_scipy_and_simpleitk(seed, spacing):
    """The same surfaces, found and measured in another way by two other implementations."""
    prediction, reference = _pair(seed)
    found = _distances(prediction, reference, spacing)
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    by_scipy = np.sort(ndimage.distance_transform_edt(~edges[1], sampling=spacing)[edges[0]])
    image = sitk.GetImageFromArray(edges[1].astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    field = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    # Negative inside an edge that is more than one voxel thick, where the distance to the edge is 0.
    by_simpleitk = np.sort(np.maximum(sitk.GetArrayFromImage(field), 0)[edges[0]])
    np.testing.assert_allclose(found.prediction_to_reference, by_scipy, atol=1e-9)
    np.testing.assert_allclose(found.prediction_to_reference, by_simpleitk, atol=2e-4)  # single precision


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_medpy(seed):
    binary = pytest.importorskip("medpy.metric.binary")  # a second library: test dependency only
    prediction, reference = _pair(seed)
    spacing = (2.0, 1.0, 0.5)
    found = _distances(prediction, reference, spacing)
    assert found.prediction_to_reference.mean() == pytest.approx(binary.asd(prediction, reference, spacing), abs=1e-9)
    assert found.reference_to_prediction.mean() == pytest.approx(binary.asd(reference, prediction, spacing), abs=1e-9)
    assert max(found.prediction_to_reference[-1], found.reference_to_prediction[-1]) == pytest.approx(
        binary.hd(prediction, reference, spacing), abs=1e-9)
