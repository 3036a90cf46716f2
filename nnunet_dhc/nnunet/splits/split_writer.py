# SPDX-License-Identifier: Apache-2.0
"""Write ``splits_final.json`` with the key "unlabeled": the same file tells stock nnU-Net which cases are labeled."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_file, replace_json
from nnunet_dhc.nnunet.host.dataset_places import DatasetPlaces, locate_dataset, read_plans
from nnunet_dhc.nnunet.host.raw_images import IMAGES_UN, training_identifiers
from nnunet_dhc.nnunet.splits.fold_cases import SPLITS_FILE, case_list, load_folds
from nnunet_dhc.nnunet.splits.label_contents import CACHE_FILE, classes_of_cases, foreground_classes, label_files
from nnunet_dhc.nnunet.splits.split_drawing import (
    draw_folds,
    labeled_order,
    make_units,
    missing_classes,
    take_labeled,
    without,
)
from nnunet_dhc.nnunet.splits.split_protocols import protocol_fold
from nnunet_dhc.nnunet.splits.strict_plans import strict_plans
from nnunet_dhc.wording import name_some

Fold = dict[str, list[str]]


@dataclass
class SplitRequest:
    """What the user asked for; see ``nnunet_dhc split -h``."""

    labeled: float | int | None = None
    folds: int = 5
    seeds: Sequence[int] = (0,)
    validation: float | int | None = None
    groups_file: Path | None = None
    protocol: str | None = None
    keep_folds: bool = False
    stratified: bool = True


@dataclass
class SplitResult:
    """Folds with, for each, the classes that none of its labeled cases has; files written; notes to print."""

    dataset: str
    folds: list[Fold]
    absent_classes: list[list[str]]
    left_out: list[str]
    written: list[Path] = field(default_factory=list)
    backups: list[Path] = field(default_factory=list)
    strict_plans: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_split(
    dataset: str | int,
    request: SplitRequest,
    *,
    dry_run: bool = False,
    strict_from: str | None = None,
    num_processes: int = 1,
) -> SplitResult:
    """Draw a split and write it.

    Args:
        dataset: Dataset id or name.
        request: What to draw.
        dry_run: Draw and check everything, write nothing (but the cache of label counts).
        strict_from: Plans identifier from which plans with statistics of the labeled cases are made, one per fold.
        num_processes: Processes that count labels.

    Raises:
        UserError: The split asked for can't be made, or can't be written where nnU-Net would read it.
    """
    places = locate_dataset(dataset)
    dataset_json = places.dataset_json()
    files = label_files(places.raw, places.preprocessed, dataset_json)
    with_image = training_identifiers(places.raw, dataset_json) if places.raw else []
    without_image = sorted(set(files).difference(with_image)) if with_image else []
    for case in without_image:
        del files[case]
    identifiers = sorted(files)
    if strict_from:
        read_plans(places.preprocessed, strict_from)  # in a dry run, too; without them nothing need be drawn
        if places.raw is None:
            raise UserError("--strict reads the labeled images: nnUNet_raw must hold the dataset")
    # Without stratification no label file is opened.
    classes_of = (
        classes_of_cases(files, dataset_json, places.preprocessed / CACHE_FILE, num_processes)
        if request.stratified
        else {}
    )
    folds = _draw(places, request, identifiers, classes_of)
    used = {case for fold in folds for cases in fold.values() for case in cases}
    names = list(foreground_classes(dataset_json)) if request.stratified else []
    result = SplitResult(
        places.name,
        folds,
        [missing_classes(fold["train"], classes_of, names) for fold in folds],
        [case for case in identifiers if case not in used],
    )
    has_images_un = places.raw is not None and any((places.raw / IMAGES_UN).glob("[!.]*"))
    result.notes += _notes(result, classes_of, names, has_images_un)
    if without_image:
        result.notes.append(f"no image in imagesTr, so in no list: {name_some(without_image, 6)}")
    if not dry_run:
        targets = _writable_targets(places)
        # Made before anything is written: plans or images may be missing, and both files belong together.
        strict = _strict_plans(places, result, strict_from, files) if strict_from else []
        _write(places.name, targets, result)
        for plans in strict:
            path = places.preprocessed / f"{plans['plans_name']}.json"
            replace_json(path, plans)
            result.strict_plans.append(path)
    return result


def _draw(
    places: DatasetPlaces, request: SplitRequest, identifiers: Sequence[str], classes_of: Mapping[str, frozenset[str]]
) -> list[Fold]:
    if request.protocol:
        return [protocol_fold(request.protocol, identifiers)]
    if request.labeled is None:
        raise UserError("--labeled is needed: a fraction of each fold's training cases (0.2), or a count (4)")
    groups = read_groups(request.groups_file, identifiers) if request.groups_file else None
    units = make_units(identifiers, groups)
    unit_of = {case: unit for unit in units for case in unit}
    if request.keep_folds:
        divisions = [_kept_fold(fold, unit_of) for fold in _existing_folds(places)]
    elif request.folds == 1:
        wanted = 0.2 if request.validation is None else request.validation
        order = labeled_order(units, request.seeds[0], -1 % 2**31, {})
        validation = take_labeled(order, wanted, len(identifiers), "--val", "cases of the dataset")
        divisions = [(without(units, validation), validation)]
    else:
        if request.validation is not None:
            raise UserError("--val goes with --folds 1: with more folds, each case is a validation case once")
        dealt = draw_folds(units, request.folds, request.seeds[0], classes_of)
        divisions = [(without(units, part), part) for part in dealt]
    folds = []
    for seed in request.seeds:
        for number, (training, validation) in enumerate(divisions):
            if not training:
                raise UserError(f"fold {number} would have no training case: ask for fewer validation cases")
            order = labeled_order(training, seed, number, classes_of)
            labeled = take_labeled(order, request.labeled, sum(map(len, training)))
            folds.append({
                "train": _cases(labeled),
                "val": _cases(validation),
                "unlabeled": _cases(without(training, labeled)),
            })
    return folds


def _cases(units: Sequence[tuple[str, ...]]) -> list[str]:
    return sorted(case for unit in units for case in unit)


def _existing_folds(places: DatasetPlaces) -> list[Fold]:
    path = places.preprocessed / SPLITS_FILE
    if not path.is_file():
        raise UserError(f"--keep: {path} does not exist; leave the option out to draw folds")
    folds = []
    for number, fold in enumerate(load_folds(path)):
        where = f"fold {number} of {path}"
        if not isinstance(fold, dict):
            raise UserError(f"{where} is no object with lists of cases: repair it, or leave --keep out to draw folds")
        kept = {key: list(case_list({key: [], **fold}, key, where)) for key in ("train", "val", "unlabeled")}
        if not kept["val"]:
            raise UserError(f'--keep: {where} has no validation case, and training would refuse it: list some under '
                            '"val", or leave --keep out to draw folds')
        folds.append(kept)
    return folds


def _kept_fold(fold: Fold, unit_of: Mapping[str, tuple[str, ...]]) -> tuple[list, list]:
    unknown = [case for cases in fold.values() for case in cases if case not in unit_of]
    if unknown:
        raise UserError(f"--keep: {name_some(unknown)} of {SPLITS_FILE} is not in the dataset: repair the file first")
    validation = {unit_of[case] for case in fold["val"]}
    in_training = {*fold["train"], *fold["unlabeled"]}
    training = {unit_of[case] for case in in_training}
    if both := sorted(in_training.intersection(fold["val"])):
        raise UserError(f"--keep: {name_some(both)} of {SPLITS_FILE} is for training and for validation in one fold, "
                        "as where a dataset has a single case: leave --keep out to draw folds")
    if validation & training:
        raise UserError("--keep: a group of --groups has training and validation cases in the existing file: "
                        "leave --keep out to draw folds that keep groups together")
    # a group may have further cases that the file keeps out of this fold
    return sorted(tuple(case for case in unit if case in in_training) for unit in training), [tuple(fold["val"])]


def read_groups(path: Path, identifiers: Sequence[str]) -> dict[str, str]:
    """Read the CSV with the columns ``identifier`` and ``group``; a case with an empty group is one of its own.

    Raises:
        UserError: Not readable, other columns, unknown or repeated identifiers.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} can't be read ({reason}): it must be a CSV file with identifier,group") from error
    if not rows or not {"identifier", "group"} <= set(rows[0]):
        raise UserError(f"{path} must have a first line with the columns identifier,group and one line per case")
    groups: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        identifier = (row["identifier"] or "").strip()
        if not identifier:
            raise UserError(f"{path}: line {number} names no case: write identifier and group, or take it out")
        if identifier in groups:
            raise UserError(f"{path} names {identifier} twice: keep one line")
        groups[identifier] = (row["group"] or "").strip()
    unknown = sorted(set(groups) - set(identifiers))
    if unknown:
        raise UserError(f"{path} names cases that the dataset does not have: {name_some(unknown)}")
    return {identifier: group for identifier, group in groups.items() if group}


