# SPDX-License-Identifier: Apache-2.0
"""A preprocessed file is cut in place while the training reads it by itself: without workers, or in its validation."""

from __future__ import annotations

import os

import pytest
from tiny_training import make_trainer

from nnunet_dhc.errors import UserError


@pytest.mark.parametrize("kind", ["labeled", "unlabeled"])
def test_ends_with_the_name_of_the_file(tiny_dataset, kind):
    trainer = make_trainer(tiny_dataset, num_iterations_per_epoch=50)
    folder = tiny_dataset.preprocessed / f"nnUNetPlans_3d_fullres{'_unlabeled' if kind == 'unlabeled' else ''}"
    step = trainer.train_step

    def cut_then_step(batch):
        for stream in (trainer.dataloader_train.labeled, trainer.dataloader_train.unlabeled, trainer.dataloader_val):
            assert stream.stream.data_loader._data.mmap_kwargs == {}  # or the next line would end this process
        for path in folder.glob("*.b2nd"):
            os.truncate(path, path.stat().st_size // 2)
        return step(batch)

    trainer.train_step = cut_then_step
    remedy = "delete it" if kind == "unlabeled" else "nnUNetv2_preprocess -d"
    with pytest.raises(UserError, match=rf"preprocessed file .*_3d_fullres.*\.b2nd of case .* is damaged .*{remedy}"):
        trainer.run_training()


def test_validation_ends_with_the_name_of_the_file(tiny_dataset):
    """Read with the file mapped into memory, it would end this process with SIGBUS."""
    trainer = make_trainer(tiny_dataset)
    trainer.initialize()
    case = trainer.do_split()[1][0]
    path = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres" / f"{case}.b2nd"
    dataset_class = trainer.dataset_class

    class CutOnceOpened(dataset_class):
        def load_case(self, identifier):
            loaded = super().load_case(identifier)
            os.truncate(path, path.stat().st_size // 2)
            return loaded

    trainer.dataset_class = CutOnceOpened
    line = rf"preprocessed file .*{case}\.b2nd of case {case} is damaged .*nnUNetv2_preprocess"
    with pytest.raises(UserError, match=line):
        trainer.perform_actual_validation()
