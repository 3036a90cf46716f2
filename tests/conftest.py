# SPDX-License-Identifier: Apache-2.0
"""For the whole suite: a tiny dataset, planned and preprocessed once per process, and how processes share the tests."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: as many processes run tests as there are cores

import pytest
from tiny_data import TinyDataset, plan_and_preprocess, write_raw_dataset

# Tests of a file stay together, because they share what its fixtures have trained; these are long and share nothing.
APART = {"tests/cli/test_messages.py"}
# The longest files, which would keep one process busy at the end.
FIRST = (
    "tests/trainers/test_console.py",
    "tests/trainers/test_after_training.py",
    "tests/demo/test_pipeline.py",
    "tests/trainers/test_torchrun.py",
    "tests/trainers/test_two_ranks.py",
    "tests/trainers/test_training.py",
    "tests/trainers/test_adjust.py",
    "tests/packaging/test_docs.py",
    "tests/scripts/test_benchmark_accuracy.py",
    "tests/cli/test_messages.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = _file_of(nodeid)
            return nodeid if file in APART else file

    config.option.loadscopereorder = False  # it begins with the files that have most tests
    return ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    places = {file: place for place, file in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(_file_of(item.nodeid), len(places)))


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@pytest.fixture(scope="session")
def tiny_dataset_template(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    """The tiny dataset that everybody copies from; nobody writes into it."""
    dataset = TinyDataset(tmp_path_factory.mktemp("tiny"))
    write_raw_dataset(dataset.raw)
    with pytest.MonkeyPatch.context() as patch:
        dataset.point_nnunet_here(patch, num_workers=1)  # planning can't do with 0
        plan_and_preprocess(dataset.raw, dataset.preprocessed)
    return dataset


@pytest.fixture
def tiny_dataset(
    tiny_dataset_template: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TinyDataset:
    """A copy for one test: 6 labeled cases, 3 more scans in ``imagesUn``, ``nnUNetPlans`` and ``nnUNetPlansTiny``."""
    return tiny_dataset_template.copied_to(tmp_path / "nnunet", monkeypatch)
