# SPDX-License-Identifier: Apache-2.0
"""Every row of the method table trains, saves, and goes on from what it saved."""

from __future__ import annotations

import inspect
import pickle

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_training import assert_same, differs, log_lines, make_trainer, parameters, resumed

from nnunet_dhc.trainers.lookup import is_trainer_name, split_name, trainer_class
from nnunet_dhc.trainers.table import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_trains_saves_and_continues(tiny_dataset, name):
    first = make_trainer(tiny_dataset, name, num_epochs=2)
    first.num_epochs = 1
    first.on_train_end = lambda: None  # as if killed at the end of the first epoch
    first.run_training()
    first._save([first.files.path("checkpoint_latest.pth")], finished_epochs=1)

    second = resumed(tiny_dataset, first)
    assert_same(parameters(first), parameters(second))
    assert second.current_epoch == 1
    second.run_training()
    assert differs(parameters(first), parameters(second))
    assert [line["epoch"] for line in log_lines(second)] == [0, 1]
    weights = log_lines(second)[-1]
    assert all(w >= 0 for w in weights["class_weights_a"] + weights["class_weights_b"])


@pytest.mark.parametrize("name", METHODS)
def test_row_says_what_the_class_does(name):
    row, cls = METHODS[name], trainer_class(name)
    assert cls.__name__ == name and issubclass(cls, nnUNetTrainer) and cls.__doc__
    assert (cls.recipe.weighting_a, cls.recipe.weighting_b) == (row.weighting_a, row.weighting_b)
    assert cls.uses_unlabeled == row.uses_unlabeled


@pytest.mark.parametrize("epochs, suffix", [(1, "_1epoch"), (5, "_5epochs"), (37, "_37epochs")])
def test_names_with_epochs(tiny_dataset, epochs, suffix):
    cls = trainer_class("nnUNetTrainerDHC" + suffix)
    assert cls is trainer_class("nnUNetTrainerDHC" + suffix)
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert list(inspect.signature(cls.__init__).parameters) == list(
        inspect.signature(nnUNetTrainer.__init__).parameters
    )
    trainer = make_trainer(tiny_dataset, "nnUNetTrainerDHC" + suffix, num_epochs=None)
    assert trainer.num_epochs == epochs
    assert cls.__name__ in trainer.output_folder


def test_the_epochs_of_the_name_count_before_those_of_the_plans(tiny_dataset, capsys):
    trainer = make_trainer(tiny_dataset, "nnUNetTrainerDHC_5epochs", num_epochs=3)
    assert (trainer.num_epochs, trainer.recipe.num_epochs) == (5, 5)
    note = "num_epochs = 3, a setting of nnUNetPlansTiny, doesn't count: the name of the trainer says 5"
    assert note in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainerDHC_0epochs",
        "nnUNetTrainerDHC_1epochs",
        "nnUNetTrainerDHC_5epoch",
        "nnUNetTrainer_5epochs",
        "nnUNetTrainer",
        "nnUNetTrainerDHC_",
        "_5epochs",
    ],
)
def test_other_names_are_left_to_nnunet(name):
    assert not is_trainer_name(name)


def test_split_name():
    assert split_name("nnUNetTrainerDHC_12epochs") == ("nnUNetTrainerDHC", 12)
    assert split_name("nnUNetTrainerDHC") == ("nnUNetTrainerDHC", None)
