# SPDX-License-Identifier: Apache-2.0
"""What ``nnunet_dhc doctor -d`` finds out about a dataset, from raw data to folds."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.dataset_places import DatasetPlaces, id_of, locate_dataset, read_plans
from nnunet_dhc.nnunet.host.installation import Finding
from nnunet_dhc.nnunet.host.plans_settings import PLANS_KEY, settings_in
from nnunet_dhc.nnunet.host.raw_images import IMAGES_UN, RawCase, list_image_folder, training_identifiers
from nnunet_dhc.nnunet.splits.fold_cases import SPLITS_FILE, default_folds, number_of_folds, read_fold_cases
from nnunet_dhc.nnunet.training.recipe import refuse_invalid
from nnunet_dhc.nnunet.unlabeled.unlabeled_store import BAD_CASES_FILE, EXCLUDED, READY, StoreEntry, UnlabeledStore
from nnunet_dhc.wording import name_some


def check_dataset(dataset: str | int) -> list[Finding]:
    """Findings about one dataset; a dataset that can't be found is a finding, too."""
    try:
        places = locate_dataset(dataset)
        dataset_json = places.dataset_json()
    except UserError as error:
        return [Finding("broken", f"dataset {dataset}", str(error))]
    findings, identifiers, without_label = _raw(places, dataset_json)
    scans, found = _images_un(places, dataset_json)
    findings += found
    plans, found = _plans(places)
    findings += found
    if not plans:
        findings.append(Finding("broken", "plans", f"none in {places.preprocessed}",
                                f"nnUNetv2_plan_and_preprocess -d {id_of(places.name)} -c 3d_fullres"))
    cases = identifiers
    if places.raw is None:
        cases = _cases_without_raw(places, dataset_json, plans)
    for name, content in plans.items():
        findings += _preprocessed(places, name, content, [case for case in cases if case not in without_label])
    return findings + _folds(places, cases, scans)


def _cases_without_raw(
    places: DatasetPlaces, dataset_json: dict[str, Any], plans: Mapping[str, dict[str, Any]]
) -> list[str]:
    """Cases of ``gt_segmentations`` that are preprocessed with any plans; all of them where none is.

    nnU-Net never takes a file out of that folder, so it may have cases that were removed from the dataset since.
    """
    ending, labels = dataset_json["file_ending"], places.preprocessed / "gt_segmentations"
    cases = sorted(file.name.removesuffix(ending) for file in labels.glob(f"*{ending}"))
    folders = {places.preprocessed / plan["data_identifier"] for content in plans.values()
               for plan in content["configurations"].values() if "data_identifier" in plan}
    known = set().union(*(_labeled_in(folder) for folder in folders if folder.is_dir()))
    return [case for case in cases if case in known] or cases


def _labeled_in(folder: Path) -> set[str]:
    """Cases that nnU-Net has preprocessed with their labels."""
    names = [path.name for path in folder.iterdir()]
    return {name.removesuffix(end) for end in ("_seg.b2nd", ".npz") for name in names if name.endswith(end)}


