# SPDX-License-Identifier: Apache-2.0
"""Where a dataset lies: its raw and its preprocessed folder, of which one may still be missing; its JSON files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError

_ID = re.compile(r"Dataset(\d{3,})_")


@dataclass(frozen=True)
class DatasetPlaces:
    """Folders of one dataset; ``raw`` is None where it isn't there, ``preprocessed`` may not exist yet."""

    name: str
    raw: Path | None
    preprocessed: Path

    def dataset_json(self) -> dict[str, Any]:
        """dataset.json of the raw dataset, or the preprocessed copy.

        Raises:
            UserError: Neither can be read, or it lacks what nnU-Net v2 asks for.
        """
        for folder in (self.raw, self.preprocessed):
            path = folder / "dataset.json" if folder else None
            if path and path.is_file():
                return read_dataset_json(path)
        raise UserError(f"{self.name} has no dataset.json in nnUNet_raw or nnUNet_preprocessed: check both variables")


def read_dataset_json(path: Path) -> dict[str, Any]:
    """A dataset.json.

    Raises:
        UserError: It is missing, damaged, or lacks what nnU-Net v2 asks for.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: run nnUNetv2_plan_and_preprocess")
    return read_dataset_json_file(path, "repair it")


def read_dataset_json_file(path: Path, remedy: str) -> dict[str, Any]:
    """A dataset.json anywhere, such as the one of a trained model.

    Raises:
        UserError: As in `read_dataset_json`; the message of a file that can't be read ends with the remedy.
    """
    return _complete(path, _read_object(path, remedy))


def read_plans(preprocessed_dataset_folder: str | Path, identifier: str) -> dict[str, Any]:
    """A plans file.

    Raises:
        UserError: It is missing or damaged.
    """
    path = Path(preprocessed_dataset_folder) / f"{identifier}.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist: run nnUNetv2_plan_and_preprocess first, or correct the identifier")
    return read_plans_file(path, "correct the identifier, or make it again with nnUNetv2_plan_experiment")


def read_plans_file(path: Path, remedy: str) -> dict[str, Any]:
    """A plans file anywhere, such as the one of a trained model.

    Raises:
        UserError: It is missing or damaged; the message ends with the remedy.
    """
    plans = _read_object(path, remedy)
    for key in ("configurations", "plans_name", "image_reader_writer"):
        if key not in plans:
            raise UserError(f'{path} is no plans file, it has no "{key}": {remedy}')
    if not isinstance(plans["configurations"], dict):
        raise UserError(f'{path}: "configurations" must be a JSON object: {remedy}')
    return plans


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: {remedy}")
    return content


def _complete(path: Path, dataset_json: dict[str, Any]) -> dict[str, Any]:
    """The content, if it has what everything here reads."""
    channels = "modality" if "modality" in dataset_json else "channel_names"
    missing = [key for key in ("labels", "file_ending", channels) if key not in dataset_json]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}: write it as nnU-Net v2 wants it, or convert a dataset of "
                        "nnU-Net v1 with nnUNetv2_convert_old_nnUNet_dataset")
    labels = dataset_json["labels"]
    try:
        for value in labels.values():
            for label in value if isinstance(value, list) else [value]:
                int(label)
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{path}: labels must give each name its number (or the list of a region), as in "
                        '{"background": 0, "liver": 1}') from None
    return dataset_json


def datasets_named(dataset: str | int, roots: Sequence[str]) -> tuple[list[str], list[str]]:
    """Folder names of the datasets with this id or name in some folders, and of all datasets there."""
    folders = [path for root in roots for path in Path(root).glob("Dataset*") if path.is_dir()]
    present = sorted({path.name for path in folders if _ID.match(path.name)})
    text = str(dataset)
    return [name for name in present if name == text or (text.isdecimal() and int(text) == id_of(name))], present


def id_of(dataset_name: str) -> int:
    """The number in ``Dataset501_Name``."""
    match = _ID.match(dataset_name)
    if match is None:
        raise ValueError(f"{dataset_name} is no name of a dataset of nnU-Net")
    return int(match[1])


def locate_dataset(dataset: str | int) -> DatasetPlaces:
    """Find a dataset by id or folder name.

    Raises:
        UserError: nnUNet_preprocessed is not set, or there is no such dataset (or several).
    """
    roots = {name: os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    if not roots["nnUNet_preprocessed"]:
        raise UserError("nnUNet_preprocessed is not set: export it as nnU-Net's documentation says")
    matches, present = datasets_named(dataset, [root for root in roots.values() if root])
    if len(matches) != 1:
        which = f"several datasets {dataset}: {', '.join(matches)}" if matches else f"no dataset {dataset}"
        raise UserError(f"there is {which} in {' or '.join(r for r in roots.values() if r)} "
                        f"(found: {', '.join(present) or 'none'}): give -d as a number or as the folder's name")
    raw = Path(roots["nnUNet_raw"]) / matches[0] if roots["nnUNet_raw"] else None
    return DatasetPlaces(matches[0], raw if raw and raw.is_dir() else None,
                         Path(roots["nnUNet_preprocessed"]) / matches[0])
