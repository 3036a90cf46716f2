# SPDX-License-Identifier: Apache-2.0
"""A training that is killed without its workers, as the kernel does when memory is full."""

from __future__ import annotations

import signal
import sys

import pytest
from console import TRAIN, Running, configure

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]


def test_workers_die_with_the_training(tiny_dataset):
    configure(tiny_dataset, num_epochs=50)
    running = Running(tiny_dataset, TRAIN, {"nnUNet_n_proc_DA": "2"})
    try:
        running.wait_for("Epoch 1")
        assert len(running.workers()) >= 4  # two for each stream
        running.signal(signal.SIGKILL)
        assert running.finish().code == -signal.SIGKILL
        assert running.left_over() == []
    finally:
        running.kill()