def _notes(
    result: SplitResult, classes_of: Mapping[str, frozenset[str]], names: Sequence[str], has_images_un: bool
) -> list[str]:
    notes = []
    everywhere = missing_classes(list(classes_of), classes_of, names) if classes_of else []
    if everywhere:
        notes.append(f"no case of the dataset contains {', '.join(everywhere)}")
    for number, absent in enumerate(result.absent_classes):
        absent = [name for name in absent if name not in everywhere]
        if not absent:
            continue
        fold = result.folds[number]
        elsewhere = missing_classes(fold["train"] + fold["unlabeled"], classes_of, names)
        reason = "more labeled cases would be needed" if not set(absent) & set(elsewhere) else (
            "only validation cases have " + ", ".join(n for n in absent if n in elsewhere))
        notes.append(f"fold {number}: no labeled case contains {', '.join(absent)} ({reason})")
    if not has_images_un and not all(fold["unlabeled"] for fold in result.folds):
        notes.append("a fold without unlabeled cases needs scans in imagesUn, or a smaller --labeled")
    return notes


def _writable_targets(places: DatasetPlaces) -> list[Path]:
    """The file in nnUNet_preprocessed, and in nnUNet_raw where one is: planning again asserts that both agree."""
    targets = [places.preprocessed / SPLITS_FILE]
    if places.raw is not None and (places.raw / SPLITS_FILE).is_file():
        targets.append(places.raw / SPLITS_FILE)
    places.preprocessed.mkdir(parents=True, exist_ok=True)
    for target in targets:
        if not os.access(target.parent, os.W_OK):
            raise UserError(f"{target} can't be written, and planning again fails unless it agrees with the split: "
                            "make the folder writable or remove the file; nothing was changed")
    return targets


