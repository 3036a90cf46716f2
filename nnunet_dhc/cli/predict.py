# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc predict``: nnUNetv2_predict (or, with -m, nnUNetv2_predict_from_modelfolder) with the trainers found."""

from __future__ import annotations

import argparse

HELP = ("nnUNetv2_predict with the trainers found (with -m: nnUNetv2_predict_from_modelfolder); takes its arguments "
        "(without -tr: stock nnU-Net)")
HANDS_OVER = True


def run(args: argparse.Namespace) -> None:
    """Call nnU-Net's entry point with the arguments as they are."""
    from nnunet_dhc.cli._stock import note_stock_trainer
    from nnunet_dhc.nnunet.host.handover import call_nnunet

    note_stock_trainer("predict", args.arguments)
    entry = "predict_entry_point_modelfolder" if "-m" in args.arguments else "predict_entry_point"
    call_nnunet("nnunet_dhc predict", f"nnunetv2.inference.predict_from_raw_data:{entry}", args.arguments)
