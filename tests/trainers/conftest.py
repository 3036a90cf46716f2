# SPDX-License-Identifier: Apache-2.0
"""Fixtures that make nnU-Net's own code fast enough to be run whole in a test."""

from __future__ import annotations

from multiprocessing.context import SpawnContext
from multiprocessing.pool import ThreadPool

import pytest


@pytest.fixture
def no_process_pools(monkeypatch):
    """nnU-Net's final validation starts two pools of processes, half a minute of imports: threads do the same."""
    monkeypatch.setattr(SpawnContext, "Pool", lambda self, processes=None, *_, **__: ThreadPool(1))


@pytest.fixture
def no_plots(monkeypatch):
    """Leave out the curves, the slowest part of a tiny training."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    from nnunet_dhc.nnunet.training import run_files

    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
    monkeypatch.setattr(run_files, "plot_progress", lambda *_: None)
