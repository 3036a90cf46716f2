# SPDX-License-Identifier: Apache-2.0
"""Find unlabeled cases that are a labeled, validation or test case, by identifier or by identical voxels."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_json
from nnunet_dhc.nnunet.host.plans_settings import settings_in
from nnunet_dhc.nnunet.host.raw_images import IMAGES_UN, RawCase
from nnunet_dhc.nnunet.splits.fold_cases import SPLITS_FILE, FoldCases
from nnunet_dhc.nnunet.unlabeled.odd_scans import ImageSummary, from_json
from nnunet_dhc.warning_kinds import LEAK, TRANSDUCTION
from nnunet_dhc.wording import name_some

HASHES_FILE = "labeled_hashes.json"
TEST_PREFIX = "imagesTs/"
HELD_OUT_PREFIX = "imagesTr/"  # labeled cases that no list of the fold names, kept for a test perhaps


@dataclass(frozen=True)
class OutsideOfFolds:
    """Cases that a user may want to score although no list of the folds names them.

    Attributes:
        held_out: Labeled ones.
        test: Those in ``imagesTs``; None where that can't be listed, and what was hashed there earlier counts.
    """

    held_out: Collection[str] = ()
    test: Collection[str] | None = None

    def is_in_test(self, identifier: str) -> bool:
        """Whether a case that was hashed in ``imagesTs`` counts as being there."""
        return self.test is None or identifier in self.test


class LabeledHashes:
    """Voxel hashes of labeled and test images, kept in the store's folder so that each image is read once.

    Keys are identifiers; those of images outside of the fold have a prefix. Only images are read, never a label.

    Args:
        folder: The store's folder.
        reader: Name of nnU-Net's reader; another one may give voxels in another order.
    """

    def __init__(self, folder: str | Path, reader: str) -> None:
        self.path = Path(folder) / HASHES_FILE
        self.reader = reader
        self._unsaved = False
        self.by_key: dict[str, tuple[list[list[Any]], str | None, ImageSummary | None]] = {}
        try:
            cached = json.loads(self.path.read_text(encoding="utf-8"))
            if cached["reader"] == reader:
                self.by_key = {
                    key: (sources, voxels, from_json(summary))
                    for key, (sources, voxels, summary) in cached["images"].items()
                }
        except (OSError, ValueError, AttributeError, TypeError, KeyError):
            pass  # a cache: made again

    def missing(self, cases: Mapping[str, RawCase]) -> list[str]:
        """Keys whose images are new or changed, or couldn't be read so far, as on a disk that was away."""
        return [
            key for key, case in cases.items() if self._sources(key) != _as_lists(case) or self.voxels(key) is None
        ]

    def add(self, key: str, case: RawCase, voxels: str | None, summary: ImageSummary | None) -> None:
        """Remember one hash (None: the image can't be read); ``save`` writes it."""
        self.by_key[key] = (_as_lists(case), voxels, summary)
        self._unsaved = True

    def save(self) -> None:
        """Write all hashes at once, if any is new."""
        if self._unsaved:
            replace_json(self.path, {"reader": self.reader, "images": self.by_key})
            self._unsaved = False

    def voxels(self, key: str) -> str | None:
        """Hash of one case, or None if its image could not be read."""
        return self.by_key[key][1] if key in self.by_key else None

    def summaries(self, keys: Iterable[str]) -> list[ImageSummary]:
        """What the images of labeled cases look like; of these keys, those outside of the fold are left out."""
        known = (self.by_key[key][2] for key in keys
                 if key in self.by_key and not key.startswith((TEST_PREFIX, HELD_OUT_PREFIX)))
        return [summary for summary in known if summary is not None]

    def keys_of(self, prefix: str) -> dict[str, list[str]]:
        """Keys with a prefix by their hash."""
        found: dict[str, list[str]] = {}
        for key, (_, voxels, _) in self.by_key.items():
            if key.startswith(prefix) and voxels is not None:
                found.setdefault(voxels, []).append(key.removeprefix(prefix))
        return found

    def _sources(self, key: str) -> list[list[Any]] | None:
        return self.by_key[key][0] if key in self.by_key else None


def _as_lists(case: RawCase) -> list[list[Any]]:
    return [list(source) for source in case.sources]


def refuse_leaks_by_name(from_images_un: Iterable[str], folds: Sequence[FoldCases], images_un: str) -> None:
    """Raise if an identifier in ``imagesUn`` also names a case of a fold."""
    names = set(from_images_un)
    for fold in folds:
        for role, cases in (("training", fold.labeled), ("validation", fold.validation)):
            both = sorted(names.intersection(cases))
            if both:
                raise UserError(
                    f"{name_some(both)} in {images_un} has the name of a labeled {role} case of this fold, which "
                    f"would leak: remove it from {IMAGES_UN}, or rename it if it is another patient."
                )
        both = sorted(names.intersection(fold.unlabeled))
        if both:
            raise UserError(
                f'{name_some(both)} is in {images_un} and also under "unlabeled" in splits_final.json: '
                f"remove it from {IMAGES_UN}, or rename it if it is another patient."
            )


def leaks_are_allowed(plans: Mapping[str, Any]) -> bool:
    """Whether the plans say so; a case with the name of a labeled one is refused anyway: it can be renamed."""
    return settings_in(plans).get("allow_leaks") is True


