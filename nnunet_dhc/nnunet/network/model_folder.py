# SPDX-License-Identifier: Apache-2.0
"""The folder of a trained model in ``nnUNet_results``: its plans, its folds, its checkpoints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.dataset_places import datasets_named, read_dataset_json_file, read_plans_file

_REPAIR = "train again, or copy the file back"


@dataclass(frozen=True)
class ModelFolder:
    """``<nnUNet_results>/<dataset>/<trainer>__<plans>__<configuration>``."""

    path: Path
    dataset: str
    trainer: str
    plans_identifier: str
    configuration: str

    @property
    def plans(self) -> dict[str, Any]:
        return read_plans_file(self.path / "plans.json", _REPAIR)

    @property
    def dataset_json(self) -> dict[str, Any]:
        return read_dataset_json_file(self.path / "dataset.json", _REPAIR)

    def managers(self) -> tuple[PlansManager, ConfigurationManager]:
        plans = self.plans
        if self.configuration not in plans["configurations"]:
            raise UserError(f"{self.path / 'plans.json'} has no configuration {self.configuration}: {_REPAIR}")
        plans_manager = PlansManager(plans)
        return plans_manager, plans_manager.get_configuration(self.configuration)

    def fold_folder(self, fold: int | str) -> Path:
        return self.path / f"fold_{fold}"

    def checkpoint(self, fold: int | str, name: str) -> Path:
        return self.fold_folder(fold) / name

    @property
    def option_of_previous_stage(self) -> str:
        """What a command that predicts needs further, where the model is the second stage of a cascade."""
        _, configuration = self.managers()
        return "" if configuration.previous_stage_name is None else " -prev_stage_predictions FOLDER"

    def require_checkpoints(self, folds: Sequence[int | str], name: str) -> None:
        """Refuse if a fold has no such checkpoint.

        Raises:
            UserError: Names the folds that miss and those that are there.
        """
        missing = [str(fold) for fold in folds if not self.checkpoint(fold, name).is_file()]
        if not missing:
            return
        there = sorted(
            path.parent.name.removeprefix("fold_") for path in self.path.glob(f"fold_*/{name}") if path.is_file()
        )
        if "all" in there and there != ["all"]:
            there.remove("all")  # its validation cases were trained on, so it doesn't go together with the others
        remedy = f"train them, or use -f {' '.join(there)}" if there else "train first, or give another -chk"
        if not there and name == "checkpoint_final.pth":
            remedy = self._instead_of_final(missing) or remedy
        raise UserError(f"{self.path} has no {name} of fold {', '.join(missing)}: {remedy}")

    def _instead_of_final(self, folds: Sequence[int | str]) -> str | None:
        """What to do where a fold has an unfinished training, or an earlier one that another start has set aside."""
        names = set.intersection(
            *({path.name for path in self.fold_folder(fold).glob("checkpoint_*.pth*")} for fold in folds)
        )
        if "checkpoint_final.pth.before" in names:
            return (
                "that of an earlier training is checkpoint_final.pth.before; finish the new one (--c), or end it and "
                "bring all files *.before back (docs/how-to/run-on-a-cluster.md, Time limits)"
            )
        unfinished = names & {"checkpoint_latest.pth", "checkpoint_best.pth"}
        if unfinished:
            return f"the training is not finished: continue it with --c, or give -chk {max(unfinished)}"
        return None


def option_of_device(device: torch.device) -> str:
    """What a command that predicts needs further, where the device isn't nnU-Net's default."""
    return "" if device.type == "cuda" else f" -device {device.type}"


def find_model_folder(dataset: str | int, trainer: str, plans_identifier: str, configuration: str) -> ModelFolder:
    """Find what ``nnUNetv2_train`` wrote for these names.

    Raises:
        UserError: nnUNet_results is not set, or there is no such dataset or model; the message lists the models.
    """
    results = os.environ.get("nnUNet_results")
    if not results:
        raise UserError("nnUNet_results is not set: export it as nnU-Net's documentation says")
    matches, names = datasets_named(dataset, [results])
    if len(matches) != 1:
        raise UserError(
            f"{results} has {'several datasets' if matches else 'no trained model of dataset'} {dataset} (found: "
            f"{', '.join(matches or names) or 'none'}): give -d as a number or as the folder's name"
        )
    path = Path(results) / matches[0] / f"{trainer}__{plans_identifier}__{configuration}"
    if not path.is_dir():
        there = sorted(folder.name for folder in path.parent.glob("*__*__*") if folder.is_dir())
        raise UserError(
            f"{path} does not exist: correct -tr, -p or -c (trained: {', '.join(there) or 'nothing yet'}; the parts "
            "are trainer, plans and configuration)"
        )
    return ModelFolder(path, matches[0], trainer, plans_identifier, configuration)


def parse_fold(text: str) -> int | str:
    """A fold number, or "all".

    Raises:
        UserError: Neither.
    """
    if text == "all":
        return text
    if not text.isdecimal():
        raise UserError(f"-f {text}: a fold is a number or all")
    return int(text)


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
