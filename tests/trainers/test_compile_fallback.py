# SPDX-License-Identifier: Apache-2.0
"""torch.compile that fails, by a broken backend: the first step falls back, later ones and other errors do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_training import log_lines, make_trainer
from torch._dynamo.exc import TorchDynamoException

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.reliability.explained_errors import explained

real_compile = torch.compile


@pytest.fixture
def compiled(tiny_dataset, monkeypatch):
    """A trainer whose network is compiled by a backend that a test gives; nnU-Net doesn't compile on a CPU."""
    monkeypatch.setenv("nnUNet_compile", "t")

    def make(backend):
        trainer = make_trainer(tiny_dataset, num_epochs=1, unlabeled_schedule="always")
        trainer._do_i_compile = lambda: os.environ["nnUNet_compile"] == "t"
        monkeypatch.setattr(torch, "compile", lambda network, backend=backend: real_compile(network, backend=backend))
        return trainer

    torch._dynamo.reset()
    yield make
    torch._dynamo.reset()


def log_of(trainer) -> str:
    return "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log_*.txt"))


def broken(graph, inputs):
    raise RuntimeError("Cannot find a working triton installation.\nMore lines.")


def test_first_step_falls_back_to_eager(compiled):
    trainer = compiled(broken)
    trainer.run_training()
    line = log_lines(trainer)[0]
    assert line["skipped_steps"] == 0 and line["steps_with_unlabeled"] == trainer.num_iterations_per_epoch
    assert trainer.network is trainer.pair
    assert trainer.logger.get_value("val_losses", 0) > -2  # nnU-Net's own loss, a part of which it compiles
    assert log_of(trainer).count("going on without it, as with nnUNet_compile=f") == 1
    assert "Cannot find a working triton installation." in log_of(trainer)
    assert os.environ["nnUNet_compile"] == "f"


def test_failure_in_the_backward_graph_falls_back_too(compiled):
    def backend(graph, inputs):
        def run(*arguments):
            return [_FailsBackward.apply(output) for output in graph(*arguments)]

        return run

    trainer = compiled(backend)
    trainer.run_training()
    assert "The first step with torch.compile failed (RuntimeError: no compiler for this graph)" in log_of(trainer)
    assert log_lines(trainer)[0]["skipped_steps"] == 0


def test_what_a_backend_says_is_said():
    """torch._dynamo wraps it."""
    error = RuntimeError("backend='inductor' raised:")
    error.inner_exception = ModuleNotFoundError("No module named 'triton'\n\nlong text")
    error.__cause__ = TorchDynamoException("x")
    line = str(explained(error, None, "preprocess", "resume"))
    assert line.startswith("torch.compile failed (ModuleNotFoundError: No module named 'triton'): train without it")


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, tensor):
        return tensor.clone()

    @staticmethod
    def backward(context, gradient):
        raise RuntimeError("no compiler for this graph")


def test_a_later_failure_is_one_line_with_the_remedy(compiled):
    trainer = compiled("eager")

    def break_it():
        torch._dynamo.reset()
        trainer.network = torch.compile(trainer.pair, backend=broken)

    choose = trainer._choose_streams
    trainer._choose_streams = lambda iteration: (break_it() if iteration == 1 else None, choose(iteration))
    with pytest.raises(UserError, match=r"torch\.compile failed .* nnUNet_compile=f\); continue with: .*--c"):
        trainer.run_training()


def raising(error: Exception):
    def backend(graph, inputs):
        def run(*arguments):
            raise error

        return run

    return backend


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
])
def test_out_of_memory_is_no_reason_to_fall_back(compiled, error):
    backend = raising(error)
    with pytest.raises(UserError, match="Out of GPU memory"):
        (trainer := compiled(backend)).run_training()
    assert "low memory" in log_of(trainer) and "going on without it" not in log_of(trainer)


def test_a_dead_device_is_no_reason_to_fall_back(compiled):
    trainer = compiled(raising(RuntimeError("CUDA error: device-side assert triggered")))
    with pytest.raises(RuntimeError, match="device-side assert"):
        trainer.run_training()
    assert "going on without it" not in log_of(trainer)
