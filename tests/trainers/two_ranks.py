# SPDX-License-Identifier: Apache-2.0
"""One of two gloo ranks that train on the CPU, with nnU-Net's own code around our trainer.

Run as ``python two_ranks.py RANK FOLDER``; the variables of nnU-Net point at a tiny dataset. nnU-Net forces cuda and
nccl in DDP, so the trainer of this file puts the device back and wraps without device ids; all else is as it ships.
What each rank has computed goes to ``FOLDER/rank_<RANK>.pt``, what one process makes of the joined batches to
``FOLDER/joined.pt``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_module
from torch.nn.parallel import DistributedDataParallel

from nnunet_dhc.core.pasting import box_masks
from nnunet_dhc.nnunet.training import pair_trainer
from nnunet_dhc.trainers.dhc import nnUNetTrainerDHC
from nnunet_dhc.trainers.dhc_released import nnUNetTrainerDHCReleased

ROWS = (slice(0, 1), slice(1, 3))  # of three labeled and three unlabeled patches
SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
PLAIN = {"paste_side": 0.0, "unsupervised_on": "all"}  # each unlabeled patch whole
# Dice pooled over the batch and per sample; a Dice term on pseudo labels, whose denominators are reduced too
SETTINGS = {
    "mixed": {},
    "mixed, low memory": {"low_memory": "on"},
    "plain": {**PLAIN, "unsupervised_dice": 0.0},
    "pooled": {**PLAIN, "dice_pooled_over_batch": True},
    "per sample": {"paste_side": 0.0, "dice_pooled_over_batch": False},
    "low memory": {**PLAIN, "low_memory": "on", "dice_pooled_over_batch": True},
    "counts of all": {**PLAIN, "weighting_a": "simis", "weighting_b": "crest", "counts_from": "labeled"},
}


class _OnTheCpu:
    """What makes a trainer run in gloo processes."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.device, self.grad_scaler = torch.device("cpu"), None
        self.timer = type(self.timer)(self.device)


class CpuDHC(_OnTheCpu, nnUNetTrainerDHC):
    pass


class CpuReleased(_OnTheCpu, nnUNetTrainerDHCReleased):
    pass


def make(cls: type, **settings):
    folder = Path(os.environ["nnUNet_preprocessed"]) / "Dataset999_Tiny"
    plans = json.loads((folder / "nnUNetPlansTiny.json").read_text())
    plans["nnunet_dhc"] = {**SHORT, "lambda_max": 1.0, "ramp_length": 0.0, **settings}
    plans["continue_training"] = False
    return cls(plans, "3d_fullres", 0, json.loads((folder / "dataset.json").read_text()))


def batches(number: int) -> list[dict]:
    """The same joined batches on every rank, three labeled and three unlabeled patches each."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(number):
        target = torch.randint(0, 4, (3, 1, 8, 8, 8), generator=generator)
        target[0][target[0] == 3] = 0  # class 3 is on rank 1 only
        made.append({
            "data": (torch.randn(3, 1, 8, 8, 8, generator=generator) + target).double(),
            "target": [target, target[..., ::2, ::2, ::2]],
            "unlabeled": torch.randn(3, 1, 8, 8, 8, generator=generator).double(),
            "keys": ["a", "b", "c"],
        })
    return made


def part(batch: dict, rows: slice) -> dict:
    return {
        "data": batch["data"][rows], "unlabeled": batch["unlabeled"][rows],
        "target": [target[rows] for target in batch["target"]], "keys": batch["keys"][rows],
    }


def start(trainer) -> None:
    """Everything before the first step, without loading data; in float64, or rounding would flip pseudo labels."""
    class NoLoader:
        draw_unlabeled, waited_s = True, 0.0

    torch.manual_seed(3)
    build = type(trainer).build_network_architecture
    trainer.build_network_architecture = lambda plans_manager, *others: build(plans_manager, *others).double()
    trainer.initialize()
    trainer.objective.output_factors = (0.7, 0.3)  # nnU-Net's differ by 1e-6 between DDP and one process
    trainer.files.estimate_duration = lambda *_: None
    counts = [9000, 500, 200, 30]
    trainer.recipe = trainer.recipe.for_labels(counts)
    for weighting in trainer.objective.weightings:
        weighting.initialize(torch.tensor(counts))
    trainer._start_averaging()
    trainer.dataloader_train = NoLoader()
    trainer.on_train_epoch_start()


def state(trainer) -> dict:
    return {
        "weights": {key: value.clone() for key, value in trainer.pair.state_dict().items()},
        "weightings": [weighting.state_dict() for weighting in trainer.objective.weightings],
    }


def steps(rows: slice) -> dict:
    """State after each of three steps, and the (reduced) gradients of the first, for every setting."""
    torch.manual_seed(6)
    masks = box_masks(3, (8, 8, 8), 0.5)[rows]  # a rank draws its own, and the joined batch others
    with patch.object(pair_trainer, "box_masks", lambda *_: masks):
        return {name: steps_with(settings, rows) for name, settings in SETTINGS.items()}


def steps_with(settings: dict, rows: slice) -> list[dict]:
    trainer = make(CpuDHC, **settings)
    start(trainer)
    result = []
    for batch in batches(3):
        losses = trainer.train_step(part(batch, rows))
        gradients = {key: value.grad.clone() for key, value in trainer.pair.named_parameters()}
        counts = trainer.statistics.read()["pseudo_label_share_b"]
        result.append({**state(trainer), "gradients": gradients, "loss": float(losses["loss"]), "shares": counts})
    return result


def non_finite_on_one_rank(rank: int) -> dict:
    trainer = make(CpuDHC, dice_pooled_over_batch=True)
    start(trainer)
    result = [state(trainer)]
    for number, batch in enumerate(batches(2)):
        mine = part(batch, ROWS[rank])
        if rank == 1 and number == 0:
            mine["data"][0, 0, 0, 0, 0] = float("nan")
        trainer.train_step(mine)
        result.append(state(trainer))
    return {"states": result, "skipped": trainer.statistics.non_finite_steps}


def whole_training(rank: int) -> dict:
    """nnU-Net's loop with loaders, validation and checkpoints; the released recipe draws its own first weights."""
    trainer = make(CpuReleased)
    trainer.initialize()
    first = state(trainer)["weights"]
    trainer.run_training()
    return {**state(trainer), "first": first, "validation": trainer.validation,
            "losses": trainer.statistics.read()["losses"]}


def foreground_probability() -> float:
    trainer = make(CpuDHC, oversample_foreground=0.33)
    trainer.initialize()
    return trainer.oversample_foreground_percent


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    nnunet_module.DDP = lambda network, device_ids: DistributedDataParallel(network)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(rank)
    result = {"steps": steps(ROWS[rank]), "non_finite": non_finite_on_one_rank(rank), "whole": whole_training(rank),
              "foreground_probability": foreground_probability()}
    torch.save(result, folder / f"rank_{rank}.pt")
    dist.barrier()
    if rank == 0:
        dist.destroy_process_group()  # rank 1 just ends: the gloo of torch 2.5 can hang when both do this at once
        torch.save(steps(slice(0, 3)), folder / "joined.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
