# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc rank``: which unlabeled scan to annotate next."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_dhc.cli._processes import process_count

HELP = "order unlabeled scans by what labeling them would teach: table and page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, spelled as nnU-Net spells its own."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name, for example 501")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: 3d_fullres")
    parser.add_argument("-tr", default="nnUNetTrainerDHC", metavar="TRAINER", help="default: nnUNetTrainerDHC")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-f", nargs="+", required=True, metavar="FOLD",
                        help="numbers of trained folds, averaged, or the one fold named all")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="NAME", help="default: checkpoint_final.pth")
    parser.add_argument("-i", type=Path, metavar="FOLDER",
                        help="scans to rank, as <case>_0000...; default: the dataset's own unlabeled cases")
    parser.add_argument("-o", type=Path, default=Path("rank"), metavar="FOLDER", help="output folder (default: rank)")
    parser.add_argument("--budget", type=int, default=10, metavar="K", help="scans you can label next (default: 10)")
    parser.add_argument("--diversity", type=float, default=0.5, metavar="X",
                        help="0: by score alone, 1: as unlike each other as possible (default: 0.5)")
    parser.add_argument("--disable_tta", action="store_true",
                        help="predict without mirroring: less exact, and in 3D an eighth of the time if the model was "
                             "trained with mirroring")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], help="default: cuda if there")
    parser.add_argument("-np", type=process_count, default=2, metavar="N", help="preprocessing processes (default: 2)")
    parser.add_argument("--anonymise", action="store_true", help="number the scans in all files written for reading")
    parser.add_argument("--no-images", action="store_true", help="leave out pictures of scans")


def run(args: argparse.Namespace) -> None:
    """Predict, order, write, and print the table (with the real names, also of an anonymised page)."""
    from nnunet_dhc.cli._device import chosen_device
    from nnunet_dhc.cli._output import check_output_folder
    from nnunet_dhc.nnunet.network.model_folder import parse_fold
    from nnunet_dhc.nnunet.ranking.rank_cases import CASE_FOLDER, RankRequest, rank_cases
    from nnunet_dhc.reporting.rank_page import finish_ranking, render_rank_text, write_ranking

    check_output_folder(args.o)
    device = chosen_device(args.device)
    request = RankRequest(args.d, args.c, [parse_fold(fold) for fold in args.f], args.tr, args.p, args.chk, args.i,
                          args.budget, args.diversity, not args.disable_tta)
    ranking = rank_cases(request, args.o, device, args.np, not args.no_images)
    named = finish_ranking(ranking, args.o, images=False)
    page = finish_ranking(ranking, args.o, images=not args.no_images, anonymise=args.anonymise)
    written = write_ranking(page, args.o)
    print(render_rank_text(named))
    print("Written: " + ", ".join(str(path) for path in written))
    if args.anonymise:
        print(f"{args.o / CASE_FOLDER} remembers the scans under their names: don't pass it on.")