def check_voxels(
    unlabeled: Mapping[str, str | None],
    origin: Callable[[str], str],
    folds: Sequence[tuple[FoldCases, frozenset[str]]],
    hashes: LabeledHashes,
    outside: OutsideOfFolds = OutsideOfFolds(),
    allow_leaks: bool = False,
) -> list[str]:
    """Compare the voxels of unlabeled cases with those of labeled, validation and test cases.

    Args:
        unlabeled: Voxel hash by identifier of unlabeled case.
        origin: Folder in which an unlabeled case lies.
        folds: Each fold with the unlabeled cases that it trains on.
        hashes: Hashes of the images of labeled and test cases.
        outside: Cases that no list of these folds names.
        allow_leaks: Note leaks instead of raising; see `leaks_are_allowed`.

    Returns:
        Notes on cases that leak, where that is allowed, on cases that are also test cases or held out (transduction),
        and on unlabeled cases that equal each other.

    Raises:
        UserError: An unlabeled case has the voxels of a labeled or validation case of the same fold.
    """
    found = _Twins(unlabeled, origin, hashes)
    notes = [
        _leaks(found, folds, allow_leaks),
        *_in_test(found, outside),
        _held_out(found, outside),
        _among_each_other(found),
    ]
    return [note for note in notes if note is not None]


class _Twins:
    """Unlabeled cases by their voxels."""

    def __init__(
        self, unlabeled: Mapping[str, str | None], origin: Callable[[str], str], hashes: LabeledHashes
    ) -> None:
        self.unlabeled = unlabeled
        self.hashes = hashes
        self._origin = origin
        self.by_voxels: dict[str, list[str]] = {}
        for identifier, voxels in unlabeled.items():
            if voxels is not None:
                self.by_voxels.setdefault(voxels, []).append(identifier)

    def of(self, voxels: str | None) -> Sequence[str]:
        """Unlabeled cases with these voxels."""
        return () if voxels is None else self.by_voxels.get(voxels, ())

    def named(self, identifier: str) -> str:
        """An unlabeled case with its folder."""
        return f"{self._origin(identifier)}/{identifier}"


def _leaks(
    twins: _Twins, folds: Sequence[tuple[FoldCases, frozenset[str]]], allow_leaks: bool
) -> str | None:
    leaks = {
        f"{twins.named(twin)} = {role} case {case}"
        for fold, trained_on in folds
        for role, cases in (("training", fold.labeled), ("validation", fold.validation))
        for case in cases
        for twin in twins.of(twins.hashes.voxels(case))
        if twin in trained_on
    }
    if not leaks:
        return None
    pairs = name_some(sorted(leaks))
    if not allow_leaks:
        raise UserError(
            f"Unlabeled cases with exactly the voxels of labeled cases of the fold would leak: {pairs}. Remove "
            "them from the unlabeled cases, or keep them knowingly: nnunet_dhc configure -d DATASET -p PLANS -o "
            "PLANSLeaky --set allow_leaks=true, then train with -p PLANSLeaky"
        )
    return (
        f"{LEAK}, allowed by the setting allow_leaks: unlabeled cases have the voxels of labeled cases of the fold "
        f"({pairs}); scores on validation cases among them are not scores on unseen images."
    )


def _in_test(twins: _Twins, outside: OutsideOfFolds) -> Iterator[str]:
    transductive = sorted(
        twin
        for voxels, cases in twins.hashes.keys_of(TEST_PREFIX).items()
        if any(map(outside.is_in_test, cases))
        for twin in twins.of(voxels)
    )
    if transductive:
        yield (
            f"{TRANSDUCTION}: {name_some(transductive)} {'is' if len(transductive) == 1 else 'are'} also in imagesTs; "
            "scores on these test cases are not scores on unseen images."
        )
    namesakes = sorted(set(twins.unlabeled).intersection(outside.test or ()).difference(transductive))
    if namesakes:
        yield (
            f"{name_some(namesakes)} {'names' if len(namesakes) == 1 else 'name'} other images in imagesTs: if they "
            "are of the same patients, scores on these test cases are not scores on unseen patients."
        )


def _held_out(twins: _Twins, outside: OutsideOfFolds) -> str | None:
    same_voxels = {
        f"{twins.named(twin)} = {case}"
        for voxels, cases in twins.hashes.keys_of(HELD_OUT_PREFIX).items()
        for case in cases
        if case in outside.held_out
        for twin in twins.of(voxels)
        if twin != case
    }
    same_name = {twins.named(case) for case in outside.held_out if case in twins.unlabeled}
    if not (same_name or same_voxels):
        return None
    return (
        f"{TRANSDUCTION}: trained on without their labels, though no list of the fold names these labeled cases: "
        f"{name_some(sorted(same_name | same_voxels))}; scores on them are not scores on unseen images. If "
        f'their labels are to be learned, take them out of {IMAGES_UN} and add them to "train" in {SPLITS_FILE}.'
    )


def _among_each_other(twins: _Twins) -> str | None:
    same = [" = ".join(sorted(group)) for group in twins.by_voxels.values() if len(group) > 1]
    return f"Unlabeled cases with identical voxels count more than once: {name_some(sorted(same))}." if same else None
