# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc train``: nnUNetv2_train with the trainers found, also where the automatic lookup is switched off."""

from __future__ import annotations

import argparse

HELP = "nnUNetv2_train with the trainers found; takes its arguments"
HANDS_OVER = True


def run(args: argparse.Namespace) -> None:
    """Call nnU-Net's entry point with the arguments as they are."""
    from nnunet_dhc.nnunet.handover import call_nnunet

    call_nnunet("nnunet_dhc train", "nnunetv2.run.run_training:run_training_entry", args.arguments)
