# SPDX-License-Identifier: Apache-2.0
"""Bring the folder of preprocessed unlabeled cases up to date with the scans on disk and with the plans."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import remove_temporary_files
from nnunet_dhc.nnunet.host.file_locks import awaited_lock, released_at_end
from nnunet_dhc.nnunet.host.preprocessing_hash import preprocessing_hash
from nnunet_dhc.nnunet.host.raw_images import (
    IMAGES_UN,
    RawCase,
    list_image_folder,
    list_training_images,
    training_identifiers,
)
from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
from nnunet_dhc.nnunet.unlabeled.case_preprocessing import CaseJob
from nnunet_dhc.nnunet.unlabeled.leak_check import (
    HELD_OUT_PREFIX,
    TEST_PREFIX,
    LabeledHashes,
    OutsideOfFolds,
    check_voxels,
    leaks_are_allowed,
    refuse_leaks_by_name,
)
from nnunet_dhc.nnunet.unlabeled.store_update import StoreUpdate
from nnunet_dhc.nnunet.unlabeled.unlabeled_store import (
    BAD_CASES_FILE,
    READY,
    REMOVED,
    StoreEntry,
    UnlabeledStore,
    store_folder,
)
from nnunet_dhc.wording import name_some

LOCK_FILE = "preprocessing.lock"


@dataclass(frozen=True)
class UnlabeledPool:
    """The unlabeled cases that a run trains on, all of them preprocessed.

    Attributes:
        excluded: Bad scans that aren't trained on, with what is wrong.
        odd: Scans among ``identifiers`` that look unlike the labeled ones, with what is odd.
        voxels: Hash of each image.
    """

    folder: str
    identifiers: list[str]
    excluded: dict[str, str]
    odd: dict[str, str]
    n_from_images_un: int
    n_from_split: int
    notes: list[str] = field(default_factory=list)
    with_nonzero_mask: bool = False
    voxels: dict[str, str | None] = field(default_factory=dict)


def bring_store_up_to_date(
    plans: Any,
    configuration: Any,
    dataset_json: dict[str, Any],
    fold_cases: FoldCases | Sequence[FoldCases],
    num_processes: int,
    skip_bad: bool = False,
    show_progress: bool = True,
    *,
    preprocessed_dataset_folder_base: str | Path | None = None,
    raw_dataset_folder: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> UnlabeledPool:
    """Preprocess what is new or changed among the unlabeled cases, and check all of them.

    Args:
        plans: nnU-Net's ``PlansManager``, or the plans as a dictionary.
        configuration: Name of the configuration.
        dataset_json: Content of ``dataset.json``.
        fold_cases: The fold (or several, whose unlabeled cases are joined).
        num_processes: Processes for preprocessing; 0 or 1 works in this one.
        skip_bad: Record bad scans as excluded and go on.
        show_progress: Show a progress bar.
        preprocessed_dataset_folder_base: Folder of the dataset in ``nnUNet_preprocessed``; default from the plans.
        raw_dataset_folder: Folder of the dataset in ``nnUNet_raw``; default from the plans where the variable is set.
        say: Gets each message.

    Returns:
        The cases to train on.

    Raises:
        UserError: There is no unlabeled case, a scan is bad, a case would leak, or the disk or memory is full.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans_manager = PlansManager(plans) if isinstance(plans, dict) else plans
    configuration_manager = plans_manager.get_configuration(configuration)
    dataset_name = plans_manager.dataset_name
    if preprocessed_dataset_folder_base is None:
        preprocessed_dataset_folder_base = _from_environment("nnUNet_preprocessed", dataset_name)
        if preprocessed_dataset_folder_base is None:
            raise UserError("nnUNet_preprocessed is not set: export it as nnU-Net's documentation says.")
    if raw_dataset_folder is None:
        raw_dataset_folder = _from_environment("nnUNet_raw", dataset_name)
    folds = [fold_cases] if isinstance(fold_cases, FoldCases) else list(fold_cases)
    folder = store_folder(preprocessed_dataset_folder_base, configuration_manager.data_identifier)
    job = CaseJob(
        plans=plans_manager.plans,
        configuration_name=configuration,
        dataset_json=dataset_json,
        folder=str(folder),
        with_nonzero_mask=any(configuration_manager.use_mask_for_norm),
    )
    raw = None if raw_dataset_folder is None else Path(raw_dataset_folder)
    wanted = list_wanted_cases(raw, dataset_json, folds)
    update = StoreUpdate(
        job,
        preprocessing_hash(plans_manager, configuration_manager, dataset_json),
        configuration_manager.normalization_schemes,
        num_processes,
        show_progress,
        say,
    )
    images_un = str(raw / IMAGES_UN) if raw is not None else f"$nnUNet_raw/{dataset_name}/{IMAGES_UN}"
    refuse_leaks_by_name(wanted.from_images_un, folds, images_un)
    held_out = held_out_cases(raw, dataset_json, folds)
    labeled = list_cases_to_compare(raw, dataset_json, folds, held_out, bool(wanted.cases))
    listed = frozenset(key.removeprefix(TEST_PREFIX) for key in labeled if key.startswith(TEST_PREFIX))
    outside = OutsideOfFolds(held_out, listed if wanted.cases else None)
    reader = plans_manager.plans["image_reader_writer"]
    store, hashes = UnlabeledStore(folder), LabeledHashes(folder, reader)
    moved = wanted.moved_since(store)
    wanted.add_from_store(store, folds)
    if not wanted.identifiers:
        raise no_unlabeled_case(images_un, preprocessed_dataset_folder_base)
    complete = store.complete_cases(wanted.identifiers)
    stale = update.stale_cases(store, wanted.cases, complete)
    if not stale and hashes.missing(labeled) and not os.access(folder, os.W_OK):
        update.hash_only(hashes, labeled)
    elif stale or hashes.missing(labeled) or (moved and os.access(folder, os.W_OK)):
        with _only_one_process(folder, say):
            store.read()
            store.append(wanted.moved_since(store))
            hashes = LabeledHashes(folder, reader)
            update.run(store, wanted.cases, hashes, labeled, skip_bad)
            complete = store.complete_cases(wanted.identifiers)
    return _pool(store, complete, update, wanted, folds, hashes, outside, raw)


