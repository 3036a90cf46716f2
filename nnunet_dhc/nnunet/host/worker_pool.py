# SPDX-License-Identifier: Apache-2.0
"""Run one function over many cases in processes of their own, few at a time, and survive a worker's death."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_handles
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.wording import name_some

# A process costs seconds of imports: it should get this many cases, or this many bytes of (compressed) images.
_CASES_PER_PROCESS = 50
_BYTES_PER_PROCESS = 16 * 1024**2


def sensible_processes(num_cases: int, num_bytes: int, num_processes: int) -> int:
    """At most ``num_processes``, fewer where starting them would take longer than the work; 0 = in this process."""
    if num_processes <= 1:
        return 0
    worth = max(-(-num_bytes // _BYTES_PER_PROCESS), -(-num_cases // _CASES_PER_PROCESS))
    processes = min(num_processes, num_cases, worth)
    return processes if processes > 1 else 0


def run_over_cases(job: Any, tasks: Iterable[tuple[Callable, Any]], processes: int) -> Iterator[Any]:
    """Yield ``function(job, case)`` for every task, in the order in which they finish.

    Close the iterator (``contextlib.closing``) so that no process goes on after an error.

    Args:
        job: Sent to each process once.
        tasks: Pairs of a module-level function and its second argument.
        processes: 0 works in this process.

    Raises:
        UserError: A process died or ran out of memory.
    """
    try:
        if processes == 0:
            for function, case in tasks:
                yield function(job, case)
        else:
            yield from _run_in_processes(job, tasks, processes)
    except MemoryError as error:
        raise UserError(
            f"Reading scans ran out of memory with {max(1, processes)} process(es). Finished cases are kept: "
            f"{_with_fewer(1)}, or on a machine with more memory."
        ) from error


def _run_in_processes(job: Any, tasks: Iterable[tuple[Callable, Any]], processes: int) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(job,))
    pending: dict[Future, Any] = {}
    waiting = iter(tasks)
    try:
        exhausted = False
        while pending or not exhausted:
            while not exhausted and len(pending) < 2 * processes:
                task = next(waiting, None)
                exhausted = task is None
                if task is not None:
                    pending[executor.submit(_work, *task)] = task[1]
            if not pending:
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                result = future.result()
                del pending[future]
                yield result
    except BrokenProcessPool as error:
        raise UserError(
            f"One of {processes} reading processes died at one of these cases: "
            f"{name_some([_name(case) for case in pending.values()])}. Most often the system ended it for lack of "
            f"memory. Finished cases are kept: {_with_fewer(max(1, processes // 2))}."
        ) from error
    except (KeyboardInterrupt, GeneratorExit):
        # A large scan may take a minute: nobody wants to wait for it after Ctrl-C or an error.
        for process in list((getattr(executor, "_processes", None) or {}).values()):
            process.terminate()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _with_fewer(processes: int) -> str:
    return (
        f"run again with fewer processes (-np {processes} of nnunet_dhc split, preprocess and rank, "
        f"nnUNet_def_n_proc={processes} for a training)"
    )


def _name(task: Any) -> str:
    return str(getattr(getattr(task, "case", task), "identifier", task))


_JOB: Any = None


def _start_worker(job: Any) -> None:
    global _JOB
    _JOB = job
    # Ctrl-C reaches the whole group: the parent decides, a worker ends with its parent and not before.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_handles([parent.sentinel])
        os._exit(1)


def _work(function: Callable, case: Any) -> Any:
    return function(_JOB, case)
