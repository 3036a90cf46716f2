# SPDX-License-Identifier: Apache-2.0
"""Write a new plans identifier whose key ``nnunet_dhc`` overrides settings of the recipe."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dhc.errors import UserError, first_line
from nnunet_dhc.nnunet.host.atomic_files import replace_json
from nnunet_dhc.nnunet.host.dataset_places import locate_dataset, read_plans
from nnunet_dhc.nnunet.host.plans_settings import PLANS_KEY, settings_in
from nnunet_dhc.nnunet.training.architecture_b import configuration_of_b
from nnunet_dhc.nnunet.training.objective import make_weighting
from nnunet_dhc.nnunet.training.recipe import Recipe, overridden


def parse_setting(text: str) -> tuple[str, Any]:
    """``name=value`` with the value in JSON, or a bare word.

    Raises:
        UserError: No ``=`` in the text.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--set {text}: write it as name=value, for example --set lambda_max=0.2")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value.strip()


def configure_plans(
    dataset_name_or_id: str,
    plans_identifier: str,
    new_identifier: str,
    settings: Mapping[str, Any],
    architecture_b_from: str | None = None,
    configurations: Sequence[str] | None = None,
    overwrite: bool = False,
    trainer: str = "the base recipe",
    recipe: Recipe = Recipe(),
) -> Path:
    """Copy a plans file to a new identifier and put settings into it.

    Args:
        settings: Overrides of the recipe by name; they are added to those that the old plans have.
        architecture_b_from: Plans identifier whose architectures become sub-network B's.
        configurations: Configurations that get that architecture (default: all that both plans have).
        trainer: Whose recipe the settings are meant for; messages name it.
        recipe: That recipe: whether a setting is valid may depend on another one. It isn't written.

    Returns:
        Path of the new plans file.

    Raises:
        UserError: No such dataset, missing, damaged or existing plans file, unknown setting or value, an architecture
            that does not fit or can't be built.
    """
    places = locate_dataset(dataset_name_or_id)
    folder = places.preprocessed
    if not re.fullmatch(r"[\w.-]+", new_identifier) or "__" in new_identifier:
        raise UserError(
            f"-o {new_identifier}: the identifier becomes a part of names of files and folders; give letters, digits, "
            "points, hyphens and single underscores"
        )
    plans = read_plans(folder, plans_identifier)
    target = folder / f"{new_identifier}.json"
    if plans_identifier == new_identifier:
        raise UserError(
            f"-o {new_identifier}: the new plans need another identifier than the old ones, so that their "
            "results stay apart"
        )
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; choose another -o or pass --overwrite")
    ours = {**settings_in(plans), **settings}
    if architecture_b_from:
        of_others = ours.get("architecture_b") or {}
        found = _architectures(plans, read_plans(folder, architecture_b_from), configurations)
        ours["architecture_b"] = {**of_others, **found} if isinstance(of_others, Mapping) else found
    check_settings(ours, recipe, f"{target} for {trainer} (-tr names another trainer)")
    unknown = sorted(set(ours.get("architecture_b", {})) - set(plans["configurations"]))
    if unknown:
        raise UserError(
            f"{target}: architecture_b names configuration {', '.join(unknown)}, which {plans_identifier} doesn't have"
        )
    new_plans = deepcopy(plans)
    new_plans["plans_name"] = new_identifier
    new_plans[PLANS_KEY] = ours
    if ours.get("architecture_b"):
        _require_buildable(new_plans, places.dataset_json(), str(target))
    replace_json(target, new_plans)
    return target


def check_settings(settings: Mapping[str, Any], recipe: Recipe, source: str) -> None:
    """Refuse settings that are unknown, out of range, or don't fit the recipe that they override.

    Raises:
        UserError: Names ``source``, the setting and what is valid.
    """
    recipe = overridden(recipe, settings, source)
    for name, options in (
        (recipe.weighting_a, recipe.weighting_a_options),
        (recipe.weighting_b, recipe.weighting_b_options),
    ):
        try:
            make_weighting(name, 2, recipe.weighting_mode, options)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None


def _require_buildable(plans: dict[str, Any], dataset_json: dict[str, Any], source: str) -> None:
    manager = PlansManager(deepcopy(plans))
    outputs = manager.get_label_manager(dataset_json).num_segmentation_heads
    for name in plans[PLANS_KEY]["architecture_b"]:
        of_b = configuration_of_b(manager, manager.get_configuration(name))
        channels = determine_num_input_channels(manager, of_b, dataset_json)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nnU-Net warns before it looks in its own package
                nnUNetTrainer.build_network_architecture(manager, of_b, channels, outputs, True)
        except Exception as error:  # whatever an architecture that nnU-Net finds by its name may raise
            raise UserError(
                f"{source}: architecture_b of {name} can't be built ({type(error).__name__}: {first_line(error)}): "
                "give another one, for example that of plans of nnU-Net with --architecture-b-from PLANS"
            ) from error


def _architectures(plans: dict, other: dict, configurations: Sequence[str] | None) -> dict[str, Any]:
    ours, theirs = PlansManager(deepcopy(plans)), PlansManager(deepcopy(other))
    common = [c for c in ours.available_configurations if c in theirs.available_configurations]
    chosen = configurations or common
    unknown = sorted(set(chosen) - set(common))
    if unknown or not chosen:
        raise UserError(
            f"configuration {', '.join(unknown) or '(any)'} is not in both {plans['plans_name']} and "
            f"{other['plans_name']}; both have {', '.join(common) or 'none'}"
        )
    architectures = {}
    for name in chosen:
        a, b = ours.get_configuration(name), theirs.get_configuration(name)
        if a.pool_op_kernel_sizes != b.pool_op_kernel_sizes:
            raise UserError(
                f"{name}: the architecture of {other['plans_name']} has strides {b.pool_op_kernel_sizes}, that of "
                f"{plans['plans_name']} {a.pool_op_kernel_sizes}; A and B need outputs of the same sizes"
            )
        architectures[name] = b.configuration["architecture"]
    return architectures
