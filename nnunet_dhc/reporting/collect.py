# SPDX-License-Identifier: Apache-2.0
"""Find what is to be compared: validation folders of trainings, or plain folders of predictions."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.collection import Collection, Note, Row, Run, check_comparable, notes_of_trainings
from nnunet_dhc.reporting.image_files import other_place
from nnunet_dhc.reporting.run_files import RunRecord, case_list, json_object, read_run
from nnunet_dhc.reporting.splits_file import SplitsFile
from nnunet_dhc.reporting.structures import label_space, read_dataset_json
from nnunet_dhc.reporting.table_cells import cases_text

_IN_SPLIT_AND_LOG = {"labeled": ("train", 0), "validation": ("val", 1)}
_ALL = "all"
_TRAINING = re.compile(r"(?:(?P<name>[^=@]+)=)?(?P<trainer>\w+)(?:@(?P<plans>[^@=]+))?")


@dataclass(frozen=True)
class Selection:
    """Which trainings: the options ``-d -tr -p -c -f`` and the results folders, one per repeat.

    A trainer may carry plans of its own and a name for its row: ``[NAME=]TRAINER[@PLANS]``.
    """

    dataset: str
    trainers: Sequence[str]
    plans: Sequence[str] = ("nnUNetPlans",)
    configurations: Sequence[str] = ("3d_fullres",)
    folds: Sequence[str] | None = None
    results_roots: Sequence[Path] = ()


def collect_trainings(selection: Selection, allow_different: bool = False, unfinished: bool = False) -> Collection:
    """Rows for every trainer, plans and configuration, with one repeat per results folder that has it.

    Args:
        selection: Which trainings.
        allow_different: Compare though cases or labeled cases differ.
        unfinished: Take runs that are not validated yet; they have no predictions then.
    """
    roots = _results_roots(selection)
    name = dataset_name(selection.dataset, roots)
    preprocessed = _optional_folder("nnUNet_preprocessed", name)
    raw = _optional_folder("nnUNet_raw", name)
    rows, models, left_out = [], [], []
    splits = SplitsFile(preprocessed)
    for row in _selected_rows(selection):
        model = f"{row.trainer}__{row.plans}__{row.configuration}"
        found = [root / name / model for root in roots if (root / name / model).is_dir()]
        if not found:
            trained = sorted({path.name for root in roots for path in (root / name).glob("*__*__*") if path.is_dir()})
            remedy = f"train it with nnUNetv2_train {selection.dataset} {row.configuration} 0 -tr {row.trainer}"
            remedy += f" -p {row.plans}"
            if trained:
                remedy = f"correct -tr, -p or -c (trained: {', '.join(trained)}), or {remedy}"
            raise UserError(f"{roots[0] / name / model} does not exist: {remedy}.")
        if plans := json_object(found[0] / "plans.json"):
            row.plans_hash = _content_hash(plans)
            row.planned = _content_hash({key: plans[key] for key in plans.keys() - {"plans_name", "nnunet_dhc"}})
        models += found
        for repeat, folder in enumerate(found):
            row.runs += _runs(folder, repeat, selection.folds, preprocessed, splits, unfinished)
        has_all = any((folder / f"fold_{_ALL}").is_dir() for folder in found)
        if has_all and selection.folds is None and _ALL not in row.folds:
            left_out.append(row.name)
        rows.append(row)
    dataset_json = _first_dataset_json([*models, *(folder for folder in (preprocessed, raw) if folder)])
    ending = str(dataset_json["file_ending"])
    references = {}
    if any(row.cases for row in rows):
        references = _files_with(ending, _reference_folder(preprocessed, raw))
    collection = Collection(name, label_space(dataset_json), rows, references, file_ending=ending,
                            dataset_json=dataset_json, channel=_first_channel(dataset_json))
    if references:
        _check_predictions(collection, allow_different)
    collection.notes += notes_of_trainings(rows)
    if left_out:
        note = f"Fold all of {', '.join(left_out)} is left out: its validation cases were trained on."
        collection.notes.append(Note(note, note))
    for row in rows:
        if leftovers := [case for run in row.runs for case in run.leftovers]:
            note = (f"{row.name}: {len(leftovers)} predictions in its validation folders are not of its validation "
                    "cases, but left from an earlier split; they were not scored.")
            collection.notes.append(Note(note, note))
    if raw is not None:
        collection.images = _raw_images(raw, dataset_json, ending, collection)
    return collection


def collect_folders(inputs: Sequence[tuple[str, Path]], reference_folder: Path, dataset_json_file: Path,
                    images_folder: Path | None = None, allow_different: bool = False) -> Collection:
    """Rows from named folders of predictions; a name given twice is one row with two repeats."""
    dataset_json = read_dataset_json(dataset_json_file)
    ending = str(dataset_json["file_ending"])
    rows: dict[str, Row] = {}
    taken: dict[str, set[Path]] = {}
    for name, folder in inputs:
        row = rows.setdefault(name, Row(_printable("-i", name)))
        if not folder.is_dir():
            raise UserError(f"-i {folder} is not there: it must be a folder of predictions.")
        if folder.resolve() in taken.setdefault(name, set()):
            raise UserError(f"-i {name}={folder} is given twice, which would count as two repeats: leave one out.")
        taken[name].add(folder.resolve())
        if not (files := _files_with(ending, folder)):
            raise UserError(f"-i {folder} holds no {ending} file, which is file_ending in {dataset_json_file}.")
        row.runs.append(Run(len(row.runs), "-", files))
    if images_folder is not None and not images_folder.is_dir():
        raise UserError(f"--images {images_folder} is not there: it must be the folder of images (CASE_0000).")
    if not reference_folder.is_dir():
        raise UserError(f"{reference_folder} does not exist: -ref is the folder of reference label maps.")
    references = _files_with(ending, reference_folder)
    predicted = set().union(*(row.cases for row in rows.values()))
    name = str(dataset_json.get("name") or dataset_json_file.resolve().parent.name)
    collection = Collection(name, label_space(dataset_json), list(rows.values()), references, file_ending=ending,
                            dataset_json=dataset_json, channel=_first_channel(dataset_json))
    _check_predictions(collection, allow_different)
    if not_predicted := sorted(set(references) - predicted):
        text = f"{len(not_predicted)} of {len(references)} references have no prediction in any row and count nowhere"
        collection.notes.append(Note(f"{text}: {not_predicted[0]} ...", f"{text}."))
    _check_places(collection, allow_different)
    if images_folder is not None:
        collection.images = {case: path for case in references
                             if (path := images_folder / f"{case}_0000{ending}").is_file()}
    return collection


def _results_roots(selection: Selection) -> list[Path]:
    """One folder a repeat, each there and named once: another one would count as further trainings, or as none."""
    roots = list(selection.results_roots) or [environment_folder("nnUNet_results")]
    resolved = [root.resolve() for root in roots]
    for root, place in zip(roots, resolved, strict=True):
        if not root.is_dir():
            raise UserError(f"{root} is not there: check --results-roots, or nnUNet_results.")
        if resolved.count(place) > 1:
            raise UserError(f"--results-roots names {root} twice, which would count its trainings as repeats: leave "
                            "one out.")
    return roots


def environment_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's three variables names."""
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"{variable} is not set: export it as for nnU-Net, or give the folder with --results-roots.")
    return Path(value)


