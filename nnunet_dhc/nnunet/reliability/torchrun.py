# SPDX-License-Identifier: Apache-2.0
"""Trainings started by torchrun, also on several nodes: the process group, the device of this process, who prepares.

nnU-Net's own DDP knows one node: it takes the global rank for the number of the GPU. Here the GPU is LOCAL_RANK; what
nnU-Net calls ``local_rank`` stays the global rank, so that files are written once. All else is nnU-Net's code for a
training in an initialized process group.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunet_dhc.errors import UserError

if TYPE_CHECKING:
    from nnunet_dhc.nnunet.reliability.reliable_trainer import ReliableTrainer

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PREPARATION_LIMIT = timedelta(days=30)  # preprocessing may take long; NCCL's own barrier gives up after 10 minutes
_FILE_APPEARS_S = 90.0  # network file systems may show a new file this late

_device: torch.device | None = None  # of this process, as long as it is one of torchrun's


def is_launched() -> bool:
    """Whether torchrun, or a scheduler that sets the same variables, started this process as one of several."""
    return all(name in os.environ for name in _VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def process_group(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Inside the ``with`` block this process is one rank of a training; without torchrun nothing happens.

    Args:
        arguments: Command line of ``nnunet_dhc train``.

    Yields:
        How the program is called (for messages), and the arguments for nnU-Net.

    Raises:
        UserError: What can't be trained by several processes.
    """
    global _device
    if not is_launched():
        yield "nnunet_dhc train", _after_a_restart(arguments)  # torchrun may start a single process, too
        return
    device = _checked_device(arguments)
    arguments = _after_a_restart(arguments)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if dist.get_rank() != 0:
        os.environ["nnUNet_wandb_enabled"] = "0"  # every rank would open the same run
    _device = device
    try:
        yield "torchrun ... -m nnunet_dhc train", arguments
    finally:
        _device = None
    # Not after an error, because other ranks may wait in a collective.
    if device.type == "cuda":
        dist.destroy_process_group()
    else:
        dist.barrier()  # the gloo of torch 2.5 can hang when it is destroyed, and abort when a peer has gone first


def place(trainer: ReliableTrainer) -> None:
    """Give a new trainer the device of this process."""
    if _device is not None:
        trainer.device = _device
        if _device.type != "cuda":
            trainer.grad_scaler = None


@contextmanager
def wrapped_by_device(trainer: ReliableTrainer) -> Iterator[None]:
    """Let nnU-Net's ``initialize`` wrap the network without the global rank as the number of its device."""
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    if _device is None:
        yield
        return
    batch_size, processes = trainer.configuration_manager.batch_size, dist.get_world_size()
    if batch_size < processes:
        raise UserError(
            f"torchrun started {processes} processes, but the batch of the plans ({batch_size}) is divided among them: "
            "start fewer, or write plans with a larger batch_size"
        )
    kept, module.DDP = module.DDP, _OnItsOwnDevice
    try:
        yield
    finally:
        module.DDP = kept


class _OnItsOwnDevice(DistributedDataParallel):
    def __init__(self, network: torch.nn.Module, device_ids: Sequence[int]) -> None:
        super().__init__(network)


@contextmanager
def rank_zero_first(trainer: ReliableTrainer) -> Iterator[None]:
    """Let rank 0 do the block alone, then the others, who find it done; without torchrun all do it at once.

    Raises:
        UserError: The results folder of this node is not that of rank 0.
    """
    if _device is None:
        yield
        return
    group = dist.new_group(backend="gloo", timeout=_PREPARATION_LIMIT)
    name = [os.path.basename(trainer.log_file)]
    if dist.get_rank() != 0:
        dist.broadcast_object_list(name, 0, group)
        _require(os.path.join(trainer.output_folder, name[0]))
    yield
    if dist.get_rank() == 0:
        dist.broadcast_object_list(name, 0, group)
    dist.barrier(group)


def _require(file: str) -> None:
    end = time.monotonic() + _FILE_APPEARS_S
    while not os.path.isfile(file):
        if time.monotonic() > end:
            raise UserError(
                f"{os.path.dirname(file)} is not the folder that rank 0 writes to: point nnUNet_results of all nodes "
                "at the same folder of a shared file system"
            )
        time.sleep(1)


def _checked_device(arguments: Sequence[str]) -> torch.device:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-tr", default="nnUNetTrainer")
    parser.add_argument("-num_gpus", default="1")
    parser.add_argument("-device", default="cuda")
    given, _ = parser.parse_known_args(list(arguments))
    if given.num_gpus != "1":
        raise UserError(
            f"-num_gpus {given.num_gpus}: torchrun starts the processes itself (--nproc-per-node); leave out -num_gpus"
        )
    if given.device == "mps":
        raise UserError("-device mps: torchrun trains on cuda or cpu only; start the command without torchrun")
    _check_trainer(given.tr)
    if given.device != "cuda":
        return torch.device(given.device)
    number, present = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= present:
        raise UserError(
            f"torchrun started process {number} of this node, which has {present} GPUs: start at most one process per "
            "GPU (--nproc-per-node), or train with -device cpu"
        )
    return torch.device("cuda", number)


def _check_trainer(name: str) -> None:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_dhc._autoload import register
    from nnunet_dhc.nnunet.reliability.reliable_trainer import ReliableTrainer

    register()
    if not issubclass(recursive_find_trainer_class_by_name(name), ReliableTrainer):
        raise UserError(
            f"-tr {name}: torchrun trains the trainers of this package only (nnunet_dhc methods); for others use "
            "nnUNetv2_train -num_gpus on one node"
        )


def is_restarted() -> bool:
    """Whether torchrun has started this process again after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _after_a_restart(arguments: Sequence[str]) -> list[str]:
    """torchrun --max-restarts repeats the same command, which must not start the training anew."""
    if is_restarted() and "--val" not in arguments:
        from nnunet_dhc.nnunet.reliability.resume_command import continuing

        return continuing(arguments)
    return list(arguments)
