# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from nnunet_dhc.core.label_spaces import ClassLabels, RegionLabels
from nnunet_dhc.core.pasting import box_masks


@pytest.mark.parametrize(
    ("shape", "side", "lengths"), [((6, 9, 12), 2 / 3, (4, 6, 8)), ((8, 8), 0.5, (4, 4)), ((5, 7, 3), 0.01, (1, 1, 1))]
)
def test_a_box_or_all_outside_of_it(shape, side, lengths) -> None:
    torch.manual_seed(0)
    masks = box_masks(40, shape, side)
    assert masks.shape == (40, 1, *shape) and masks.dtype == torch.bool
    kinds, places = set(), set()
    for (mask,) in masks:
        first, last = (mask[(corner,) * mask.ndim].item() for corner in (0, -1))
        # a corner that is marked belongs to the outside, unless the box lies there: then fewer voxels are marked
        volume = torch.tensor(lengths).prod().item()
        outside = mask.sum().item() != volume
        box = ~mask if outside else mask
        assert box.sum().item() == volume
        corner = box.nonzero().amin(0)
        assert (box.nonzero().amax(0) - corner + 1).tolist() == list(lengths)
        assert not outside or first or last
        kinds.add(outside)
        places.add(tuple(corner.tolist()))
    assert kinds == {True, False} and len(places) > 5


def test_a_box_may_lie_anywhere_up_to_the_edges() -> None:
    torch.manual_seed(0)
    masks = box_masks(400, (5, 4), 0.6)  # boxes of 3 x 2
    corners = {tuple(mask.nonzero().amin(0).tolist()) for (mask,) in masks if mask.sum() == 6}
    assert corners == {(x, y) for x in range(3) for y in range(3)}


def test_whole_patch_as_box() -> None:
    torch.manual_seed(0)
    assert {mask.float().mean().item() for mask in box_masks(20, (3, 4, 5), 1.0)} == {0.0, 1.0}


def test_seed_decides() -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(box_masks(3, (9, 9, 9), 0.5))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


MASK = torch.tensor([1, 1, 0, 0]).reshape(1, 1, 4, 1, 1).bool()


def test_reference_in_the_mask() -> None:
    labels = ClassLabels(3)
    pseudo_label = torch.tensor([2, 0, 2, 0], dtype=torch.uint8).reshape(1, 1, 4, 1, 1)
    target = labels.reference_where(MASK, torch.tensor([1, 2, 1, 1]).reshape(1, 1, 4, 1, 1), pseudo_label)
    assert target.dtype == torch.uint8 and target.flatten().tolist() == [1, 2, 2, 0]


def test_ignored_voxels_of_the_reference_stay_ignored() -> None:
    labels = ClassLabels(3, ignore_label=7)
    assert labels.may_ignore and not ClassLabels(3).may_ignore
    pseudo_label = torch.tensor([2, 0, 2, 0], dtype=torch.uint8).reshape(1, 1, 4, 1, 1)
    target = labels.reference_where(MASK, torch.tensor([1, 7, 7, 1]).reshape(1, 1, 4, 1, 1), pseudo_label)
    # pseudo labels have no label 7: the label space that they are read in ignores the label after the classes
    assert labels.with_ignore().count(target).tolist() == [1, 1, 1]


def test_regions_of_the_reference() -> None:
    reference = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 1, 0]]).reshape(1, 3, 4, 1, 1)
    pseudo_label = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).reshape(1, 3, 4, 1, 1).bool()
    labels = RegionLabels(2, has_ignore_channel=True)
    assert labels.may_ignore and not RegionLabels(2).may_ignore
    target = labels.reference_where(MASK, reference, pseudo_label)
    assert target.dtype == torch.bool
    assert target[0, :, :, 0, 0].int().tolist() == [[1, 1, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert labels.count(target).tolist() == [1, 2, 1]


def test_regions_whose_reference_ignores_nothing() -> None:
    reference = torch.ones(1, 2, 4, 1, 1)
    pseudo_label = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).reshape(1, 3, 4, 1, 1).bool()
    target = RegionLabels(2).reference_where(MASK, reference, pseudo_label)
    assert target[0, :, :, 0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]]