def dataset_name(dataset: str, folders: Sequence[Path]) -> str:
    """``Dataset501_Name`` for a number or a name, from the folders that exist."""
    prefix = f"Dataset{int(dataset):03d}_" if dataset.isdigit() else dataset
    found = {path.name for folder in folders for path in folder.glob("Dataset*") if path.is_dir()}
    matches = sorted(name for name in found if (name.startswith(prefix) if dataset.isdigit() else name == prefix))
    if len(matches) != 1:
        what = "no" if not matches else f"more than one ({', '.join(matches)})"
        raise UserError(f"{folders[0]} holds {what} folder for dataset {dataset}: "
                        "check -d and the results folder (nnUNet_results or --results-roots).")
    return matches[0]


def _selected_rows(selection: Selection) -> list[Row]:
    """A row for every trainer, plans and configuration; plans written at a trainer are that trainer's only ones."""
    for option, values in (("-c", selection.configurations), ("-p", selection.plans)):
        if twice := _repeated(values):
            raise UserError(f"{option} names {twice[0]} twice: leave one out.")
    rows = []
    for text in selection.trainers:
        match = _TRAINING.fullmatch(_printable("-tr", text))
        if match is None:
            raise UserError(f"-tr {text} is not [NAME=]TRAINER[@PLANS].")
        own_plans = match["plans"]
        plans_vary = len(selection.plans) > 1 if own_plans is None else match["name"] is None
        for plans in [own_plans] if own_plans else selection.plans:
            for configuration in selection.configurations:
                parts = [match["name"] or match["trainer"]]
                parts += [plans] if plans_vary else []
                parts += [configuration] if len(selection.configurations) > 1 else []
                rows.append(Row(" · ".join(parts), match["trainer"], plans, configuration))
    if twice := _repeated([row.name for row in rows]):
        raise UserError(f"-tr names the row {twice[0]} twice: give each another name, NAME=TRAINER@PLANS.")
    return rows


