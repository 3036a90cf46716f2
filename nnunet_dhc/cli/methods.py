# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc methods``: every trainer of this package, without importing torch."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

HELP = "list the trainers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> None:
    """Print the table of methods."""
    from nnunet_dhc.reporting.text_table import aligned
    from nnunet_dhc.trainers.table import METHODS

    if args.json:
        print(json.dumps([asdict(method) for method in METHODS.values()], indent=1))
        return
    rows = [("trainer (-tr)", "weights of A, B", "what it is", "paper")]
    rows += [(m.name, f"{m.weighting_a}, {m.weighting_b}", m.summary, m.paper) for m in METHODS.values()]
    print("\n".join(aligned(rows, left=range(4))))
    print("\nEvery name also exists with a number of epochs: nnUNetTrainerDHC_1epoch, nnUNetTrainerDHC_250epochs.")
