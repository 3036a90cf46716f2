# SPDX-License-Identifier: Apache-2.0
"""The shortcuts as fixtures."""

from __future__ import annotations

import pytest
from shortcuts import leave_out_curves, threads_for_processes


@pytest.fixture
def curves():
    """For a test that looks at them."""


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    if "curves" not in request.fixturenames:
        leave_out_curves(monkeypatch)


@pytest.fixture
def no_process_pools(monkeypatch):
    threads_for_processes(monkeypatch)
