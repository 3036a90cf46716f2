# SPDX-License-Identifier: Apache-2.0
"""Call nnU-Net's own entry points with our trainers in its reach."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from nnunet_dhc._autoload import register


def call_nnunet(program: str, entry_point: str, arguments: Sequence[str]) -> None:
    """Run ``module:function`` as if it had been started as ``program`` with these arguments.

    The lookup variable is set for this process and, through the environment, for every worker it starts.
    """
    register()
    module, function = entry_point.split(":")
    entry = getattr(import_module(module), function)
    kept = sys.argv
    # nnU-Net's parsers read sys.argv, and take the name in their usage from its first entry.
    sys.argv = [program, *arguments]
    try:
        entry()
    finally:
        sys.argv = kept
