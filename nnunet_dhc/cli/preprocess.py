# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc preprocess``: preprocess unlabeled cases ahead of training."""

from __future__ import annotations

import argparse

from nnunet_dhc.cli._processes import process_count

HELP = "Preprocess unlabeled cases (imagesUn and the split file's key \"unlabeled\") ahead of training."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, spelled as nnU-Net spells its own."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name, for example 501")
    parser.add_argument("-c", nargs="+", required=True, metavar="CONFIGURATION", help="for example 3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument(
        "-f",
        nargs="+",
        default=None,
        metavar="FOLD",
        help="fold numbers, or the one fold named all; default: the unlabeled cases of every fold of the split file",
    )
    parser.add_argument("-np", type=process_count, metavar="N", help="processes (default: nnU-Net's own number)")
    parser.add_argument("--skip-bad", action="store_true", help="exclude scans that can't be used, and go on")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Preprocess for each configuration."""
    from nnunet_dhc.nnunet.unlabeled.preprocess_ahead import preprocess_ahead

    preprocess_ahead(
        args.d, args.c, args.p, args.f, num_processes=args.np, skip_bad=args.skip_bad, show_progress=not args.quiet
    )
    return 0
