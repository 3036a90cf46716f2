# SPDX-License-Identifier: Apache-2.0
"""nnU-Net's default on a GPU: compiled networks and mixed precision."""

from __future__ import annotations

import pytest
import torch
from test_synchronisation import batch_of, pair_trainer, stock_trainer
from torch._dynamo import OptimizedModule

from nnunet_dhc.nnunet.reliability.compile_fallback import first_words

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def skip_where_stock_does_not_compile(dataset) -> None:
    """By nnU-Net's own trainer, so that nothing of ours decides whether it is tested."""
    trainer = stock_trainer(dataset, torch.device("cuda"))
    if not isinstance(trainer.network, OptimizedModule):
        pytest.skip("nnU-Net doesn't compile on this machine")
    try:
        trainer.train_step(batch_of("cuda"))
    except Exception as error:
        pytest.skip(f"torch.compile doesn't work on this machine: {first_words(error)}")
    torch._dynamo.reset()  # what it has compiled counts towards the limit of recompilations


def losses_of_three_steps(dataset) -> tuple[list[float], bool]:
    """Losses, and whether the network was compiled to the end."""
    torch.manual_seed(0)
    trainer = pair_trainer(dataset, torch.device("cuda"), low_memory="off")
    losses = []
    for number, has_unlabeled in enumerate((True, False, True)):
        torch.manual_seed(number)  # where boxes are exchanged
        batch = batch_of("cuda")
        losses.append(float(trainer.train_step(batch if has_unlabeled else {**batch, "unlabeled": None})["loss"]))
    return losses, isinstance(trainer.network, OptimizedModule)


def test_compiled_steps_have_the_losses_of_those_that_are_not(tiny_dataset, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_compile", "false")
    expected, compiled = losses_of_three_steps(tiny_dataset)
    assert not compiled
    monkeypatch.setenv("nnUNet_compile", "true")
    skip_where_stock_does_not_compile(tiny_dataset)
    losses, compiled = losses_of_three_steps(tiny_dataset)
    assert compiled
    assert losses == pytest.approx(expected, rel=0.05)  # half precision; pseudo labels may flip
