# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc report``: the page of one training, at any time."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_dhc.cli._processes import process_count

HELP = "page of one training: curves while it runs, scores when it is validated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``nnunet_dhc report``."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset number or name")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIG", help="configuration")
    parser.add_argument("-tr", default="nnUNetTrainerDHC", metavar="TRAINER", help="trainer")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds; default: those that were started")
    parser.add_argument("--results-roots", nargs="+", type=Path, metavar="DIR",
                        help="results folders of repeats (seeds); default: nnUNet_results")
    parser.add_argument("-o", type=Path, default=Path("report"), metavar="DIR", help="output folder")
    parser.add_argument("-np", type=process_count, default=min(8, os.cpu_count() or 1), metavar="N", help="processes")
    parser.add_argument("--protocol", choices=["standard", "dhc"], default="standard",
                        help="dhc: the metrics of the DHC paper's tables")
    parser.add_argument("--anonymise", action="store_true", help="number the cases; no identifiers, no paths")
    parser.add_argument("--no-images", action="store_true", help="leave out pictures of scans")


def run(args: argparse.Namespace) -> None:
    """Collect, build and write."""
    from nnunet_dhc.cli._output import check_output_folder
    from nnunet_dhc.reporting.run_compare import report_from_arguments

    check_output_folder(args.o)
    report_from_arguments(args)
