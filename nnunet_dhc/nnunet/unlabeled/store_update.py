# SPDX-License-Identifier: Apache-2.0
"""Compare the wanted cases with the manifest and preprocess those that are new or stale."""

from __future__ import annotations

import errno
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import remove_temporary_files, replace_json
from nnunet_dhc.nnunet.host.raw_images import RawCase
from nnunet_dhc.nnunet.host.worker_pool import run_over_cases, sensible_processes
from nnunet_dhc.nnunet.unlabeled.case_preprocessing import (
    CaseJob,
    CaseResult,
    CaseTask,
    HashResult,
    HashTask,
    KnownImage,
    hash_case,
    preprocess_case,
)
from nnunet_dhc.nnunet.unlabeled.leak_check import LabeledHashes
from nnunet_dhc.nnunet.unlabeled.odd_scans import orientation, why_odd
from nnunet_dhc.nnunet.unlabeled.unlabeled_store import (
    BAD_CASES_FILE,
    EXCLUDED,
    READY,
    StoreEntry,
    UnlabeledStore,
    case_files,
)
from nnunet_dhc.wording import counted, name_some

_NAMED_BAD_CASES = 10
_HASHES_SAVED_AT_ONCE = 20  # all are written each time, and a killed process loses no more than these

NEW, CHANGED, OTHER_PLANS, INCOMPLETE = (
    "new", "whose image changed", "made with other plans", "with missing preprocessed files",
)


