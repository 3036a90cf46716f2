# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc adjust``: offsets of the classes' logits, chosen on the validation cases."""

from __future__ import annotations

import argparse

HELP = "choose an offset for the logit of each class on the validation cases; writes checkpoint_adjusted.pth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, spelled as nnU-Net spells its own."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name, for example 501")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="for example 3d_fullres")
    parser.add_argument("-tr", default="nnUNetTrainerDHC", metavar="TRAINER",
                        help="any trainer, nnU-Net's own too (default: nnUNetTrainerDHC)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-f", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD",
                        help="fold numbers (default: 0 1 2 3 4)")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="NAME", help="default: checkpoint_final.pth")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], help="where to predict (default: cuda if there)")


def run(args: argparse.Namespace) -> None:
    """Adjust each fold."""
    from nnunet_dhc.cli._device import chosen_device
    from nnunet_dhc.nnunet.models.adjust_model import adjust_folds
    from nnunet_dhc.nnunet.network.model_folder import find_model_folder, parse_fold

    device = chosen_device(args.device)
    folds = [parse_fold(fold) for fold in args.f]
    adjust_folds(find_model_folder(args.d, args.tr, args.p, args.c), folds, args.chk, device)
