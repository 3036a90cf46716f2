# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc import``: weights of one network for a pair's ``-pretrained_weights``."""

from __future__ import annotations

import argparse

HELP = "make a file for -pretrained_weights from a stock nnU-Net checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, spelled as nnU-Net spells its own."""
    parser.add_argument("-i", required=True, metavar="FILE", help="checkpoint of one network")
    parser.add_argument("-net", required=True, choices=["A", "B", "both"], help="sub-network(s) that get the weights")
    parser.add_argument("-o", required=True, metavar="FILE", help="file to write; must not exist")
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name, for example 501")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="for example 3d_fullres")
    parser.add_argument("-tr", default="nnUNetTrainerDHC", metavar="TRAINER", help="default: nnUNetTrainerDHC")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")


def run(args: argparse.Namespace) -> None:
    """Import."""
    from nnunet_dhc.nnunet.models.import_weights import ImportRequest, import_weights

    import_weights(ImportRequest(args.i, args.net, args.d, args.c, args.tr, args.p), args.o)