@dataclass
class WantedCases:
    """Unlabeled cases that should be in the store; ``cases`` holds those whose images are on disk."""

    cases: dict[str, RawCase]
    from_images_un: set[str]
    from_split: set[str]
    images_un_is_gone: bool
    notes: list[str] = field(default_factory=list)

    @property
    def identifiers(self) -> set[str]:
        """Every wanted identifier."""
        return self.from_images_un | self.from_split

    def moved_since(self, store: UnlabeledStore) -> list[StoreEntry]:
        """Entries of preprocessed scans that were taken out of ``imagesUn`` or put back into it, as they are now."""
        if self.images_un_is_gone:
            return []
        now = {READY: REMOVED, REMOVED: READY}
        return [
            entry._replace(status=now[entry.status])
            for entry in store.entries.values()
            if entry.origin == IMAGES_UN
            and entry.status in now
            and (entry.status == READY) != (entry.identifier in self.from_images_un)
        ]

    def add_from_store(self, store: UnlabeledStore, folds: Sequence[FoldCases]) -> None:
        """Where ``imagesUn`` is gone, what was preprocessed from it stands in for it."""
        in_store = {
            entry.identifier
            for entry in store.entries.values()
            if entry.origin == IMAGES_UN and entry.status == READY
        }
        kept = in_store - self.identifiers
        if not self.images_un_is_gone:
            if kept:
                self.notes.append(
                    f"Preprocessed, but no longer in {IMAGES_UN}, and not used: {name_some(sorted(kept), 3)}."
                )
            return
        refuse_leaks_by_name(kept, folds, f"{store.folder}")
        if kept:
            self.from_images_un |= kept
            self.notes.append(
                f"{IMAGES_UN} is not there; the {len(kept)} cases preprocessed from it are used (delete "
                f"{store.folder} to drop them)."
            )


def list_wanted_cases(
    raw: Path | None, dataset_json: dict[str, Any], folds: Sequence[FoldCases]
) -> WantedCases:
    """List ``imagesUn`` and find the images of the folds' unlabeled cases."""
    from_split = {case for fold in folds for case in fold.unlabeled}
    cases: dict[str, RawCase] = {}
    images_un_is_gone = True
    if raw is not None and (raw / IMAGES_UN).is_dir():
        cases = list_image_folder(raw / IMAGES_UN, dataset_json)
        images_un_is_gone = False
    from_images_un = set(cases)
    if raw is not None and from_split:
        for identifier, case in list_training_images(raw, dataset_json, sorted(from_split)).items():
            cases.setdefault(identifier, case)
    return WantedCases(cases, from_images_un, from_split, images_un_is_gone)


def list_cases_to_compare(
    raw: Path | None,
    dataset_json: dict[str, Any],
    folds: Sequence[FoldCases],
    held_out: Sequence[str],
    with_test_cases: bool,
) -> dict[str, RawCase]:
    """Labeled, validation and test cases whose voxels no unlabeled case may have (test cases: may, but said so)."""
    if raw is None:
        return {}
    wanted = sorted({case for fold in folds for case in (*fold.labeled, *fold.validation)})
    cases = dict(list_training_images(raw, dataset_json, wanted))
    if with_test_cases:
        others = list_training_images(raw, dataset_json, held_out)
        cases |= {HELD_OUT_PREFIX + identifier: case for identifier, case in others.items()}
        if (raw / "imagesTs").is_dir():
            test = list_image_folder(raw / "imagesTs", dataset_json)
            cases |= {TEST_PREFIX + identifier: case for identifier, case in test.items()}
    return {key: case for key, case in cases.items() if case.problem is None}