def _repeated(values: Sequence[str]) -> list[str]:
    return sorted({value for value in values if values.count(value) > 1})


def _printable(option: str, name: str) -> str:
    """The name of a row, which stands in lines of tables."""
    if not name.isprintable():
        raise UserError(f"{option} {name!r}: a row's name holds a line break or another character that can't be "
                        "printed; give it another name.")
    return name


def _runs(model: Path, repeat: int, folds: Sequence[str] | None, preprocessed: Path | None, splits: SplitsFile,
          unfinished: bool) -> list[Run]:
    existing = sorted(fold for path in model.glob("fold_*") if path.is_dir() and _is_fold(
        fold := path.name.removeprefix("fold_")))
    if folds is None and not unfinished:
        existing = [fold for fold in existing if (model / f"fold_{fold}" / "validation").is_dir()]
        existing = [fold for fold in existing if fold != _ALL] or existing  # its validation cases are training cases
    wanted = list(dict.fromkeys(existing if folds is None else folds))
    if not wanted:
        missing = "fold folder" if unfinished else "fold with a validation folder"
        raise UserError(f"{model} has no {missing}: train it, go on with its command and --c, or, if it is "
                        "trained, validate it with --val.")
    ending = str(_first_dataset_json([model, *([preprocessed] if preprocessed else [])])["file_ending"])
    runs = []
    for fold in wanted:
        folder = model / f"fold_{fold}"
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist: train this fold, or leave it out of -f.")
        record = read_run(folder)
        if record.began_after_validation and not unfinished:
            raise UserError(f"{folder}/validation is that of an earlier training in this folder: finish the one that "
                            "began after it (its command with --c), or leave the fold out of -f.")
        validated = not unfinished or (
            (folder / "validation" / "summary.json").is_file() and not record.began_after_validation)
        predictions = _validation_files(folder / "validation", ending) if validated else {}
        run = Run(repeat, fold, predictions, record)
        kinds = ["labeled", *(["validation"] if validated else [])]
        recorded = {kind: case_list(record.manifest, kind) for kind in kinds}
        split = None
        if None in recorded.values() and fold.isdigit() and not splits.changed_since(folder):
            split = splits.fold(int(fold))
        own = {kind: _own_cases(kind, recorded[kind], record, split) for kind in kinds}
        run.labeled = own["labeled"]
        if validated:
            _keep_own_predictions(run, own["validation"], folder / "validation")
        runs.append(run)
    return runs


def _is_fold(name: str) -> bool:
    """Whether nnU-Net has such a fold; other folders, such as fold_0_old, are somebody's copies."""
    return name.isdigit() or name == "all"


def _keep_own_predictions(run: Run, cases: list[str] | None, folder: Path) -> None:
    """Leave out what an earlier training with another split left in the folder, which nnU-Net never empties.

    Raises:
        UserError: A validation case of this training has no prediction, or nothing tells which predictions are its own.
    """
    if cases is None:
        counted = run.record.counted_cases if run.record is not None else None
        if counted is not None and len(run.predictions) > counted[1]:
            raise UserError(f"{folder} holds {len(run.predictions)} predictions, and by its log the training has "
                            f"{counted[1]} validation cases: others are left from an earlier split. Delete the folder "
                            f"and run nnUNetv2_train ... {run.fold} --val with the split of this training.")
        return
    if missing := sorted(set(cases) - set(run.predictions)):
        raise UserError(f"{folder} lacks {len(missing)} of {len(cases)} validation cases ({missing[0]} ...): finish it "
                        f"with nnUNetv2_train ... {run.fold} --val.")
    run.leftovers = sorted(set(run.predictions) - set(cases))
    run.predictions = {case: run.predictions[case] for case in cases}


