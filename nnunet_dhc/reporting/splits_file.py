# SPDX-License-Identifier: Apache-2.0
"""The split file of a dataset, which alone tells the cases of a stock training."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.run_files import training_logs

_REPAIR = "put the file back that was trained with"


class SplitsFile:
    """``splits_final.json`` of a dataset, read once, when the first run needs it."""

    def __init__(self, preprocessed: Path | None) -> None:
        self._path = preprocessed / "splits_final.json" if preprocessed else None

    def fold(self, number: int) -> dict[str, Any] | None:
        """One fold; None without the file or this fold.

        Raises:
            UserError: It is damaged, so that nobody can tell which cases stock nnU-Net was trained on.
        """
        folds = self._folds
        if isinstance(folds, list) and number >= len(folds):
            return None
        found = folds[number] if isinstance(folds, list) else None
        if not (isinstance(found, dict) and all(_is_case_list(found.get(key)) for key in ("train", "val"))):
            raise UserError(f'{self._path} is no list of folds with lists of cases under "train" and "val": {_REPAIR}')
        return found

    def changed_since(self, fold_folder: Path) -> bool:
        """Whether it is newer than the first log of a training, and so perhaps not what that was trained on."""
        logs = training_logs(fold_folder)
        return bool(logs and self._path and self._path.is_file()
                    and self._path.stat().st_mtime > logs[0].stat().st_mtime)

    @cached_property
    def _folds(self) -> Any:
        if self._path is None or not self._path.is_file():
            return []
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self._path} can't be read ({error}): {_REPAIR}") from error


def _is_case_list(cases: Any) -> bool:
    return isinstance(cases, list) and all(isinstance(case, str) for case in cases)
