# SPDX-License-Identifier: Apache-2.0
"""The command that continues this training, as the user would type it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

_PRETRAINED = "-pretrained_weights"  # nnU-Net refuses it together with --c


def resume_command(can_be_continued: bool, arguments: Sequence[str] | None = None) -> str:
    """This process's command line, with ``--c`` where that would go on with this very training.

    Args:
        can_be_continued: Whether it has a checkpoint of its own; one in its folder may be of an earlier training.
        arguments: Default ``sys.argv``.
    """
    program, *given = sys.argv if arguments is None else arguments
    if program.endswith(".py"):
        program = f"python {shlex.quote(program)}"
    elif " " not in program or os.path.exists(program):  # "nnunet_dhc train" is two words
        program = shlex.quote(os.path.basename(program))
    if can_be_continued and "--val" not in given:
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
        is_pretrained = name == _PRETRAINED  # whole: beside -p argparse takes no abbreviation of it
        if not skip and not is_pretrained:
            kept.append(argument)
        skip = is_pretrained and not separator
    return kept
