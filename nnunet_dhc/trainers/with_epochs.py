# SPDX-License-Identifier: Apache-2.0
"""Trainers with a fixed number of epochs in their name, made on demand and kept importable and picklable here."""

from __future__ import annotations

import torch

from nnunet_dhc.trainers.lookup import split_name, trainer_class


def __getattr__(name: str) -> type:
    base_name, epochs = split_name(name)
    if epochs is None:
        raise AttributeError(name)
    base = trainer_class(base_name)

    # nnU-Net reads the five argument names from the locals of __init__, so they are spelled out.
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ):
        base.__init__(self, plans, configuration, fold, dataset_json, device)
        self.num_epochs = epochs

    made = type(name, (base,), {"__init__": __init__, "__module__": __name__, "__doc__": base.__doc__})
    globals()[name] = made
    return made