def _write(dataset: str, targets: Sequence[Path], result: SplitResult) -> None:
    content = json.dumps(result.folds, indent=4).encode()
    for target in targets:
        if target.is_file():
            if target.read_bytes() == content:
                result.notes.append(f"{target} is already like that")
                continue
            result.backups.append(_back_up(target))
        replace_file(target, content)
        result.written.append(target)
    if result.backups:
        trained = _trained_folds(dataset)
        if trained:
            result.notes.append(f"trained with the old split: {name_some(trained, 4)} in nnUNet_results; don't compare "
                                "them with new trainings")


def _back_up(path: Path) -> Path:
    stamp = datetime.now().strftime("%Y%m%dT%H%M%S")
    backup, number = path.with_name(f"{path.name}.{stamp}.bak"), 1
    while backup.exists():
        backup, number = path.with_name(f"{path.name}.{stamp}-{number}.bak"), number + 1
    shutil.copy2(path, backup)
    return backup


def _trained_folds(dataset_name: str) -> list[str]:
    root = os.environ.get("nnUNet_results")
    folder = Path(root) / dataset_name if root else None
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/fold_[0-9]*")) if folder else []


def _strict_plans(
    places: DatasetPlaces, result: SplitResult, identifier: str, files: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """Plans of each fold, to be written beside the split."""
    found: list[dict[str, Any]] = []
    for number, fold in enumerate(result.folds):
        plans = strict_plans(places.raw, places.preprocessed, identifier, number, fold["train"], files)
        if plans is None:
            result.notes.append(f"{identifier} normalizes each image by itself: nothing in it comes from labels, and "
                                "no strict plans are needed")
            return []
        found.append(plans)
    return found
