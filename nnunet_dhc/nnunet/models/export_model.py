# SPDX-License-Identifier: Apache-2.0
"""Turn one sub-network of a trained pair into a model folder of stock nnU-Net."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import new_output, write_and_sync
from nnunet_dhc.nnunet.host.plans_settings import PLANS_KEY
from nnunet_dhc.nnunet.models.sub_network_dice import NETWORKS, SubNetworkDice, mean_foreground_dice
from nnunet_dhc.nnunet.network.model_folder import ModelFolder, file_hash, find_model_folder, option_of_device
from nnunet_dhc.nnunet.splits.strict_plans import STATISTICS_KEY
from nnunet_dhc.nnunet.training.architecture_b import configuration_of_b
from nnunet_dhc.nnunet.training.checkpoint import STATE_KEY, checkpoint_bytes, read_checkpoint
from nnunet_dhc.nnunet.training.run_record import content_hash, installed_versions

SIDECAR = "exported_by_nnunet_dhc.json"
STOCK_TRAINER = "nnUNetTrainer"


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    Attributes:
        network: "A", "B", or "best" by validation Dice over all folds together.
        checkpoint_name: For example ``checkpoint_final.pth``.
    """

    dataset: str | int
    configuration: str
    folds: Sequence[int | str]
    network: str = "best"
    trainer: str = "nnUNetTrainerDHC"
    plans_identifier: str = "nnUNetPlans"
    checkpoint_name: str = "checkpoint_final.pth"


def export_model(
    request: ExportRequest, output: str | os.PathLike, device: torch.device, say: Callable[[str], None] = print
) -> Path:
    """Write a model folder that predicts without this package, at the cost of one network.

    Args:
        output: Folder to make; it must not exist.
        device: Where ``best`` predicts the validation cases, if that was not done before.
        say: Gets each message.

    Returns:
        The folder.

    Raises:
        UserError: The output exists, a checkpoint is missing or foreign, or the sub-network is not the plans' own.
    """
    output = Path(output)
    if os.path.lexists(output):
        raise UserError(f"-o {output} exists; an exported model never replaces a folder: choose another one")
    if not request.folds or len(set(request.folds)) < len(request.folds):
        raise UserError("-f: name each fold once")
    model = find_model_folder(request.dataset, request.trainer, request.plans_identifier, request.configuration)
    model.require_checkpoints(request.folds, request.checkpoint_name)
    for fold in request.folds:
        read_checkpoint(os.fspath(model.checkpoint(fold, request.checkpoint_name)), model.trainer)
    network = request.network
    _check_architecture(model, "B" if network == "best" else network)  # before the validation cases are predicted
    if network == "best":
        dice = _validation_dice(model, request, device)
        network = _better(dice, say)
        if "all" in request.folds:
            say("WARNING: of fold all, A and B were compared on cases that both were trained on")
    else:
        dice = _validation_dice(model, request, None)
    with new_output(output) as partial:
        partial.mkdir()
        sources = _write_folder(partial, model, request, network, dice)
    for source in sources:
        if source["no_say_in"]:
            say(
                f"WARNING: fold {source['fold']}: {network} hasn't learned {', '.join(source['no_say_in'])}, which the "
                "other sub-network decides in the pair's predictions: the exported model will mostly miss them"
            )
    folds = " ".join(map(str, request.folds))
    say(
        f"{output}: sub-network {network} of {len(sources)} fold(s) as a stock nnU-Net model. Predict with "
        f"nnUNetv2_predict_from_modelfolder -i IMAGES -o OUT -m {shlex.quote(str(output))} "
        f"-f {folds}{model.option_of_previous_stage}{option_of_device(device)}"
        + ("" if request.checkpoint_name == "checkpoint_final.pth" else f" -chk {request.checkpoint_name}")
    )
    return output


def sub_network_state(checkpoint: Mapping[str, Any], network: str) -> dict[str, Tensor]:
    """Weights of A or B under nnU-Net's own names."""
    prefix = f"sub_network_{network.lower()}."
    return {key[len(prefix) :]: value for key, value in checkpoint["network_weights"].items() if key.startswith(prefix)}


def without_say(checkpoint: Mapping[str, Any], network: str) -> list[str]:
    """Names of the classes from which A or B abstains, because it hasn't learned them."""
    votes = checkpoint["network_weights"].get("votes")
    if votes is None:
        return []
    of_network = votes["AB".index(network)].tolist()
    return [name for name, vote in zip(checkpoint[STATE_KEY]["class_names"], of_network, strict=True) if vote == 0]


def stock_checkpoint(checkpoint: Mapping[str, Any], network: str, num_parameters: int) -> dict[str, Any]:
    """nnU-Net's own checkpoint with one sub-network, in types that load without executing code.

    Everything that ``nnUNetTrainer.load_checkpoint`` asks for is there; the optimizer has its settings but no momentum.

    Args:
        num_parameters: Parameters of the network that the optimizer would hold.
    """
    groups = [
        {**group, "params": list(range(num_parameters))} for group in checkpoint["optimizer_state"]["param_groups"]
    ]
    arguments = dict(checkpoint["init_args"])
    arguments["plans"] = without_our_keys(arguments["plans"])
    return {
        "network_weights": sub_network_state(checkpoint, network),
        "optimizer_state": {"state": {}, "param_groups": groups},
        "grad_scaler_state": checkpoint["grad_scaler_state"],
        "logging": _plain(checkpoint["logging"]),
        "_best_ema": _plain(checkpoint["_best_ema"]),
        "current_epoch": checkpoint["current_epoch"],
        "init_args": _plain(arguments),
        "trainer_name": STOCK_TRAINER,
        "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
    }


