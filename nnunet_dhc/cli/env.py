# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc env``: the line that makes the trainers findable where the automatic way is switched off."""

from __future__ import annotations

import argparse
import os
import shlex

HELP = "print the line to export where nnU-Net does not find the trainers: eval \"$(nnunet_dhc env)\""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own = "cmd" if os.name == "nt" else "sh"
    parser.add_argument("--shell", choices=["sh", "fish", "cmd", "powershell"], default=own,
                        help=f"syntax of the line (default: {own})")


def run(args: argparse.Namespace) -> None:
    """Print the line; folders that the user has set stay first."""
    from nnunet_dhc._autoload import register

    register()
    value = os.environ["nnUNet_extTrainer"]
    print({
        "sh": f"export nnUNet_extTrainer={shlex.quote(value)}",
        "fish": f"set -gx nnUNet_extTrainer {shlex.quote(value)}",
        "cmd": f'set "nnUNet_extTrainer={value}"',
        "powershell": "$env:nnUNet_extTrainer = '{}'".format(value.replace("'", "''")),
    }[args.shell])
