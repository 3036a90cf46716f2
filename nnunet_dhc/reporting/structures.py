# SPDX-License-Identifier: Apache-2.0
"""Which structures of a dataset are scored: foreground classes or regions, as nnU-Net scores them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError


@dataclass(frozen=True)
class Structure:
    """A foreground class or a region (a union of labels); ``key`` is that of nnU-Net's ``summary.json``."""

    key: str
    name: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class LabelSpace:
    """What ``dataset.json`` says about labels."""

    structures: tuple[Structure, ...]
    ignore_label: int | None = None

    @property
    def all_labels(self) -> set[int]:
        """Every number that a label map of the dataset may hold."""
        ignored = set() if self.ignore_label is None else {self.ignore_label}
        return {0} | ignored | {label for structure in self.structures for label in structure.labels}

    @property
    def covers_background(self) -> bool:
        """True for the rare region that contains label 0: no crop to the foreground then."""
        return any(0 in structure.labels for structure in self.structures)


def label_space(dataset_json: dict[str, Any]) -> LabelSpace:
    """Foreground structures and ignore label, by the rules of nnU-Net's ``LabelManager``, and in its order."""
    structures, ignore_label = [], None
    for name, value in dataset_json["labels"].items():
        if name == "ignore":
            ignore_label = int(value)
            continue
        labels = tuple(int(label) for label in value) if isinstance(value, list | tuple) else (int(value),)
        if set(labels) == {0}:
            continue
        key = str(labels) if len(labels) > 1 else str(labels[0])
        structures.append(Structure(key, name, labels))
    if all(len(structure.labels) == 1 for structure in structures):
        structures.sort(key=lambda structure: structure.labels)  # regions keep the order of the file
    return LabelSpace(tuple(structures), ignore_label)


def read_dataset_json(path: Path) -> dict[str, Any]:
    """``dataset.json`` with the keys that reporting needs."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the dataset.json of the dataset with -djfile.") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): give the file dataset.json with -djfile.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from None
    for key in ("labels", "file_ending"):
        if not isinstance(content, dict) or key not in content:
            raise UserError(f'{path} has no "{key}": it is not a dataset.json of nnU-Net v2.')
    try:
        structures = label_space(content).structures
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{path}: labels must give each name its number (or the list of a region), as in "
                        '{"background": 0, "liver": 1}.') from None
    if not structures:
        raise UserError(f"{path}: labels name no structure beside the background, so there is nothing to score; add "
                        "the structures.")
    return dict(content)
