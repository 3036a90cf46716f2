# SPDX-License-Identifier: Apache-2.0
"""Another architecture for sub-network B, read from the plans."""

from __future__ import annotations

from copy import deepcopy

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.plans_settings import settings_in
from nnunet_dhc.nnunet.training.recipe import ARCHITECTURE_KEYS, refuse_invalid


def configuration_of_b(
    plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> ConfigurationManager:
    """The configuration with B's architecture, or the same one where the plans name none.

    ``plans["nnunet_dhc"]["architecture_b"]`` maps the name of a configuration to an architecture in the form of the
    plans' own key ``architecture``. nnU-Net hands over a configuration without its name, so it is found by content.

    Raises:
        UserError: The architecture lacks a key, or the plans a configuration that has one.
    """
    by_configuration = settings_in(plans_manager.plans).get("architecture_b", {})
    refuse_invalid({"architecture_b": by_configuration}, f"plans {plans_manager.plans_name}")
    for name, architecture in by_configuration.items():
        if name not in plans_manager.available_configurations:
            raise UserError(
                f"plans {plans_manager.plans_name}: architecture_b names configuration {name}, which the plans "
                f"do not have ({', '.join(plans_manager.available_configurations)})"
            )
        if plans_manager.get_configuration(name).configuration == configuration_manager.configuration:
            configuration = deepcopy(configuration_manager.configuration)
            configuration["architecture"] = {key: architecture[key] for key in ARCHITECTURE_KEYS}
            return ConfigurationManager(configuration)
    return configuration_manager
