# SPDX-License-Identifier: Apache-2.0
"""Trainings of a few steps on the tiny dataset, in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_data import TinyDataset

from nnunet_dhc.trainers.lookup import trainer_class

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
FOLD = {"train": ["case_0", "case_1"], "val": ["case_2"], "unlabeled": ["case_3", "case_4"]}


def make_trainer(
    dataset: TinyDataset,
    name: str = "nnUNetTrainerDHC",
    continues: bool = False,
    configuration: str = "3d_fullres",
    fold: int | str = 0,
    **settings,
):
    """A trainer on the CPU with the tiny plans; ``settings`` go into ``plans["nnunet_dhc"]``."""
    if not (dataset.preprocessed / "splits_final.json").is_file():
        dataset.write_split([FOLD])
    plans = dataset.plans_content()
    plans["nnunet_dhc"] = {**SHORT, **settings}
    plans["continue_training"] = continues
    return trainer_class(name)(plans, configuration, fold, dataset.dataset_json, torch.device("cpu"))


def resumed(dataset: TinyDataset, trainer, checkpoint: str = "checkpoint_latest.pth", **settings):
    """A new instance that has loaded a checkpoint of ``trainer``'s folder."""
    new = make_trainer(dataset, type(trainer).__name__, continues=True, **settings)
    new.load_checkpoint(str(Path(trainer.output_folder) / checkpoint))
    return new


def parameters(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.pair.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def differs(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(first[name], second[name]) for name in first.keys() & second.keys())


@contextmanager
def files_up_to(num_bytes: int) -> Iterator[None]:
    """No file gets larger, as on a full disk: writing ends with an OSError in Python, otherwise in torch's writer."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def log_lines(trainer) -> list[dict]:
    return [json.loads(line) for line in (Path(trainer.output_folder) / "dhc_log.jsonl").read_text().splitlines()]
