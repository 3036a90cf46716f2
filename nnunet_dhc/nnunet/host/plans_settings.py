# SPDX-License-Identifier: Apache-2.0
"""The key of a plans file under which our settings are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_dhc.errors import UserError

PLANS_KEY = "nnunet_dhc"
CONFIGURE = "nnunet_dhc configure -d DATASET -p PLANS -o NEW_PLANS"


def settings_in(plans: Mapping[str, Any]) -> Mapping[str, Any]:
    """What plans override, unchecked.

    Raises:
        UserError: The plans' key holds no JSON object.
    """
    settings = plans.get(PLANS_KEY, {})
    if not isinstance(settings, Mapping):
        raise UserError(
            f'plans {plans.get("plans_name", "?")}: "{PLANS_KEY}" must be a JSON object of settings; make such plans '
            f"with {CONFIGURE}"
        )
    return settings
