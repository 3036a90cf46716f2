# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the whole suite: a tiny dataset, planned and preprocessed once per session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_data import TinyDataset, plan_and_preprocess, write_raw_dataset

_VARIABLES = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}


@pytest.fixture(scope="session")
def tiny_dataset_template(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    """The tiny dataset that everybody copies from; nobody writes into it."""
    dataset = TinyDataset(tmp_path_factory.mktemp("tiny"))
    write_raw_dataset(dataset.raw)
    with pytest.MonkeyPatch.context() as patch:
        _point_nnunet_at(dataset.root, patch, num_workers=1)  # planning can't do with 0
        plan_and_preprocess(dataset.raw, dataset.preprocessed)
    return dataset


@pytest.fixture
def tiny_dataset(
    tiny_dataset_template: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TinyDataset:
    """A copy for one test: 6 labeled cases, 3 more scans in ``imagesUn``, ``nnUNetPlans`` and ``nnUNetPlansTiny``."""
    root = tmp_path / "nnunet"
    shutil.copytree(tiny_dataset_template.root, root)
    _point_nnunet_at(root, monkeypatch)
    return TinyDataset(root)


def _point_nnunet_at(root: Path, patch: pytest.MonkeyPatch, num_workers: int = 0) -> None:
    for variable, folder in _VARIABLES.items():
        (root / folder).mkdir(exist_ok=True)
        patch.setenv(variable, str(root / folder))
    patch.setenv("nnUNet_n_proc_DA", str(num_workers))
