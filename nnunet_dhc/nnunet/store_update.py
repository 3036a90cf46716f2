# SPDX-License-Identifier: Apache-2.0
"""Compare the wanted cases with the manifest and preprocess those that are new or stale."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.atomic_files import remove_temporary_files, replace_json
from nnunet_dhc.nnunet.case_preprocessing import CaseJob, CaseResult, discard, hash_case, preprocess_case
from nnunet_dhc.nnunet.leak_check import LabeledHashes
from nnunet_dhc.nnunet.raw_images import RawCase
from nnunet_dhc.nnunet.unlabeled_store import EXCLUDED, READY, StoreEntry, UnlabeledStore
from nnunet_dhc.nnunet.worker_pool import run_over_cases

BAD_CASES_FILE = "bad_cases.json"
_NAMED_BAD_CASES = 10

NEW, CHANGED, OTHER_PLANS, INCOMPLETE = (
    "new", "whose image changed", "made with other plans", "with missing preprocessed files",
)


class StoreUpdate:
    """One pass over the wanted cases."""

    def __init__(
        self,
        job: CaseJob,
        preprocessing: str,
        num_processes: int,
        show_progress: bool,
        say: Callable[[str], None],
    ) -> None:
        self.job = job
        self.preprocessing = preprocessing
        self.num_processes = num_processes
        self.show_progress = show_progress
        self.say = say
        self.notes: list[str] = []

    def is_needed(
        self,
        store: UnlabeledStore,
        cases: Mapping[str, RawCase],
        hashes: LabeledHashes,
        labeled: Mapping[str, RawCase],
    ) -> bool:
        """Whether anything has to be written; without need, a run takes no lock and writes nothing."""
        return bool(self.stale_cases(store, cases)) or bool(hashes.missing(labeled))

    def stale_cases(self, store: UnlabeledStore, cases: Mapping[str, RawCase]) -> dict[str, str]:
        """Why each case has to be worked on, by identifier."""
        complete = store.complete_cases()
        stale = {}
        for identifier, case in cases.items():
            entry = store.entries.get(identifier)
            if entry is None:
                stale[identifier] = NEW
            elif entry.sources != case.sources or entry.origin != case.origin:
                stale[identifier] = CHANGED
            elif entry.status == EXCLUDED:
                continue
            elif entry.preprocessing != self.preprocessing:
                stale[identifier] = OTHER_PLANS
            elif identifier not in complete:
                stale[identifier] = INCOMPLETE
        return stale

    def run(
        self,
        store: UnlabeledStore,
        cases: Mapping[str, RawCase],
        hashes: LabeledHashes,
        labeled: Mapping[str, RawCase],
        skip_bad: bool,
    ) -> None:
        """Preprocess stale cases and hash labeled ones; the caller holds the folder's lock."""
        stale = self.stale_cases(store, cases)
        bad = {identifier: cases[identifier].problem for identifier in stale if cases[identifier].problem is not None}
        to_preprocess = [cases[identifier] for identifier in sorted(stale) if identifier not in bad]
        to_hash = {key: labeled[key] for key in hashes.missing(labeled)}
        if to_preprocess:
            reasons = Counter(stale[case.identifier] for case in to_preprocess)
            self.say(
                f"Preprocessing {len(to_preprocess)} unlabeled cases into {store.folder} ("
                + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
                + ")."
            )
        try:
            warnings = self._work(store, to_preprocess, hashes, to_hash, cases, bad)
        except OSError as error:
            remove_temporary_files(store.folder)
            raise self._cannot_write(error, store, to_preprocess) from error
        for text, identifiers in warnings.items():
            self.notes.append(f"{len(identifiers)} scans are odd: {text} ({', '.join(sorted(identifiers)[:3])} ...).")
        self._settle_bad(store, cases, bad, skip_bad)

    def _work(
        self,
        store: UnlabeledStore,
        to_preprocess: list[RawCase],
        hashes: LabeledHashes,
        to_hash: Mapping[str, RawCase],
        cases: Mapping[str, RawCase],
        bad: dict[str, str | None],
    ) -> dict[str, list[str]]:
        from tqdm import tqdm

        warnings: dict[str, list[str]] = {}
        labeled_tasks = [(hash_labeled, (key, case)) for key, case in to_hash.items()]
        tasks = [(preprocess_case, case) for case in to_preprocess] + labeled_tasks
        try:
            with tqdm(total=len(tasks), desc="Unlabeled cases", disable=not self.show_progress or not tasks) as bar:
                for result in run_over_cases(self.job, tasks, len(tasks), self.num_processes):
                    bar.update()
                    if isinstance(result, tuple):
                        key, hashed = result
                        if hashed.voxels is not None:
                            hashes.add(key, to_hash[key], hashed.voxels)
                        continue
                    for text in result.warnings:
                        warnings.setdefault(text, []).append(result.identifier)
                    if result.bad is not None:
                        bad[result.identifier] = result.bad
                        discard(result)
                    else:
                        store.add_ready(self._entry(cases[result.identifier], result), result.written)
        finally:
            remove_temporary_files(store.folder)
        if to_hash:
            hashes.save()
        return warnings

    def _entry(self, case: RawCase, result: CaseResult) -> StoreEntry:
        return StoreEntry(
            identifier=case.identifier,
            status=READY,
            origin=case.origin,
            sources=case.sources,
            voxels=result.voxels,
            preprocessing=self.preprocessing,
            spacing=result.spacing,
            shape=result.shape,
            channels=result.channels,
            nonzero_mask=self.job.with_nonzero_mask,
        )

    def _settle_bad(
        self, store: UnlabeledStore, cases: Mapping[str, RawCase], bad: dict[str, str | None], skip_bad: bool
    ) -> None:
        path = store.folder / BAD_CASES_FILE
        if not bad:
            path.unlink(missing_ok=True)
            return
        replace_json(path, dict(sorted(bad.items())))
        if not skip_bad:
            raise _bad_scans(bad, cases, path)
        store.append(
            StoreEntry(
                identifier=identifier,
                status=EXCLUDED,
                origin=cases[identifier].origin,
                sources=cases[identifier].sources,
                reason=reason,
                preprocessing=self.preprocessing,
            )
            for identifier, reason in sorted(bad.items())
        )
        self.say(f"Excluded {len(bad)} bad scans, listed in {path}.")

    def _cannot_write(self, error: OSError, store: UnlabeledStore, to_preprocess: list[RawCase]) -> UserError:
        done = sum(
            case.identifier in store.entries and store.entries[case.identifier].sources == case.sources
            for case in to_preprocess
        )
        kept = f"{done} of {len(to_preprocess)} cases are finished and kept"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(f"The disk is full: {store.folder}. {kept}; free space and run again.")
        return UserError(f"{store.folder} can't be written to ({error.strerror or error}). {kept}.")


def hash_labeled(job: CaseJob, keyed_case: tuple[str, RawCase]) -> tuple[str, CaseResult]:
    """``hash_case`` under the key of ``LabeledHashes``."""
    key, case = keyed_case
    return key, hash_case(job, case)


def _bad_scans(bad: Mapping[str, str | None], cases: Mapping[str, RawCase], path: Path) -> UserError:
    listed = []
    for identifier in sorted(bad)[:_NAMED_BAD_CASES]:
        origin = cases[identifier].origin
        name = identifier if identifier.startswith(origin + "/") else f"{origin}/{identifier}"
        listed.append(f"{name} {bad[identifier]}")
    rest = len(bad) - len(listed)
    more = f"; and {rest} more, all listed in {path}" if rest else ""
    return UserError(
        f"{len(bad)} bad unlabeled scan{'s' if len(bad) > 1 else ''}: {'; '.join(listed)}{more}. Repair or remove "
        "them, or exclude them with: nnunet_dhc preprocess --skip-bad. Good cases are finished and kept."
    )
