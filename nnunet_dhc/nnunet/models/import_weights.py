# SPDX-License-Identifier: Apache-2.0
"""Put weights of stock nnU-Net, or of a pretraining, into sub-network A, B or both, for ``-pretrained_weights``."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import new_output, write_and_sync
from nnunet_dhc.nnunet.host.dataset_places import locate_dataset, read_plans
from nnunet_dhc.nnunet.network.cotrained_pair import CoTrainedPair, initialize_sub_networks
from nnunet_dhc.nnunet.network.model_folder import file_hash
from nnunet_dhc.nnunet.training import seeding
from nnunet_dhc.nnunet.training.checkpoint import STATE_KEY, checkpoint_bytes
from nnunet_dhc.nnunet.training.recipe import recipe_from_plans
from nnunet_dhc.nnunet.training.run_record import installed_versions

HEADS = ".seg_layers."  # nnU-Net leaves these out of pretrained weights, whatever their shape
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class ImportRequest:
    """Which weights go where.

    Attributes:
        source: Checkpoint of one network: stock nnU-Net's, a pretraining's with the same names, or a bare state dict.
        network: "A", "B" or "both".
    """

    source: str | os.PathLike
    network: str
    dataset: str | int
    configuration: str
    trainer: str = "nnUNetTrainerDHC"
    plans_identifier: str = "nnUNetPlans"


def import_weights(request: ImportRequest, output: str | os.PathLike, say: Callable[[str], None] = print) -> Path:
    """Write a file that ``nnUNetv2_train ... -pretrained_weights`` accepts for a pair.

    The other sub-network, where only one is named, starts as a new training would start it.

    Args:
        output: File to write; it must not exist.
        say: Gets each message.

    Raises:
        UserError: The file is no single network, does not fit the plans, or the output exists.
    """
    output = Path(output)
    if os.path.lexists(output):
        raise UserError(f"-o {output} exists: choose another name")
    weights = read_single_network(request.source)
    pair = _new_pair(request)
    targets = {"A": ["a"], "B": ["b"], "both": ["a", "b"]}[request.network]
    for name in targets:
        fill(getattr(pair, f"sub_network_{name}"), weights, name.upper(), os.fspath(request.source))
    if request.network == "both":
        say(
            "WARNING: A and B start alike up to their segmentation heads; they learn from each other through what "
            "differs between them, so -net A or -net B, which leaves the other at its own start, is the safer choice"
        )
    _save(output, pair, request)
    say(
        f"{output}: use it with nnUNetv2_train {request.dataset} {request.configuration} FOLD -tr {request.trainer} "
        f"-p {request.plans_identifier} -pretrained_weights {shlex.quote(str(output))}"
    )
    return output


def read_single_network(path: str | os.PathLike) -> dict[str, Tensor]:
    """Weights of one network by nnU-Net's names, without the prefixes of DDP and torch.compile.

    Raises:
        UserError: Not readable, no weights in it, or a pair.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
    except FileNotFoundError as error:
        raise UserError(f"-i {path} does not exist") from error
    except Exception as error:
        raise UserError(
            f"-i {path} can't be read ({type(error).__name__}): it is damaged or not a checkpoint"
        ) from error
    weights = content
    for key in ("network_weights", "state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            weights = content[key]
            break
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"-i {path} holds no weights: give a checkpoint with network_weights, as nnU-Net writes it")
    weights = {_bare(key): value for key, value in weights.items() if isinstance(value, Tensor)}
    if STATE_KEY in content or any(key.startswith("sub_network_a.") for key in weights):
        raise UserError(f"-i {path} is a pair already: give it to -pretrained_weights as it is")
    return weights


def fill(network: nn.Module, weights: Mapping[str, Tensor], name: str, source: str) -> None:
    """Load weights into a sub-network; segmentation heads keep their own start.

    Raises:
        UserError: A key is missing or has another shape; the message names the first one and both shapes.
    """
    state = network.state_dict()
    body = [key for key in state if HEADS not in key]
    for key in body:
        here, there = weights.get(key), state[key]
        if here is None or here.shape != there.shape:
            found = "is not in the file" if here is None else f"has shape {tuple(here.shape)} in the file"
            raise UserError(
                f"{source} does not fit sub-network {name} of the plans: {key} {found}, the network's has shape "
                f"{tuple(there.shape)}. Use plans with the architecture that the file was trained with"
            )
    network.load_state_dict({**state, **{key: weights[key] for key in body}})


def _bare(key: str) -> str:
    while key.startswith(_WRAPPERS):
        key = key.partition(".")[2]
    return key


def _new_pair(request: ImportRequest) -> CoTrainedPair:
    """The pair as a new training would start it."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where it looks
            cls = recursive_find_trainer_class_by_name(request.trainer)
    except RuntimeError as error:
        raise UserError(f"-tr {request.trainer} is not found; nnunet_dhc methods lists our trainers") from error
    places = locate_dataset(request.dataset)
    plans = PlansManager(read_plans(places.preprocessed, request.plans_identifier))
    if request.configuration not in plans.available_configurations:
        raise UserError(
            f"{request.plans_identifier} has no configuration {request.configuration}: choose from "
            f"{', '.join(plans.available_configurations)}"
        )
    dataset_json = places.dataset_json()
    configuration = plans.get_configuration(request.configuration)
    seed = seeding.requested_seed()
    if seed is not None:
        seeding.seed_everything(seed)
    pair = cls.build_network_architecture(
        plans,
        configuration,
        determine_num_input_channels(plans, configuration, dataset_json),
        plans.get_label_manager(dataset_json).num_segmentation_heads,
        True,
    )
    if not isinstance(pair, CoTrainedPair):
        raise UserError(f"-tr {request.trainer} trains no pair of networks; nnunet_dhc methods lists those that do")
    recipe = recipe_from_plans(cls.recipe, plans.plans)
    initialize_sub_networks(pair, recipe.initialization_a, recipe.initialization_b)
    return pair


def _save(output: Path, pair: CoTrainedPair, request: ImportRequest) -> None:
    content: dict[str, Any] = {
        "network_weights": pair.state_dict(),
        "imported_by_nnunet_dhc": {
            "file": os.path.basename(request.source),
            "sha256": file_hash(request.source),
            "network": request.network,
            "trainer": request.trainer,
            "plans": request.plans_identifier,
            "configuration": request.configuration,
            "versions": installed_versions(),
        },
    }
    with new_output(output, ".pth") as partial:
        write_and_sync(partial, checkpoint_bytes(content))
