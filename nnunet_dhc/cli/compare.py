# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc compare``: any trainers on the same cases."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_dhc.cli._processes import process_count

HELP = "compare trainers (stock nnU-Net included) on the same cases: tables, tests and a page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``nnunet_dhc compare``."""
    trainings = parser.add_argument_group("trainings, by their validation folders")
    trainings.add_argument("-d", metavar="DATASET", help="dataset number or name")
    trainings.add_argument("-c", nargs="+", default=["3d_fullres"], metavar="CONFIG", help="configurations")
    trainings.add_argument("-tr", nargs="+", metavar="[NAME=]TRAINER[@PLANS]",
                           help="trainers, one row each; with a name for the row and plans of its own if wanted")
    trainings.add_argument("-p", nargs="+", default=["nnUNetPlans"], metavar="PLANS", help="plans")
    trainings.add_argument("-f", nargs="+", metavar="FOLD", help="folds; default: those that were validated")
    trainings.add_argument("--results-roots", nargs="+", type=Path, metavar="DIR",
                           help="results folders of repeats (seeds); default: nnUNet_results")
    folders = parser.add_argument_group("folders of predictions, instead of trainings")
    folders.add_argument("-i", nargs="+", action="extend", metavar="NAME=DIR",
                         help="predictions; a name given twice is two repeats")
    folders.add_argument("-ref", type=Path, metavar="DIR", help="reference label maps")
    folders.add_argument("-djfile", type=Path, metavar="FILE", help="dataset.json")
    folders.add_argument("--images", type=Path, metavar="DIR", help="images (CASE_0000), for the pictures")
    parser.add_argument("-o", type=Path, default=Path("comparison"), metavar="DIR", help="output folder")
    parser.add_argument("-np", type=process_count, default=min(8, os.cpu_count() or 1), metavar="N", help="processes")
    parser.add_argument("--protocol", choices=["standard", "dhc"], default="standard",
                        help="dhc: the metrics of the DHC paper's tables")
    parser.add_argument("--baseline", metavar="ROW",
                        help="row that the others are compared with; default: stock, else the first")
    parser.add_argument("--allow-different", action="store_true", help="compare though cases or labeled cases differ")
    parser.add_argument("--anonymise", action="store_true", help="number the cases; no identifiers, no paths")
    parser.add_argument("--no-images", action="store_true", help="leave out pictures of scans")


def run(args: argparse.Namespace) -> None:
    """Collect, compare, write, and print the table."""
    from nnunet_dhc.cli._output import check_output_folder
    from nnunet_dhc.reporting.run_compare import compare_from_arguments

    check_output_folder(args.o)
    compare_from_arguments(args)
