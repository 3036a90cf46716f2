# SPDX-License-Identifier: Apache-2.0
"""The view of a patch that has the augmentation's geometry and not its intensities."""

from __future__ import annotations

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from bring_up_to_date import SPLIT_FOLD, update
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_dhc.nnunet.unlabeled.two_views import changes_appearance, two_views
from nnunet_dhc.nnunet.unlabeled.unlabeled_loader import UnlabeledDataLoader, UnlabeledDataset


class Brighter(ImageOnlyTransform):
    """Adds 100, in place as transforms may."""

    def _apply_to_image(self, img, **params):
        img += 100
        return img


def nnunet_transforms(**more):
    return nnUNetTrainer.get_training_transforms((16, 16, 16), (-0.5, 0.5), None, (0, 1), False, **more)


def test_mirrored_alike_and_only_one_brighter():
    transforms = ComposeTransforms([RandomTransform(Brighter(), 1.0), MirrorTransform((0, 1, 2))])
    patch = torch.arange(60, dtype=torch.float32).reshape(1, 3, 4, 5)
    corners = set()
    for seed in range(20):
        torch.manual_seed(seed)
        np.random.seed(seed)
        views = two_views(transforms, {"image": patch.clone()})
        assert torch.equal(views["image"], views["plain"] + 100)
        corners.add(float(views["plain"][0, 0, 0, 0]))
    assert len(corners) > 1


def test_nothing_that_changes_the_appearance_leaves_one_view():
    views = two_views(ComposeTransforms([MirrorTransform((0,))]), {"image": torch.rand(1, 4, 4, 4)})
    assert torch.equal(views["image"], views["plain"])


def test_the_augmentations_of_nnunet_that_change_the_appearance():
    """An upgrade that renames or wraps them otherwise would quietly make the plain view an augmented one."""
    names = [
        type(transform.transform).__name__
        for transform in nnunet_transforms(use_mask_for_norm=[True]).transforms
        if changes_appearance(transform)
    ]
    assert names == [
        "GaussianNoiseTransform",
        "GaussianBlurTransform",
        "MultiplicativeBrightnessTransform",
        "ContrastTransform",
        "SimulateLowResolutionTransform",
        "GammaTransform",
        "GammaTransform",
    ]


def test_the_augmented_view_is_that_of_a_loader_without_the_plain_one(tiny_dataset):
    """With nnU-Net's augmentation; the plain view has no noise, so it is smoother on average."""
    pool = update(tiny_dataset, SPLIT_FOLD)
    labels = LabelManager({"background": 0, "large": 1, "middle": 2, "small": 3}, None)
    batches = []
    for plain_view in (False, True):
        loader = UnlabeledDataLoader(
            UnlabeledDataset(pool.folder, pool.identifiers), 8, (22, 22, 22), (16, 16, 16), labels,
            transforms=nnunet_transforms(), plain_view=plain_view,
        )
        np.random.seed(1)
        torch.manual_seed(1)
        batches.append(next(loader))
    assert "plain" not in batches[0]
    assert torch.equal(batches[0]["data"][0], batches[1]["data"][0])
    differs = [not torch.equal(*views) for views in zip(batches[1]["data"], batches[1]["plain"], strict=True)]
    assert any(differs) and not all(differs)
