# SPDX-License-Identifier: Apache-2.0
"""Validation Dice of sub-networks A and B by themselves, predicted once and remembered in the fold's folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, label_or_region_to_key
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tqdm import tqdm

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_json
from nnunet_dhc.nnunet.models.validation_cases import ValidationCases
from nnunet_dhc.nnunet.network.model_folder import ModelFolder, file_hash
from nnunet_dhc.nnunet.network.predictor import new_predictor, pair_of, trained_predictor

CACHE_FILE = "dhc_sub_network_dice.json"
NETWORKS = ("A", "B")

CaseDice = dict[str, float | None]
"""Dice by label or region; None where neither the reference nor the prediction has it."""


def mean_foreground_dice(cases: Sequence[CaseDice]) -> float | None:
    """nnU-Net's foreground mean: the mean over cases for each label, then over labels; None without any value."""
    by_label: dict[str, list[float]] = {}
    for case in cases:
        for label, dice in case.items():
            if dice is not None:
                by_label.setdefault(label, []).append(dice)
    return float(np.mean([np.mean(values) for values in by_label.values()])) if by_label else None


class SubNetworkDice:
    """Dice of A and of B on the validation cases of one fold, for one checkpoint.

    Args:
        model: The trained model.
        fold: Fold number or "all".
        checkpoint_name: For example ``checkpoint_final.pth``.
    """

    def __init__(self, model: ModelFolder, fold: int | str, checkpoint_name: str) -> None:
        self.model = model
        self.fold = fold
        self.checkpoint_name = checkpoint_name
        self.cache = model.fold_folder(fold) / CACHE_FILE

    def remembered(self) -> dict[str, dict[str, CaseDice]] | None:
        """Dice by network and case if all was predicted before, of this checkpoint and these references, else None."""
        if not self.cache.is_file():
            return None
        try:
            validation = self._validation_cases()
            cases = self._read(validation)["cases"]
        except (UserError, OSError):  # the data are gone
            return None
        known = all(case in cases[name] for name in NETWORKS for case in validation.identifiers)
        return cases if known else None

    def measure(self, device: torch.device) -> dict[str, dict[str, CaseDice]]:
        """Predict what is not remembered yet; a stopped run goes on where it stopped.

        Raises:
            UserError: The validation cases or their references are not there.
        """
        validation = self._validation_cases()
        content = self._read(validation)
        cases = content["cases"]
        todo = [(name, case) for name in NETWORKS for case in validation.identifiers if case not in cases[name]]
        if todo:
            predictors = _predictors(self.model, self.fold, self.checkpoint_name, device)
            for name, case in tqdm(todo, desc=f"Fold {self.fold}: A and B alone"):
                cases[name][case] = _dice(validation, predictors[name], case)
                replace_json(self.cache, content)
        return cases

    def _validation_cases(self) -> ValidationCases:
        return ValidationCases(
            self.model, self.fold, "bring the preprocessed data back, or choose with -net A or -net B"
        )

    def _identity(self) -> dict[str, str]:
        return {
            "name": self.checkpoint_name,
            "sha256": file_hash(self.model.checkpoint(self.fold, self.checkpoint_name)),
        }

    def _read(self, validation: ValidationCases) -> dict[str, Any]:
        """What is remembered of this checkpoint and of validation cases that are as they were then."""
        sources = {case: validation.source(case) for case in validation.identifiers}
        try:
            content = json.loads(self.cache.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = {}
        identity = self._identity()
        known = content["cases"] if content.get("checkpoint") == identity else {}
        unchanged = {case for case, source in sources.items() if content.get("sources", {}).get(case) == source}
        return {
            "checkpoint": identity,
            "sources": sources,
            "cases": {
                name: {case: dice for case, dice in known.get(name, {}).items() if case in unchanged}
                for name in NETWORKS
            },
        }


def _dice(cases: ValidationCases, predictor: nnUNetPredictor, identifier: str) -> CaseDice:
    """As nnU-Net's final validation: predicted from the preprocessed case, compared in the original space."""
    case = cases.load(identifier)
    logits = predictor.predict_sliding_window_return_logits(case.image).cpu()
    ending = cases.dataset_json["file_ending"]
    labels = cases.label_manager
    with tempfile.TemporaryDirectory() as folder:
        truncated = str(Path(folder) / "prediction")
        export_prediction_from_logits(
            logits,
            case.properties,
            cases.configuration_manager,
            cases.plans_manager,
            cases.dataset_json,
            truncated,
            num_threads_torch=torch.get_num_threads(),
        )
        metrics = compute_metrics(
            str(cases.references / f"{identifier}{ending}"),
            truncated + ending,
            cases.plans_manager.image_reader_writer_class(),
            labels.foreground_regions if labels.has_regions else labels.foreground_labels,
            labels.ignore_label,
        )["metrics"]
    return {
        label_or_region_to_key(label): None if np.isnan(values["Dice"]) else float(values["Dice"])
        for label, values in metrics.items()
    }


def _predictors(
    model: ModelFolder, fold: int | str, checkpoint_name: str, device: torch.device
) -> dict[str, nnUNetPredictor]:
    """nnU-Net's predictor, with the defaults of its final validation, of A and of B."""
    plans_manager, configuration_manager = model.managers()
    of_both = trained_predictor(model.path, (fold,), checkpoint_name, device)
    predictors = {}
    for name, network in zip(NETWORKS, pair_of(of_both, model.path).sub_networks, strict=True):
        predictors[name] = new_predictor(device)
        predictors[name].manual_initialization(
            network, plans_manager, configuration_manager, None, model.dataset_json, "nnUNetTrainer",
            of_both.allowed_mirroring_axes,
        )
    return predictors
