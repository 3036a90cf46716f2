# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc configure``: settings of the recipe, under a plans identifier of their own."""

from __future__ import annotations

import argparse

HELP = "write plans whose settings override the recipe of a trainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", metavar="DATASET", help="dataset name or id")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans to start from (default: nnUNetPlans)")
    parser.add_argument("-o", metavar="NEW_PLANS", help="identifier of the new plans, to be used with -p")
    parser.add_argument(
        "-tr",
        default="nnUNetTrainerDHC",
        metavar="TRAINER",
        help="trainer whose recipe the settings are checked with (default: nnUNetTrainerDHC)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting; may be repeated")
    parser.add_argument(
        "--architecture-b-from", metavar="PLANS", help="give sub-network B the architecture of these plans"
    )
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="configurations that get that architecture")
    parser.add_argument("--overwrite", action="store_true", help="replace plans that exist under the new identifier")
    parser.add_argument(
        "--list",
        nargs="?",
        const="",
        metavar="TRAINER",
        help="list all settings with their values in a trainer (default: that of -tr)",
    )


def run(args: argparse.Namespace) -> None:
    from nnunet_dhc.errors import UserError
    from nnunet_dhc.nnunet.training.configure_plans import configure_plans, parse_setting
    from nnunet_dhc.nnunet.training.recipe import settings_help
    from nnunet_dhc.trainers.lookup import is_trainer_name, split_name, trainer_class

    option, trainer = ("--list", args.list) if args.list else ("-tr", args.tr)
    if not is_trainer_name(trainer):
        raise UserError(f"{option} {trainer}: no trainer of this package; nnunet_dhc methods lists them")
    recipe = trainer_class(trainer).recipe
    if args.list is not None:
        for name, value, expected, meaning in settings_help(recipe):
            print(f"{name} = {value!r}\n    {meaning} ({expected})")
        return
    if not args.d or not args.o:
        raise UserError(
            "-d and -o are needed (or --list): nnunet_dhc configure -d 501 -o nnUNetPlansMine --set lambda_max=0.2"
        )
    if args.c and not args.architecture_b_from:
        raise UserError("-c belongs to --architecture-b-from; settings hold for all configurations: leave it out")
    settings = dict(map(parse_setting, args.set))
    base, epochs = split_name(trainer)
    if epochs is not None and "num_epochs" in settings:
        raise UserError(f"--set num_epochs: the epochs in the name of {trainer} count instead; give -tr {base}")
    path = configure_plans(
        args.d, args.p, args.o, settings, args.architecture_b_from, args.c, args.overwrite,
        trainer, recipe,
    )
    unchanged = "" if args.set or args.architecture_b_from else f"a copy of {args.p}, no setting was given; "
    print(f"{path}\n{unchanged}use it with -p {args.o}")
