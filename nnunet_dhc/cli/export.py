# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc export``: one sub-network as a model of stock nnU-Net."""

from __future__ import annotations

import argparse

HELP = "write a model folder that stock nnU-Net predicts with, without this package"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, spelled as nnU-Net spells its own."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name, for example 501")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="for example 3d_fullres")
    parser.add_argument("-tr", default="nnUNetTrainerDHC", metavar="TRAINER", help="default: nnUNetTrainerDHC")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-f", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD",
                        help="fold numbers, or the one fold named all (default: 0 1 2 3 4)")
    parser.add_argument("-net", choices=["A", "B", "best"], default="best",
                        help="best: the better one by validation Dice over all folds together (default)")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="folder to make; must not exist")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="NAME", help="default: checkpoint_final.pth")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], help="where best predicts (default: cuda if there)")


def run(args: argparse.Namespace) -> None:
    """Export."""
    from nnunet_dhc.cli._device import chosen_device
    from nnunet_dhc.nnunet.models.export_model import ExportRequest, export_model
    from nnunet_dhc.nnunet.network.model_folder import parse_fold

    device = chosen_device(args.device)
    folds = [parse_fold(fold) for fold in args.f]
    export_model(ExportRequest(args.d, args.c, folds, args.net, args.tr, args.p, args.chk), args.o, device)