def _raw(places: DatasetPlaces, dataset_json: dict[str, Any]) -> tuple[list[Finding], list[str], set[str]]:
    """What is wrong, the cases of ``imagesTr``, and those of them without a label."""
    if places.raw is None:
        return [Finding("note", "raw data", f"{places.name} is not in nnUNet_raw; training does not need it once "
                                            "everything is preprocessed")], [], set()
    identifiers = training_identifiers(places.raw, dataset_json)
    labels = _labels_of(places.raw, identifiers, dataset_json)
    unlabeled = [case for case in identifiers if not labels[case].is_file()]
    if "dataset" in dataset_json:
        listed = {case: [labels[case], *(places.raw / os.path.expandvars(image)
                                         for image in dataset_json["dataset"][case]["images"])]
                  for case in identifiers}
        gone = [path for paths in listed.values() for path in paths if not path.is_file()]
        if gone:
            return [Finding("broken", "raw data", f'{gone[0]}, which dataset.json lists under "dataset", is not there '
                                                  f"({len(gone)} such files)",
                            "bring the files back, or correct dataset.json")], identifiers, set()
    if unlabeled:
        return [Finding("broken", "raw data", f"no label for {name_some(unlabeled, 3)} in {places.raw / 'imagesTr'}",
                        f"label such scans, or move them to {IMAGES_UN} (this shows how; without echo it does it): "
                        + _move_scans_without_labels(places.raw, dataset_json["file_ending"]))
                ], identifiers, set(unlabeled)
    classes = [name for name in dataset_json["labels"] if name not in ("background", "ignore")]
    text = f"{places.raw}: {len(identifiers)} cases with labels, {len(classes)} classes"
    if dataset_json.get("numTraining") not in (None, len(identifiers)):
        text += f", but dataset.json says numTraining {dataset_json['numTraining']}"
        return [Finding("broken", "raw data", text,
                        "correct it; scans without labels belong to imagesUn, not to imagesTr")], identifiers, set()
    return [Finding("ok", "raw data", text)], identifiers, set()


def _move_scans_without_labels(raw: Path, ending: str) -> str:
    """Shell commands, in the raw folder."""
    spacing = ' imagesTr/"$c.json"' if ending.startswith(".tif") else ""  # beside nnU-Net's TIFF files
    return (f"cd {shlex.quote(str(raw))} && mkdir -p {IMAGES_UN} && for f in imagesTr/*_0000{ending}; do "
            f'c=$(basename "$f" _0000{ending}); [ -e labelsTr/"$c{ending}" ] || echo mv -n imagesTr/"$c"_????{ending}'
            f"{spacing} {IMAGES_UN}; done")


def _labels_of(raw: Path, identifiers: list[str], dataset_json: dict[str, Any]) -> dict[str, Path]:
    """Where the label of each case should be."""
    if "dataset" in dataset_json:
        return {case: raw / os.path.expandvars(dataset_json["dataset"][case]["label"]) for case in identifiers}
    return {case: raw / "labelsTr" / f"{case}{dataset_json['file_ending']}" for case in identifiers}


def _images_un(places: DatasetPlaces, dataset_json: dict[str, Any]) -> tuple[int, list[Finding]]:
    folder = places.raw / IMAGES_UN if places.raw else None
    if folder is None and (stored := _stored_images_un(places)):
        return stored, [Finding("note", IMAGES_UN, f"not in nnUNet_raw; {stored} of its scans are preprocessed, and "
                                                   "training takes these")]
    if folder is None or not folder.is_dir():
        return 0, [Finding("note", IMAGES_UN, "no such folder; unlabeled scans can also come from the key "
                                              f'"unlabeled" of {SPLITS_FILE}')]
    cases = list_image_folder(folder, dataset_json)
    excluded = _excluded(places, cases)
    bad = [f"{case.identifier} ({case.problem})" for name, case in cases.items()
           if case.problem and name not in excluded]
    usable = len(cases) - len(bad) - len(excluded)
    findings = [Finding("ok" if usable else "note", IMAGES_UN, f"{usable} scans")]
    if excluded:
        findings.append(Finding("note", IMAGES_UN, f"excluded as bad: {name_some(sorted(excluded), 3)}; "
                                                   f"{BAD_CASES_FILE} says why"))
    if bad:
        findings.append(Finding("broken", IMAGES_UN, name_some(bad, 3), "repair or remove, or use "
                                                                        "nnunet_dhc preprocess --skip-bad"))
    return usable, findings


def _stored_images_un(places: DatasetPlaces) -> int:
    """Scans of ``imagesUn`` that are ready, with the plans that have most of them."""
    counts = [sum(entry.status == READY and entry.origin == IMAGES_UN for entry in store) for store in _stores(places)]
    return max(counts, default=0)


def _stores(places: DatasetPlaces) -> Iterator[Collection[StoreEntry]]:
    """What each store of unlabeled cases holds; a damaged one is said where the plans are."""
    for folder in places.preprocessed.glob("*_unlabeled"):
        with suppress(UserError):
            yield UnlabeledStore(folder).entries.values()


