# SPDX-License-Identifier: Apache-2.0
"""A step waits for the device as often as a stock step does: counted on the host, and by CUDA where there is one."""

from __future__ import annotations

import warnings

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_training import make_trainer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

MODES = ("off", "on")  # low_memory


class HostReads(TorchFunctionMode):
    """Counts the calls that give the host a value of a tensor, each of which waits for a GPU."""

    READS = frozenset((
        Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__,
        Tensor.nonzero, Tensor.masked_select, torch.nonzero, torch.masked_select, torch.unique, torch.equal,
        torch.allclose,
    ))

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.READS:
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


class ScalarReads(TorchDispatchMode):
    """Counts the same one level below, where nothing that torch itself does can hide."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def batch_of(device: str = "cpu", size: int = 16) -> dict:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (2, 1, size, size, size), generator=generator, dtype=torch.int16)
    batch = {
        "data": torch.randn(2, 1, size, size, size, generator=generator),
        "unlabeled": torch.randn(2, 1, size, size, size, generator=generator),
        "target": [target, target[..., ::2, ::2, ::2].contiguous()],
        "keys": ["a", "b"],
    }
    if device == "cuda":  # as nnU-Net's loaders give them
        for name in ("data", "unlabeled"):
            batch[name] = batch[name].pin_memory()
        batch["target"] = [target.pin_memory() for target in batch["target"]]
    return batch


def stock_trainer(dataset, device: torch.device):
    plans = {**dataset.plans_content(), "continue_training": False}
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset.dataset_json, device)
    trainer.initialize()
    return trainer


def pair_trainer(dataset, device: torch.device, name: str = "nnUNetTrainerDHC", **settings):
    class NoLoader:
        draw_unlabeled, waited_s = True, 0.0

    trainer = make_trainer(dataset, name, lambda_max=1.0, ramp_length=0.0, **settings)
    if device.type == "cuda":
        plans = {**trainer.plans_manager.plans, "continue_training": False}
        trainer = type(trainer)(plans, "3d_fullres", 0, dataset.dataset_json, device)
    trainer.initialize()
    trainer.files.estimate_duration = lambda *_: None
    counts = [9000, 500, 200, 30]
    trainer.recipe = trainer.recipe.for_labels(counts)
    for weighting in trainer.objective.weightings:
        weighting.initialize(torch.tensor(counts, device=trainer.device))
    trainer._start_averaging()
    trainer.dataloader_train = NoLoader()
    trainer.on_train_epoch_start()
    return trainer


def reads_of_second_step(trainer) -> tuple[list[str], list[str]]:
    trainer.train_step(batch_of())  # the first one of an epoch also measures gradient shares
    with HostReads() as reads:
        trainer.train_step(batch_of())
    with ScalarReads() as scalars:
        trainer.train_step(batch_of())
    return reads.found, scalars.found


@pytest.fixture
def of_stock(tiny_dataset):
    return reads_of_second_step(stock_trainer(tiny_dataset, torch.device("cpu")))


@pytest.mark.parametrize(("name", "settings"), [
    ("nnUNetTrainerDHC", {"low_memory": "off"}),
    ("nnUNetTrainerDHC", {"low_memory": "on"}),
    ("nnUNetTrainerDHC", {"unsupervised_dice": 1.0, "confidence_threshold": 0.5}),
    ("nnUNetTrainerDHC", {"teacher": "mean", "teacher_momentum": 0.99}),
    ("nnUNetTrainerDHCReleased", {}),
    ("nnUNetTrainerDHCPaper", {}),
    ("nnUNetTrainerCReST", {}),
    ("nnUNetTrainerPairSupervised", {}),
    ("nnUNetTrainerPairMixed", {}),
])
def test_a_step_reads_as_often_as_a_stock_step(tiny_dataset, of_stock, name, settings) -> None:
    assert of_stock == (["cpu"], [])
    assert reads_of_second_step(pair_trainer(tiny_dataset, torch.device("cpu"), name, **settings)) == of_stock


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("low_memory", MODES)
def test_cuda_finds_no_more_waits_than_in_a_stock_step(tiny_dataset, monkeypatch, low_memory) -> None:
    monkeypatch.setenv("nnUNet_compile", "false")
    cuda = torch.device("cuda")
    stock = waits_of_a_step(stock_trainer(tiny_dataset, cuda))
    assert waits_of_a_step(pair_trainer(tiny_dataset, cuda, low_memory=low_memory)) <= stock


def waits_of_a_step(trainer) -> int:
    for _ in range(3):
        trainer.train_step(batch_of("cuda"))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train_step(batch_of("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
