# SPDX-License-Identifier: Apache-2.0
"""The low-memory mode on a GPU whose memory is capped at 1.15 times what a stock step needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from test_synchronisation import batch_of, pair_trainer, stock_trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PATCH = 96  # so large that activations need far more memory than weights
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def without_compile(monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "false")


def reserved_by_two_steps(trainer) -> int:
    """Bytes that the allocator holds at most during two steps."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        trainer.train_step(batch_of("cuda", PATCH))
    torch.cuda.synchronize()
    return torch.cuda.max_memory_reserved()


@contextmanager
def memory_capped_at(num_bytes: float) -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(num_bytes / torch.cuda.get_device_properties(CUDA).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_trains_within_little_more_than_a_stock_step_and_says_so(tiny_dataset) -> None:
    stock = stock_trainer(tiny_dataset, CUDA)
    of_stock = reserved_by_two_steps(stock)
    del stock
    normal = pair_trainer(tiny_dataset, CUDA, low_memory="off", unsupervised_on="all")  # both networks in memory
    assert reserved_by_two_steps(normal) > 1.5 * of_stock  # or the cap would prove nothing
    del normal
    trainer = pair_trainer(tiny_dataset, CUDA, unsupervised_on="all")
    printed: list[str] = []
    trainer.print_to_log_file = lambda *texts, **_: printed.append(" ".join(map(str, texts)))
    with memory_capped_at(1.15 * of_stock):
        reserved_by_two_steps(trainer)
    assert trainer.step_mode.name.startswith("low memory")
    assert any("does not fit into the memory" in line for line in printed)
    assert trainer.statistics.finite_steps == 2


def test_gradients_are_those_of_the_normal_mode(tiny_dataset, monkeypatch) -> None:
    gradients = []
    for mode in ("off", "on"):
        torch.manual_seed(0)
        trainer = pair_trainer(tiny_dataset, CUDA, low_memory=mode)
        trainer.grad_scaler = torch.amp.GradScaler("cuda", init_scale=128.0)  # nnU-Net's first scale may overflow
        seen: list[torch.Tensor] = []
        step = trainer.optimizer.step

        def recorded(*args, pair=trainer.pair, seen=seen, step=step, **kwargs):
            seen.append(torch.cat([p.grad.flatten() for p in pair.parameters() if p.grad is not None]))
            return step(*args, **kwargs)

        monkeypatch.setattr(trainer.optimizer, "step", recorded)
        trainer.train_step(batch_of("cuda", PATCH))
        gradients.append(seen[0])
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert gradients[0].isfinite().all() and difference < 0.02  # mixed precision; float64 is tested on the CPU