def _excluded(places: DatasetPlaces, cases: Mapping[str, RawCase]) -> set[str]:
    """Scans that ``--skip-bad`` recorded as they are now, with any plans."""
    return {entry.identifier for store in _stores(places) for entry in store if entry.status == EXCLUDED
            and entry.identifier in cases and entry.sources == cases[entry.identifier].sources}


def _plans(places: DatasetPlaces) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """Content of the plans by identifier, and what is wrong with those that a training would refuse."""
    plans, findings = {}, []
    for path in sorted(places.preprocessed.glob("*.json")):
        try:
            content = read_plans(places.preprocessed, path.stem)
        except UserError as error:
            if "Plans" in path.stem:  # as nnU-Net's planners name theirs; there are other JSON files
                findings.append(Finding("broken", f"plans {path.stem}", str(error)))
            continue
        plans[path.stem] = content
        try:
            refuse_invalid(settings_in(content), f"settings in {path}")
        except UserError as error:
            findings.append(Finding("broken", f"plans {path.stem}", str(error)))
    return plans, findings


def _preprocessed(places: DatasetPlaces, name: str, plans: dict[str, Any], cases: list[str]) -> list[Finding]:
    parts, missing, findings = [], [], []
    for configuration, plan in plans["configurations"].items():
        folder = places.preprocessed / plan.get("data_identifier", "")
        if "data_identifier" not in plan:
            continue
        if not folder.is_dir():
            missing.append(configuration)
            continue
        labeled = _labeled_in(folder)
        parts.append(f"{configuration} {len(labeled)} labeled{_unlabeled_ready(folder)}")
        absent = [case for case in cases if case not in labeled]
        if absent:
            command = f"nnUNetv2_preprocess -d {id_of(places.name)} -plans_name {name} -c {configuration}"
            text = f"{name_some(absent, 3)} not preprocessed in {folder}"
            findings.append(Finding("broken", f"plans {name}", text, command))
    text = "; ".join(parts) or "nothing preprocessed yet"
    if missing and parts:
        text += f" (not preprocessed: {', '.join(missing)})"
    settings = plans.get(PLANS_KEY)
    text += f"; settings of nnunet_dhc: {', '.join(sorted(settings))}" if settings else ""
    return [Finding("ok" if parts else "note", f"plans {name}", text), *findings]


def _unlabeled_ready(folder: Path) -> str:
    try:
        entries = UnlabeledStore(Path(f"{folder}_unlabeled")).entries.values()
    except UserError as error:
        return f" (unlabeled: {error})"
    ready = sum(entry.status == READY for entry in entries)
    return f", {ready} unlabeled ready" if ready else ", unlabeled not preprocessed yet (training does it)"


def _folds(places: DatasetPlaces, identifiers: list[str], scans: int) -> list[Finding]:
    path = places.preprocessed / SPLITS_FILE
    if not identifiers:
        return []
    if not path.is_file():
        count = len(default_folds(identifiers)) if len(identifiers) > 1 else 1
        return [Finding("note", SPLITS_FILE, f"not written yet; the first training makes {count} folds")]
    findings, notes = [], set()
    try:
        for fold in range(number_of_folds(places.preprocessed, identifiers)):
            cases = read_fold_cases(places.preprocessed, identifiers, fold)
            notes.update([cases.note_on_left_out] if cases.note_on_left_out else [])
            unlabeled = scans + len(cases.unlabeled)
            text = f"{len(cases.labeled)} labeled, {unlabeled} unlabeled, {len(cases.validation)} validation cases"
            findings.append(Finding("ok", f"fold {fold}", text) if unlabeled else Finding(
                "note", f"fold {fold}", text, f"put scans into {IMAGES_UN} or use nnunet_dhc split"))
    except UserError as error:
        findings.append(Finding("broken", SPLITS_FILE, str(error)))
    return findings + [Finding("note", SPLITS_FILE, note) for note in sorted(notes)]