def without_our_keys(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Plans as stock nnU-Net would have them."""
    return {key: value for key, value in plans.items() if key not in (PLANS_KEY, STATISTICS_KEY)}


def _validation_dice(
    model: ModelFolder, request: ExportRequest, device: torch.device | None
) -> dict[str, float | None] | None:
    """Mean foreground Dice of A and of B over the cases of all folds; without a device only what is remembered."""
    cases: dict[str, list] = {name: [] for name in NETWORKS}
    for fold in request.folds:
        fold_dice = SubNetworkDice(model, fold, request.checkpoint_name)
        measured = fold_dice.remembered() if device is None else fold_dice.measure(device)
        if measured is None:
            return None
        for name in NETWORKS:
            cases[name] += measured[name].values()
    return {name: mean_foreground_dice(cases[name]) for name in NETWORKS}


def _better(dice: Mapping[str, float | None], say: Callable[[str], None]) -> str:
    if None in dice.values():
        raise UserError("the validation cases have no foreground, so neither network is the better: choose -net A or B")
    better = "B" if dice["B"] > dice["A"] else "A"
    say(f"Validation Dice alone: A {dice['A']:.4f}, B {dice['B']:.4f}; exporting {better}.")
    return better


def _check_architecture(model: ModelFolder, network: str) -> None:
    """Refuse a sub-network that stock nnU-Net would not build from the plans."""
    plans_manager, configuration_manager = model.managers()
    other = configuration_of_b(plans_manager, configuration_manager)
    if network == "B" and other.configuration["architecture"] != configuration_manager.configuration["architecture"]:
        raise UserError(
            f"sub-network B of {model.path.name} has an architecture of its own ({other.network_arch_class_name}), "
            "which stock nnU-Net would not build from these plans: export -net A"
        )


def _stock_network(model: ModelFolder) -> nn.Module:
    plans_manager, configuration_manager = model.managers()
    return nnUNetTrainer.build_network_architecture(
        plans_manager,
        configuration_manager,
        determine_num_input_channels(plans_manager, configuration_manager, model.dataset_json),
        plans_manager.get_label_manager(model.dataset_json).num_segmentation_heads,
        enable_deep_supervision=False,
    )


def first_difference(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first key that one of the two lacks or that has another shape, with both shapes; None if they agree."""
    for key in [*expected, *state]:
        here, there = (None if value is None else tuple(value.shape) for value in (state.get(key), expected.get(key)))
        if here != there:
            return f"{key} has shape {here or '(none)'} instead of {there or '(none)'}"
    return None


def _write_folder(
    folder: Path, model: ModelFolder, request: ExportRequest, network: str, dice: dict[str, float | None] | None
) -> list[dict[str, Any]]:
    plans = without_our_keys(model.plans)
    stock_network = _stock_network(model)
    expected = stock_network.state_dict()
    sources = []
    for fold in request.folds:
        path = model.checkpoint(fold, request.checkpoint_name)
        checkpoint = read_checkpoint(str(path), request.trainer)
        stock = stock_checkpoint(checkpoint, network, len(list(stock_network.parameters())))
        if not stock["network_weights"]:
            raise UserError(f"{path} (trainer {checkpoint['trainer_name']}) holds no pair of sub-networks")
        difference = first_difference(stock["network_weights"], expected)
        if difference:
            raise UserError(
                f"sub-network {network} in {path} is not what stock nnU-Net builds from the plans, so it can't be "
                f"exported: {difference}"
            )
        target = folder / f"fold_{fold}" / request.checkpoint_name
        target.parent.mkdir()
        write_and_sync(target, checkpoint_bytes(stock))
        sources.append(
            {
                "fold": fold,
                "checkpoint": request.checkpoint_name,
                "sha256": file_hash(path),
                "epochs": checkpoint["current_epoch"],
                "recipe": checkpoint[STATE_KEY].get("recipe"),
                "no_say_in": without_say(checkpoint, network),
                "exported_sha256": file_hash(target),
            }
        )
    _write_json(folder / "plans.json", plans)
    _write_json(folder / "dataset.json", model.dataset_json)
    fingerprint = model.path / "dataset_fingerprint.json"
    if fingerprint.is_file():
        shutil.copyfile(fingerprint, folder / fingerprint.name)
    _write_json(
        folder / SIDECAR,
        {
            "format": 1,
            "network": network,
            "asked_for": request.network,
            "dataset": model.dataset,
            "trainer": model.trainer,
            "plans": model.plans_identifier,
            "configuration": model.configuration,
            "plans_hash": content_hash(model.plans),
            "exported_plans_hash": content_hash(plans),
            "folds": sources,
            "validation_dice": dice,
            "versions": installed_versions(),
        },
    )
    return sources


def _write_json(path: Path, content: Any) -> None:
    write_and_sync(path, (json.dumps(content, indent=4) + "\n").encode())


def _plain(value: Any) -> Any:
    """The same value without NumPy's types, which a checkpoint can't hold if it is to load without executing code."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return value
