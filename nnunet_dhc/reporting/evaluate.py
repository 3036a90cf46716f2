# SPDX-License-Identifier: Apache-2.0
"""Score many pairs of files in parallel, with a progress bar and a cache."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.image_files import simple_itk
from nnunet_dhc.reporting.metrics import Scores, score_files
from nnunet_dhc.reporting.output import write_text
from nnunet_dhc.reporting.protocols import Protocol
from nnunet_dhc.reporting.structures import LabelSpace

_CACHE_FILE = ".metrics_cache.json"
_CACHE_VERSION = 2  # raise it when a score is computed differently

Pair = tuple[Path, Path]


def score_pairs(pairs: Sequence[Pair], labels: LabelSpace, protocol: Protocol, processes: int,
                cache_folder: Path | None = None) -> list[Scores]:
    """Scores of each (prediction, reference) pair, in order.

    Args:
        pairs: Files of the same shape.
        labels: Structures and ignore label.
        protocol: What is measured.
        processes: Worker processes; 1 works in this process.
        cache_folder: Where scores are kept by a hash of path, size and time of both files; None keeps nothing.
    """
    cache = _Cache(cache_folder, labels, protocol)
    keys = [cache.key(pair) for pair in pairs]
    missing = sorted({key: index for index, key in enumerate(keys) if key not in cache.scores}.values())
    if missing:
        _score_missing([pairs[index] for index in missing], [keys[index] for index in missing], labels, protocol,
                       processes, cache)
    return [cache.scores[key] for key in keys]


def _score_missing(pairs: Sequence[Pair], keys: Sequence[str], labels: LabelSpace, protocol: Protocol,
                   processes: int, cache: _Cache) -> None:
    from tqdm import tqdm

    try:
        with tqdm(total=len(pairs), desc="scoring", unit="case", disable=None) as progress:
            if min(processes, len(pairs)) <= 1:
                for key, pair in zip(keys, pairs, strict=True):
                    cache.scores[key] = _score_pair(pair, labels, protocol)
                    progress.update()
                return
            # Spawned, not forked: ITK's threads don't survive a fork.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(processes, len(pairs)), mp_context=context, initializer=_one_thread) as pool:
                futures = {pool.submit(_score_pair, pair, labels, protocol): key
                           for key, pair in zip(keys, pairs, strict=True)}
                try:
                    for future in as_completed(futures):
                        cache.scores[futures[future]] = future.result()
                        progress.update()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    except (BrokenProcessPool, MemoryError) as error:
        kept = "" if cache.path is None else "; the scores that are finished are kept"
        raise UserError("Scoring ended for lack of memory, most likely: run again with fewer processes (-np "
                        f"{max(1, processes // 2)}){kept}.") from error
    finally:
        cache.write()


def _one_thread() -> None:
    simple_itk().ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _score_pair(pair: Pair, labels: LabelSpace, protocol: Protocol) -> Scores:
    scores = score_files(*pair, labels, protocol)
    for values in scores.values():
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[key] = None
    return scores


class _Cache:
    """Scores by hashes that hold no path: the folder may leave the house.

    A key is the hash of both paths and what is measured, and that of how the files are now.
    """

    def __init__(self, folder: Path | None, labels: LabelSpace, protocol: Protocol) -> None:
        self.path = None if folder is None else folder / _CACHE_FILE
        self.what = f"{_CACHE_VERSION} {protocol.name} {labels}"
        self.scores: dict[str, Scores] = {}
        self.current: dict[str, str] = {}
        if self.path is not None and self.path.is_file():
            try:
                content = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError:
                content = None
            if isinstance(content, dict):
                self.scores = content

    def key(self, pair: Pair) -> str:
        states = []
        for path in pair:
            try:
                status = path.stat()
            except FileNotFoundError:
                raise UserError(f"{path} does not exist.") from None
            states.append((status.st_size, status.st_mtime_ns))
        place = _hash([self.what, *(str(path.resolve()) for path in pair)])
        self.current[place] = f"{place}-{_hash(states)}"
        return self.current[place]

    def write(self) -> None:
        """Keep what was read and scored, but not the scores of files that were replaced since."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({key: scores for key, scores in self.scores.items()
                                          if self.current.get(key.split("-")[0], key) == key}))


def _hash(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]
