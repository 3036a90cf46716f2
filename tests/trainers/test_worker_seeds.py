# SPDX-License-Identifier: Apache-2.0
"""Random numbers of data workers: both streams of a trainer, each with two workers."""

from __future__ import annotations

import sys

import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_training import make_trainer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nnU-Net's loaders fork on Linux")


class FillWithFirstDraw(BasicTransform):
    """nnU-Net's transforms, then the first number that torch drew for the patch in each of its voxels."""

    def __init__(self, transforms):
        super().__init__()
        self.transforms = transforms

    def apply(self, data_dict, **_):
        drawn = torch.rand(())
        data_dict = self.transforms(**data_dict)
        data_dict["image"][:] = drawn
        return data_dict


def test_no_two_workers_draw_the_same(tiny_dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    plain = nnUNetTrainer.get_training_transforms
    monkeypatch.setattr(nnUNetTrainer, "get_training_transforms",
                        staticmethod(lambda *args, **kwargs: FillWithFirstDraw(plain(*args, **kwargs))))
    trainer = make_trainer(tiny_dataset, num_epochs=1)
    trainer.on_train_start()
    try:
        trainer.dataloader_train.draw_unlabeled = True
        draws = []
        for _ in range(8):
            batch = next(trainer.dataloader_train)
            draws += [patch.flatten()[0].item() for key in ("data", "unlabeled") for patch in batch[key]]
    finally:
        trainer.on_train_end()
    assert len(draws) == len(set(draws)) == 32


def test_without_workers_the_state_is_that_of_the_training(tiny_dataset):
    torch.manual_seed(3)
    trainer = make_trainer(tiny_dataset, num_epochs=1)
    trainer.on_train_start()
    next(trainer.dataloader_train)
    assert torch.initial_seed() == 3
    assert "get_training_transforms" not in vars(trainer)
