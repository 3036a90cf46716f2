# SPDX-License-Identifier: Apache-2.0
"""The command that continues this training, as the user would type it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
_PRETRAINED = "-pretrained_weights"  # nnU-Net refuses it together with --c


def has_checkpoint(output_folder: str | None) -> bool:
    """Whether ``--c`` would find something to continue from."""
    return output_folder is not None and any(os.path.isfile(os.path.join(output_folder, name)) for name in CHECKPOINTS)


def resume_command(output_folder: str | None, arguments: Sequence[str] | None = None) -> str:
    """This process's command line, with ``--c`` where there is a checkpoint.

    Args:
        output_folder: Folder of the fold, where checkpoints lie.
        arguments: Default ``sys.argv``.
    """
    program, *given = sys.argv if arguments is None else arguments
    if program.endswith(".py"):
        program = f"python {shlex.quote(program)}"
    elif " " not in program or os.path.exists(program):  # "nnunet_dhc train" is two words
        program = shlex.quote(os.path.basename(program))
    if has_checkpoint(output_folder) and "--val" not in given:
        given = continuing(given)
    return " ".join([program, *map(shlex.quote, given)])


def continuing(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``nnUNetv2_train`` that go on with a training."""
    kept = _without_pretrained(arguments)
    return kept if "--c" in kept else [*kept, "--c"]


def _without_pretrained(arguments: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        name, separator, _ = argument.partition("=")
        is_pretrained = len(name) > 3 and _PRETRAINED.startswith(name)  # argparse takes abbreviations: -p is the plans
        if not skip and not is_pretrained:
            kept.append(argument)
        skip = is_pretrained and not separator
    return kept
