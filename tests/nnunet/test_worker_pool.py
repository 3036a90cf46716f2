# SPDX-License-Identifier: Apache-2.0
"""Processes of preprocessing: as many as the work is worth, and a death among them is one line."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.worker_pool import run_over_cases, sensible_processes


def add(job: int, case: int) -> int:
    return job + case


def fail_on_two(_job: int, case: int) -> int:
    if case == 2:
        raise OSError(28, "No space left on device")
    return case


def die(_job: int, case: int) -> int:
    if case == 1:
        os._exit(9)
    return case


@pytest.mark.parametrize(
    ("cases", "megabytes", "wished", "expected"),
    [(10, 1, 8, 0), (1, 500, 8, 0), (100, 1, 8, 2), (4, 500, 8, 4), (1000, 5000, 8, 8), (1000, 5000, 1, 0),
     (1000, 5000, 0, 0), (0, 0, 8, 0)],
)
def test_no_more_processes_than_the_work_is_worth(cases, megabytes, wished, expected):
    assert sensible_processes(cases, megabytes << 20, wished) == expected


def test_in_this_process():
    with closing(run_over_cases(10, [(add, case) for case in range(5)], 0)) as results:
        assert list(results) == [10, 11, 12, 13, 14]


def test_in_processes_errors_and_deaths():
    """One test, because each pool costs seconds of start-up."""
    with closing(run_over_cases(10, [(add, case) for case in range(20)], 2)) as results:
        assert sorted(results) == list(range(10, 30))
    with pytest.raises(OSError, match="No space") as full, closing(
        run_over_cases(0, [(fail_on_two, case) for case in range(20)], 2)
    ) as results:
        list(results)
    assert full.value.errno == 28
    with pytest.raises(UserError, match=r"processes died.*-np 1"), closing(
        run_over_cases(0, [(die, case) for case in range(20)], 2)
    ) as results:
        list(results)
