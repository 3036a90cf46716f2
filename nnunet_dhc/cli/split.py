# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc split``: treat a part of a labeled dataset as unlabeled, fold by fold."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_dhc.cli._processes import process_count
from nnunet_dhc.errors import UserError

HELP = "write splits_final.json with labeled, unlabeled and validation cases"


def fraction_or_count(text: str) -> float | int:
    """``0.2`` is a fraction, ``4`` a count; ``1`` is one case and ``1.0`` is all of them."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a fraction such as 0.2 nor a count such as 4") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name, for example 501")
    parser.add_argument("--labeled", type=fraction_or_count, metavar="PART",
                        help="labeled cases of each fold: a fraction of its training cases (0.2) or a count (4)")
    parser.add_argument("--folds", type=int, metavar="N", help="folds with disjoint validation cases (default: 5)")
    parser.add_argument("--seed", type=int, nargs="+", metavar="N",
                        help="one seed: nested draws, the 10%% cases are among the 20%% cases; several seeds: the "
                             "folds of the first, with other labeled cases for each, one after the other in the file")
    parser.add_argument("--val", type=fraction_or_count, metavar="PART",
                        help="with --folds 1: validation cases, a fraction of all cases or a count (default: 0.2)")
    parser.add_argument("--groups", type=Path, metavar="CSV",
                        help="columns identifier,group: scans of one group (patient) stay together")
    parser.add_argument("--keep", action="store_true",
                        help="keep the folds of the existing file and divide only their training cases")
    parser.add_argument("--protocol", choices=["btcv20", "amos5"], help="a published split instead of a draw")
    parser.add_argument("--unstratified", action="store_true",
                        help="draw at random without reading labels (default: every class occurs among the labeled "
                             "cases where possible, for which the labels of all cases are read)")
    parser.add_argument("--strict", action="store_true",
                        help="also write plans whose intensity statistics come from the fold's labeled cases only")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans that --strict starts from")
    parser.add_argument("-np", type=process_count, default=4, metavar="N", help="processes for labels (default: 4)")
    parser.add_argument("--dry-run", action="store_true", help="show the split and write nothing")


def run(args: argparse.Namespace) -> None:
    """Make the split and print it."""
    from nnunet_dhc.nnunet.splits.split_table import split_table
    from nnunet_dhc.nnunet.splits.split_writer import SplitRequest, make_split

    _refuse_unused(args)
    folds, seeds = 5 if args.folds is None else args.folds, args.seed or [0]
    if folds < 1:
        raise UserError(f"--folds {folds}: at least 1")
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seed {' '.join(map(str, seeds))}: give each seed once, 0 or higher")
    request = SplitRequest(args.labeled, folds, seeds, args.val, args.groups, args.protocol, args.keep,
                           not args.unstratified)
    result = make_split(args.d, request, dry_run=args.dry_run, strict_from=args.p if args.strict else None,
                        num_processes=args.np)
    print(split_table(result, args.dry_run))


def _refuse_unused(args: argparse.Namespace) -> None:
    """Options that another one makes useless."""
    of_a_draw = {"--folds": args.folds, "--val": args.val}
    if args.protocol:
        of_a_draw |= {"--labeled": args.labeled, "--seed": args.seed, "--groups": args.groups,
                      "--keep": args.keep or None}
    given = [name for name, value in of_a_draw.items() if value is not None]
    if given and args.protocol:
        raise UserError(f"--protocol {args.protocol} is a published split, which nothing is drawn for: leave out "
                        f"{', '.join(given)}")
    if given and args.keep:
        raise UserError(f"--keep takes the folds and validation cases of the existing file: leave out "
                        f"{', '.join(given)}, or --keep")
