# SPDX-License-Identifier: Apache-2.0
"""Find something out about every case once, and again only for a case whose files have changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from nnunet_dhc.nnunet.host.atomic_files import replace_json
from nnunet_dhc.nnunet.host.worker_pool import run_over_cases, sensible_processes

Source = list[list[int]]  # bytes and time of last change of each file


def source_of(files: Iterable[str | Path]) -> Source:
    """What a file's content is known by without reading it.

    Raises:
        OSError: A file is not there.
    """
    return [[stat.st_size, stat.st_mtime_ns] for stat in map(os.stat, files)]


def found_out(
    sources: Mapping[str, Source],
    function: Callable[[Any, str], tuple[str, Mapping[str, Any]]],
    job: Any,
    cache: Path,
    num_processes: int,
    title: str,
) -> dict[str, Mapping[str, Any]]:
    """What ``function(job, case)`` returns for each case, which is remembered in a JSON file.

    Args:
        sources: The cases, each with the source of its files.
        function: A module-level function; returns its case and what it found, keys and values as JSON allows them.
        job: Its first argument.
        cache: The JSON file; where it can't be written, everything is found out again next time.
        num_processes: Processes that work on the cases.
        title: Of the progress bar, which shows when it takes longer than a few seconds.
    """
    from tqdm import tqdm

    remembered = _read(cache)
    todo = [case for case in sources if remembered.get(case, {}).get("source") != sources[case]]
    if todo:
        num_bytes = sum(size for case in todo for size, _ in sources[case])
        processes = sensible_processes(len(todo), num_bytes, num_processes)
        try:
            with closing(run_over_cases(job, [(function, case) for case in todo], processes)) as results:
                for case, found in tqdm(results, title, len(todo), unit="case", delay=3):
                    remembered[case] = {**found, "source": sources[case]}
        finally:  # a case that can't be read costs nothing of the others
            with suppress(OSError):  # a read-only place
                cache.parent.mkdir(parents=True, exist_ok=True)
                replace_json(cache, remembered)
    return {case: remembered[case] for case in sources}


def _read(cache: Path) -> dict[str, Any]:
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {case: found for case, found in content.items() if isinstance(found, dict)}
