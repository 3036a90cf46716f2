# SPDX-License-Identifier: Apache-2.0
"""One comparison for all tests that only read it."""

from __future__ import annotations

import pytest
from made_up import ResultsTree

from nnunet_dhc.reporting.collect import Selection, collect_trainings
from nnunet_dhc.reporting.compare import Options, build_comparison
from nnunet_dhc.reporting.output import json_ready

TRAINERS = ("nnUNetTrainer", "nnUNetTrainer_16epochs", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC")


@pytest.fixture(scope="session")
def finished_tree(tmp_path_factory):
    """Stock at equal steps and at equal wall-clock, the control, and DHC; nobody writes into it."""
    tree = ResultsTree(tmp_path_factory.mktemp("finished"))
    tree.add_stock("nnUNetTrainer", epochs=4, shift=3).add_stock("nnUNetTrainer_16epochs", epochs=16, shift=2)
    tree.add_pair("nnUNetTrainerPairSupervised", shift=2, unlabeled=0)
    return tree.add_pair("nnUNetTrainerDHC", shift=1)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    tree = ResultsTree(tmp_path)
    tree.environment(monkeypatch)
    return tree


@pytest.fixture(scope="session")
def comparison(finished_tree):
    with pytest.MonkeyPatch.context() as patch:
        finished_tree.environment(patch)
        return json_ready(build_comparison(collect_trainings(Selection("901", TRAINERS)), Options()))
