# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a training cannot continue from."""

from __future__ import annotations

from console import fold_folder
from tiny_data import TinyDataset

from fault_makers.folds import usual


def foreign(dataset: TinyDataset) -> None:
    """A checkpoint of stock nnU-Net, copied to where ours is expected."""
    import torch

    usual(dataset)
    folder = fold_folder(dataset)
    folder.mkdir(parents=True)
    torch.save({"trainer_name": "nnUNetTrainer", "network_weights": {}}, folder / "checkpoint_latest.pth")


def truncated(dataset: TinyDataset) -> None:
    foreign(dataset)
    path = fold_folder(dataset) / "checkpoint_latest.pth"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