class StoreUpdate:
    """One pass over the wanted cases."""

    def __init__(
        self,
        job: CaseJob,
        preprocessing: str,
        normalization_schemes: Sequence[str],
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
        self.normalization_schemes = normalization_schemes

    def stale_cases(
        self, store: UnlabeledStore, cases: Mapping[str, RawCase], complete: Container[str]
    ) -> dict[str, str]:
        """Why each case has to be worked on, by identifier; ``complete`` are those whose files are there."""
        stale = {}
        for identifier, case in cases.items():
            entry = store.entries.get(identifier)
            if entry is None:
                stale[identifier] = NEW
            elif entry.sources != case.sources or entry.origin != case.origin:
                stale[identifier] = CHANGED
            elif entry.preprocessing != self.preprocessing:
                stale[identifier] = OTHER_PLANS
            elif entry.status == EXCLUDED:
                continue
            elif identifier not in complete:
                stale[identifier] = INCOMPLETE
        return stale

    def excludes(self, entry: StoreEntry | None) -> TypeGuard[StoreEntry]:
        """Whether a case is known as bad with these plans."""
        return entry is not None and entry.status == EXCLUDED and entry.preprocessing == self.preprocessing

    def run(
        self,
        store: UnlabeledStore,
        cases: Mapping[str, RawCase],
        hashes: LabeledHashes,
        labeled: Mapping[str, RawCase],
        skip_bad: bool,
    ) -> None:
        """Preprocess stale cases and hash labeled ones; the caller holds the folder's lock."""
        stale = self.stale_cases(store, cases, store.complete_cases(cases))
        bad = {identifier: cases[identifier].problem for identifier in stale if cases[identifier].problem is not None}
        known = self._known_images(store, [identifier for identifier, why in stale.items() if why == CHANGED])
        to_preprocess = [
            CaseTask(cases[identifier], known.get(identifier))
            for identifier in sorted(stale)
            if identifier not in bad
        ]
        if to_preprocess:
            reasons = Counter(stale[task.case.identifier] for task in to_preprocess)
            self.say(
                f"Preprocessing {counted(len(to_preprocess), 'unlabeled case')} into {store.folder} ("
                + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
                + ")."
            )
        try:
            self._work(store, to_preprocess, hashes, labeled, bad)
            self._settle_bad(store, cases, bad, skip_bad)
        except OSError as error:
            raise self._cannot_write(error, store, to_preprocess) from error

    def hash_only(self, hashes: LabeledHashes, labeled: Mapping[str, RawCase]) -> None:
        """Hash labeled cases without remembering it, where the folder can't be written to."""
        self._work_on([], hashes, labeled, record=lambda result: None, save_hashes=lambda: None)

    def _known_images(
        self, store: UnlabeledStore, changed: list[str]
    ) -> dict[str, KnownImage]:
        """What complete cases of these plans were made from."""
        known = {}
        for entry in (store.entries[identifier] for identifier in store.complete_cases(changed)):
            if entry.preprocessing == self.preprocessing:
                path = store.folder / case_files(entry.identifier)["properties"]
                with suppress(OSError, ValueError):  # preprocessed again
                    properties = json.loads(path.read_text(encoding="utf-8"))
                    known[entry.identifier] = (entry.voxels, entry.spacing, orientation(properties))
        return known

    def _work(
        self,
        store: UnlabeledStore,
        to_preprocess: list[CaseTask],
        hashes: LabeledHashes,
        labeled: Mapping[str, RawCase],
        bad: dict[str, str | None],
    ) -> None:
        cases = {task.case.identifier: task.case for task in to_preprocess}
        warned: dict[str, list[str]] = {}
        unchanged = 0
        references = cache(lambda: hashes.summaries(labeled))

        def record(result: CaseResult) -> None:
            nonlocal unchanged
            for text in result.warnings:
                warned.setdefault(text, []).append(result.identifier)
            if result.bad is not None:
                bad[result.identifier] = result.bad
            elif result.unchanged:
                unchanged += 1
                known = store.entries[result.identifier]
                case = cases[result.identifier]
                store.append([known._replace(sources=case.sources, origin=case.origin)])
            else:
                odd_in = why_odd(result.summary, references(), self.normalization_schemes) if result.summary else None
                store.add_ready(self._entry(cases[result.identifier], result, odd_in), result.written)

        try:
            self._work_on(to_preprocess, hashes, labeled, record, hashes.save)
        finally:
            remove_temporary_files(store.folder)
            hashes.save()
        if unchanged:
            self.say(f"{unchanged} of them have the same voxels as before and were not preprocessed again.")
        for text, identifiers in warned.items():
            scans = f"{counted(len(identifiers), 'scan')}: {name_some(sorted(identifiers), 5)}"
            self.notes.append(f"{text.capitalize()} in {scans}.")

    def _work_on(
        self,
        to_preprocess: list[CaseTask],
        hashes: LabeledHashes,
        labeled: Mapping[str, RawCase],
        record: Callable[[CaseResult], None],
        save_hashes: Callable[[], None],
    ) -> None:
        from tqdm import tqdm

        to_hash = {key: labeled[key] for key in hashes.missing(labeled)}
        # Labeled images first: unlabeled ones are compared with them.
        tasks: list[tuple[Callable, Any]] = [(hash_case, HashTask(key, case)) for key, case in to_hash.items()]
        tasks += [(preprocess_case, task) for task in to_preprocess]
        read = [task.case for task in to_preprocess] + list(to_hash.values())
        num_bytes = sum(size for case in read for _, size, _ in case.sources)
        processes = sensible_processes(len(tasks), num_bytes, self.num_processes)
        if to_preprocess:
            self._warn_of_little_space(Path(self.job.folder), to_preprocess)
        title = "Preprocessing unlabeled cases" if to_preprocess else "Comparing with labeled cases"
        if to_preprocess and to_hash:
            title = f"{counted(len(to_preprocess), 'unlabeled case')}, and {len(to_hash)} others to compare with"
        unread, early = len(to_hash), []
        with (
            tqdm(total=len(tasks), desc=title, disable=not self.show_progress or not tasks) as bar,
            closing(run_over_cases(self.job, tasks, processes)) as results,
        ):
            for result in results:
                if isinstance(result, HashResult):
                    hashes.add(result.key, to_hash[result.key], result.voxels, result.summary)
                    unread -= 1
                    if unread % _HASHES_SAVED_AT_ONCE == 0:
                        save_hashes()
                else:
                    early.append(result)
                while not unread and early:
                    record(early.pop())
                bar.update()

    def _warn_of_little_space(self, folder: Path, to_preprocess: Sequence[CaseTask]) -> None:
        """Before hours of work; whether it is enough depends on the plans' spacing, too."""
        needed = sum(size for task in to_preprocess for _, size, _ in task.case.sources)
        free = shutil.disk_usage(folder).free
        if free < needed:
            self.say(
                f"{free / 1e9:.1f} GB are free for {folder}, and the images to preprocess have {needed / 1e9:.1f} GB; "
                "at their own spacing that is too little. What is finished when the disk is full is kept."
            )

    def _entry(self, case: RawCase, result: CaseResult, odd: str | None) -> StoreEntry:
        return StoreEntry(
            identifier=case.identifier,
            status=READY,
            origin=case.origin,
            sources=case.sources,
            voxels=result.voxels,
            preprocessing=self.preprocessing,
            spacing=result.spacing,
            shape=result.shape,
            nonzero_mask=self.job.with_nonzero_mask,
            odd=odd,
        )

    def _settle_bad(
        self, store: UnlabeledStore, cases: Mapping[str, RawCase], bad: dict[str, str | None], skip_bad: bool
    ) -> None:
        path = store.folder / BAD_CASES_FILE
        known = {identifier: store.entries.get(identifier) for identifier in cases}
        listed = {**{name: entry.reason for name, entry in known.items() if self.excludes(entry)}, **bad}
        if not listed:
            path.unlink(missing_ok=True)
            return
        replace_json(path, dict(sorted(listed.items())))
        if not bad:
            return
        if not skip_bad:
            raise self._bad_scans(bad, cases, path)
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

    def _bad_scans(self, bad: Mapping[str, str | None], cases: Mapping[str, RawCase], path: Path) -> UserError:
        listed = []
        for identifier in sorted(bad)[:_NAMED_BAD_CASES]:
            origin = cases[identifier].origin
            name = identifier if identifier.startswith(f"{origin}/") else f"{origin}/{identifier}"
            listed.append(f"{name} {bad[identifier]}")
        rest = len(bad) - len(listed)
        more = f"; and {rest} more" if rest else ""
        plans = self.job.plans
        command = (
            f"nnunet_dhc preprocess -d {shlex.quote(plans['dataset_name'])} -c {self.job.configuration_name} "
            f"-p {plans['plans_name']} --skip-bad"
        )
        return UserError(
            f"{counted(len(bad), 'bad unlabeled scan')}: {'; '.join(listed)}{more}. All are listed in "
            f"{path}. Repair or remove them, or exclude them with: {command}. Good cases are finished and kept."
        )

    def _cannot_write(self, error: OSError, store: UnlabeledStore, to_preprocess: list[CaseTask]) -> UserError:
        remove_temporary_files(store.folder)
        done = sum(
            task.case.identifier in store.entries and store.entries[task.case.identifier].sources == task.case.sources
            for task in to_preprocess
        )
        kept = f"{done} of {len(to_preprocess)} cases are finished and kept"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(f"The disk is full: {store.folder}. {kept}; free space and run again.")
        return UserError(f"{store.folder} can't be written to ({error.strerror or error}). {kept}.")
