# SPDX-License-Identifier: Apache-2.0
"""Where a dataset lies: its raw and its preprocessed folder, of which one may still be missing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError


@dataclass(frozen=True)
class DatasetPlaces:
    """Folders of one dataset; ``raw`` is None where it isn't there, ``preprocessed`` may not exist yet."""

    name: str
    raw: Path | None
    preprocessed: Path

    def dataset_json(self) -> dict[str, Any]:
        """dataset.json of the raw dataset, or the preprocessed copy.

        Raises:
            UserError: Neither can be read.
        """
        for folder in (self.raw, self.preprocessed):
            path = folder / "dataset.json" if folder else None
            if path and path.is_file():
                try:
                    return json.loads(path.read_text(encoding="utf-8"))
                except (OSError, ValueError) as error:
                    raise UserError(f"{path} can't be read ({error}): repair it") from error
        raise UserError(f"{self.name} has no dataset.json in nnUNet_raw or nnUNet_preprocessed: check both variables")


def locate_dataset(dataset: str | int) -> DatasetPlaces:
    """Find a dataset by id or folder name.

    Raises:
        UserError: nnUNet_preprocessed is not set, or there is no such dataset (or several).
    """
    roots = {name: os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    if not roots["nnUNet_preprocessed"]:
        raise UserError("nnUNet_preprocessed is not set: export it as nnU-Net's documentation says")
    present = sorted({p.name for root in roots.values() if root for p in Path(root).glob("Dataset[0-9][0-9][0-9]_*")})
    text = str(dataset)
    matches = [name for name in present if name == text or (text.isdecimal() and name[7:10] == f"{int(text):03d}")]
    if len(matches) != 1:
        which = f"several datasets {text}: {', '.join(matches)}" if matches else f"no dataset {text}"
        raise UserError(f"there is {which} in {' or '.join(r for r in roots.values() if r)} "
                        f"(found: {', '.join(present) or 'none'}): give -d as a number or as the folder's name")
    raw = Path(roots["nnUNet_raw"]) / matches[0] if roots["nnUNet_raw"] else None
    return DatasetPlaces(matches[0], raw if raw and raw.is_dir() else None,
                         Path(roots["nnUNet_preprocessed"]) / matches[0])
