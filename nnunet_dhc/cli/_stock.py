# SPDX-License-Identifier: Apache-2.0
"""A note where nnU-Net's commands, called through this package, would take nnU-Net's own trainer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def note_stock_trainer(verb: str, arguments: Sequence[str]) -> None:
    """Say on standard error, once for all ranks, that no trainer was named."""
    asks_for_help = not arguments or {"-h", "--help"}.intersection(arguments)
    names_one = any(argument.startswith("-tr") or argument == "-m" for argument in arguments)
    if not (asks_for_help or names_one) and os.environ.get("RANK", "0") == "0":
        print(f"nnunet_dhc {verb}: no -tr, so this is stock nnU-Net (nnUNetTrainer); for DHC add -tr nnUNetTrainerDHC",
              file=sys.stderr)