def _own_cases(
    kind: str, recorded: list[str] | None, record: RunRecord, split: dict[str, Any] | None
) -> list[str] | None:
    """From the run's own record; for a stock run from the split file, if it still fits what the log counted."""
    if recorded is not None or split is None:
        return recorded
    key, place = _IN_SPLIT_AND_LOG[kind]
    cases = sorted(split[key])
    counted = record.counted_cases
    return cases if counted is None or counted[place] == len(cases) else None


def _validation_files(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: finish the training, or run nnUNetv2_train with --val.")
    if not (files := _files_with(ending, folder)):
        if (folder / "summary.json").is_file():
            raise UserError(
                f"{folder} holds the scores of a validation without its label maps, as a model from a zip does: make "
                "them with the training's command and --val, or give folders of predictions with -i."
            )
        raise UserError(
            f"{folder} holds no {ending} file: the validation is not finished (the training's command with --c ends "
            "it), or file_ending differs."
        )
    return files


def _files_with(ending: str, folder: Path) -> dict[str, Path]:
    """Files by case."""
    return {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*{ending}"))}


def _check_predictions(collection: Collection, allow_different: bool) -> None:
    """Same cases and labels everywhere; every prediction has a reference."""
    collection.notes += check_comparable(collection.rows, allow_different)
    common = set.intersection(*(row.cases for row in collection.rows))
    if not common:
        raise UserError("The rows share no case: there is nothing to compare.")
    for row in collection.rows:
        for run in row.runs:
            run.predictions = {case: path for case, path in run.predictions.items() if case in common}
    missing = sorted(common - set(collection.references))
    if missing:
        more = " ..." if missing[1:] else ""
        raise UserError(f"{cases_text(len(missing))} with predictions, but no reference ({missing[0]}{more}): check "
                        "-ref, or gt_segmentations of the preprocessed dataset.")
    collection.references = {case: collection.references[case] for case in sorted(common)}


def _check_places(collection: Collection, allow_different: bool) -> None:
    """Refuse predictions stored in another geometry: voxels are compared one by one, in the order of the files.

    nnU-Net's own validation needs no such check, it writes what it has read.
    """
    elsewhere = [(path, collection.references[case], difference) for row in collection.rows for run in row.runs
                 for case, path in run.predictions.items()
                 if (difference := other_place(path, collection.references[case]))]
    if not elsewhere:
        return
    path, reference, difference = elsewhere[0]
    if not allow_different:
        raise UserError(f"{path} and its reference {reference} lie in different places by their headers "
                        f"({difference}); {len(elsewhere)} such file(s). Resample them to the references, or say "
                        "--allow-different if only the headers are wrong.")
    note = (f"Allowed difference: {len(elsewhere)} prediction(s) lie elsewhere than their references by the headers "
            f"(first: {difference}); voxels were compared one by one.")
    collection.notes.append(Note(note, note))


def _reference_folder(preprocessed: Path | None, raw: Path | None) -> Path:
    for folder in (preprocessed and preprocessed / "gt_segmentations", raw and raw / "labelsTr"):
        if folder and folder.is_dir():
            return folder
    raise UserError("Neither gt_segmentations in nnUNet_preprocessed nor labelsTr in nnUNet_raw was found: "
                    "set these variables as for training.")


def _raw_images(raw: Path, dataset_json: dict[str, Any], ending: str, collection: Collection) -> dict[str, Path]:
    """First channel of each case, also where dataset.json says that it lies elsewhere."""
    listed = dataset_json.get("dataset")
    images = {}
    for case in collection.references:
        path = raw / "imagesTr" / f"{case}_0000{ending}"
        if isinstance(listed, dict) and case in listed:
            path = (raw / os.path.expandvars(str(listed[case]["images"][0]))).resolve()
        if path.is_file():
            images[case] = path
    return images


def _first_dataset_json(folders: Sequence[Path]) -> dict[str, Any]:
    for folder in folders:
        if (folder / "dataset.json").is_file():
            return read_dataset_json(folder / "dataset.json")
    return read_dataset_json(folders[0] / "dataset.json")


def _first_channel(dataset_json: dict[str, Any]) -> str:
    names = dataset_json.get("channel_names") or dataset_json.get("modality") or {}
    return str(next(iter(names.values()), "")) if isinstance(names, dict) else ""


def _optional_folder(variable: str, name: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) / name if value and (Path(value) / name).is_dir() else None


def _content_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
