# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc demo``: stock nnU-Net and DHC on a phantom, or on one's own data, from raw images to a report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HELP = "train stock nnU-Net and DHC on a small phantom dataset (or --data) and compare them, in about 10 minutes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", type=Path, default=Path(".demo"), metavar="DIR",
                        help="everything goes here; run again to continue (default: .demo)")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="a dataset in nnU-Net's raw format (DatasetXXX_Name) with imagesUn or a split file")
    parser.add_argument("--split", type=Path, metavar="FILE", help='split file with the key "unlabeled", with --data')
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each training (default: 10)")
    parser.add_argument("--iterations", type=int, default=50, help="steps per epoch (default: 50; nnU-Net's own: 250)")
    parser.add_argument("--patch", type=int, nargs=3, default=[24, 32, 32], metavar="N", help="patch size in voxels")
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64], metavar="N",
                        help="feature maps of each resolution of the network (default: 16 32 64)")
    parser.add_argument("-device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("-np", type=int, default=os.cpu_count() or 1, metavar="N",
                        help="processes (default: all cores)")
    parser.add_argument("--equal-time", action="store_true",
                        help="also train stock for as long as DHC took (half as long again for the whole demo)")
    parser.add_argument("--control", action="store_true",
                        help="also train the pair on the labels alone (what do the unlabeled scans add?)")


def run(args: argparse.Namespace) -> None:
    """Run the demo, or what is left of it."""
    from nnunet_dhc.cli._output import check_output_folder
    from nnunet_dhc.demo.pipeline import DemoOptions, run_demo
    from nnunet_dhc.errors import UserError

    if min(args.epochs, args.iterations, args.np, *args.patch, *args.features) < 1:
        raise UserError("--epochs, --iterations, --patch, --features and -np take positive numbers")
    check_output_folder(args.o)
    run_demo(DemoOptions(args.o, args.data, args.split, args.epochs, args.iterations, tuple(args.patch),
                         tuple(args.features), args.device, args.np, args.equal_time, args.control))
