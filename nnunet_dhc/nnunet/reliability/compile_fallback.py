# SPDX-License-Identifier: Apache-2.0
"""A network that torch.compile can't build on this machine: train it without, or say how."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch._dynamo import OptimizedModule

from nnunet_dhc.errors import first_line

if TYPE_CHECKING:
    from nnunet_dhc.nnunet.reliability.reliable_trainer import ReliableTrainer

_COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")


def may_fall_back(trainer: ReliableTrainer) -> bool:
    """Whether the network is compiled, and no other rank would have to change together with this one."""
    return isinstance(trainer.network, OptimizedModule)


def run_eager(trainer: ReliableTrainer, error: Exception) -> None:
    """Go on with the network and the loss as they were before torch.compile; parameters and optimizer stay."""
    os.environ["nnUNet_compile"] = "f"  # or nnU-Net's predictor would compile the network again
    trainer.network = trainer.network._orig_mod
    trainer.loss = trainer._build_loss()  # nnU-Net has compiled a part of it, too
    trainer.print_to_log_file(
        f"The first step with torch.compile failed ({first_words(error)}): going on without it, as with "
        "nnUNet_compile=f. The result is the same, a step takes longer"
    )


def is_compile_failure(error: BaseException) -> bool:
    """Whether torch.compile or what it calls raised an error."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__module__.startswith(_COMPILERS):
            return True
        seen = seen.__cause__ or seen.__context__
    return "torch.compile" in str(error)


def first_words(error: BaseException) -> str:
    """The kind of an error and its first line, which may be a page here."""
    error = getattr(error, "inner_exception", error)  # torch._dynamo wraps what a backend raises
    text = f"{type(error).__name__}: {first_line(error)}"
    return text if len(text) <= 200 else f"{text[:197]}..."