def held_out_cases(raw: Path | None, dataset_json: dict[str, Any], folds: Sequence[FoldCases]) -> list[str]:
    """Labeled cases that no list of the folds names."""
    if raw is None:
        return []
    named = {case for fold in folds for case in (*fold.labeled, *fold.validation, *fold.unlabeled)}
    return [case for case in training_identifiers(raw, dataset_json) if case not in named]


def no_unlabeled_case(images_un: str, preprocessed_dataset_folder_base: str | Path) -> UserError:
    """The error of a run without any unlabeled case."""
    return UserError(
        f"There is no unlabeled case. Put scans as <case>_0000 ... into {images_un}, or list labeled cases under the "
        f'key "unlabeled" of the fold in {Path(preprocessed_dataset_folder_base) / "splits_final.json"} '
        "(nnunet_dhc split writes it). To train without unlabeled cases use -tr nnUNetTrainerPairMixed, "
        "nnUNetTrainerPairSupervised or stock nnUNetTrainer."
    )


def _pool(
    store: UnlabeledStore,
    complete: set[str],
    update: StoreUpdate,
    wanted: WantedCases,
    folds: Sequence[FoldCases],
    hashes: LabeledHashes,
    outside: OutsideOfFolds,
    raw: Path | None,
) -> UnlabeledPool:
    excluded: dict[str, str] = {}
    ready: list[str] = []
    unusable: list[str] = []
    for identifier in sorted(wanted.identifiers):
        entry = store.entries.get(identifier)
        if update.excludes(entry):
            excluded[identifier] = entry.reason or "excluded"
        elif identifier in complete and entry is not None and entry.preprocessing == update.preprocessing:
            ready.append(identifier)
        else:
            unusable.append(identifier)
    if unusable:
        where = "nnUNet_raw is not set" if raw is None else f"their images are not in {raw}"
        raise UserError(
            f"{name_some(unusable)} {'is' if len(unusable) == 1 else 'are'} not preprocessed with these plans in "
            f"{store.folder}, and {where}: bring the images back and run nnunet_dhc preprocess."
        )
    if not ready:
        raise UserError(
            f"All {len(excluded)} unlabeled cases are excluded as bad scans (see {store.manifest_path}): repair them, "
            "or add others."
        )
    notes = list(wanted.notes) + update.notes
    from_images_un = wanted.from_images_un
    trained_on = [(fold, frozenset(from_images_un.union(fold.unlabeled))) for fold in folds]
    voxels = {identifier: store.entries[identifier].voxels for identifier in ready}
    notes += check_voxels(
        voxels,
        lambda identifier: store.entries[identifier].origin,
        trained_on,
        hashes,
        outside,
        leaks_are_allowed(update.job.plans),
    )
    compared = {case for fold in folds for case in (*fold.labeled, *fold.validation)}
    unread = sorted(case for case in compared if hashes.voxels(case) is None)
    if unread:
        notes.append(
            f"{len(unread)} of {len(compared)} labeled cases could not be compared with the unlabeled ones, because "
            f"their images are not in nnUNet_raw or can't be read ({name_some(unread, 3)})."
        )
    odd = {identifier: text for identifier in ready if (text := store.entries[identifier].odd)}
    if odd:
        named = name_some([f"{identifier} ({text})" for identifier, text in odd.items()], 5)
        notes.append(f"Some unlabeled scans look unlike the labeled ones, please check: {named}.")
    if excluded:
        counts = Counter(excluded.values())
        reasons = "; ".join(f"{reason}: {count}" for reason, count in counts.most_common(5))
        notes.append(
            f"Bad scans are excluded ({reasons}): {name_some(sorted(excluded), 5)}; {store.folder / BAD_CASES_FILE} "
            "lists all."
        )
    n_from_split = sum(identifier in wanted.from_split for identifier in ready)
    return UnlabeledPool(
        folder=str(store.folder),
        identifiers=ready,
        excluded=excluded,
        odd=odd,
        n_from_images_un=len(ready) - n_from_split,
        n_from_split=n_from_split,
        notes=notes,
        with_nonzero_mask=update.job.with_nonzero_mask,
        voxels=voxels,
    )


@contextmanager
def _only_one_process(folder: Path, say: Callable[[str], None]):
    """Hold the folder's lock; say once if another process has it. A killed process loses it by itself."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = f"Another process is preprocessing unlabeled cases in {folder}; waiting for it."
        lock = awaited_lock(folder / LOCK_FILE, say, waiting)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder} can't be written to ({reason}): unlabeled cases have to be preprocessed there."
        ) from error
    with released_at_end(lock):
        remove_temporary_files(folder)
        yield


def _from_environment(variable: str, dataset_name: str) -> str | None:
    root = os.environ.get(variable)
    return None if not root else os.path.join(root, dataset_name)
