# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc train``: nnUNetv2_train where the automatic lookup of trainers is switched off, and for torchrun."""

from __future__ import annotations

import argparse

HELP = "nnUNetv2_train with the trainers found; takes its arguments (without -tr: stock nnU-Net)"
HANDS_OVER = True


def run(args: argparse.Namespace) -> None:
    """Call nnU-Net's entry point with the arguments as they are."""
    from nnunet_dhc.cli._stock import note_stock_trainer
    from nnunet_dhc.nnunet.host.handover import call_nnunet
    from nnunet_dhc.nnunet.reliability.torchrun import process_group

    note_stock_trainer("train", args.arguments)
    with process_group(args.arguments) as (program, arguments):
        call_nnunet(program, "nnunetv2.run.run_training:run_training_entry", arguments)
