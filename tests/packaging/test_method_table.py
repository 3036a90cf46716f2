# SPDX-License-Identifier: Apache-2.0
"""The method table and the trainer files describe each other, one to one."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import nnunetv2
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_dhc
from nnunet_dhc.trainers.lookup import is_trainer_name, split_name, trainer_class
from nnunet_dhc.trainers.table import METHODS

WEIGHTINGS = {"none", "distdw", "diffdw", "crest", "simis", "cld"}


def _classes(folder: Path) -> dict[str, str]:
    """Trainer classes defined below a folder, with the file's stem."""
    return {
        node.name: path.stem
        for path in folder.rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name.startswith("nnUNetTrainer")
    }


def test_rows_and_classes_are_a_bijection():
    defined = _classes(Path(nnunet_dhc.__file__).parent / "trainers")
    assert {name: row.module.rpartition(".")[2] for name, row in METHODS.items()} == defined


@pytest.mark.parametrize("name", sorted(METHODS))
def test_row_names_its_class(name):
    row = METHODS[name]
    cls = getattr(import_module(row.module), name)
    assert issubclass(cls, nnUNetTrainer)
    assert (cls.__name__, cls.__module__) == (name, row.module)
    assert cls.__doc__ and row.summary and row.paper
    assert {row.weighting_a, row.weighting_b} <= WEIGHTINGS


def test_names_fit_nnunet():
    built_in = _classes(Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer")
    assert not set(METHODS) & set(built_in)  # built-in trainers win the search
    assert all("__" not in name for name in METHODS)  # results folders are Trainer__Plans__Configuration


@pytest.mark.parametrize(("name", "expected"), [
    ("nnUNetTrainerDHC", ("nnUNetTrainerDHC", None)),
    ("nnUNetTrainerDHC_1epoch", ("nnUNetTrainerDHC", 1)),
    ("nnUNetTrainerDHC_250epochs", ("nnUNetTrainerDHC", 250)),
    ("nnUNetTrainerDHC_1epochs", ("nnUNetTrainerDHC_1epochs", None)),
    ("nnUNetTrainerDHC_5epoch", ("nnUNetTrainerDHC_5epoch", None)),
    ("nnUNetTrainerDHC_0epochs", ("nnUNetTrainerDHC_0epochs", None)),
    ("nnUNetTrainerDHC_05epochs", ("nnUNetTrainerDHC_05epochs", None)),
])
def test_epochs_are_spelled_as_nnunet_spells_them(name, expected):
    assert split_name(name) == expected
    assert is_trainer_name(name) == (expected[0] in METHODS)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError):
        trainer_class("nnUNetTrainerNobody")
