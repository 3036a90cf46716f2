# SPDX-License-Identifier: Apache-2.0
"""What a comparison is made of: rows (trainers), their runs (fold by fold, seed by seed) and their files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.run_files import RunRecord
from nnunet_dhc.reporting.structures import LabelSpace


@dataclass
class Run:
    """One fold of one repeat of a row; ``labeled`` is None where nothing tells the labeled cases."""

    repeat: int
    fold: str
    predictions: dict[str, Path]
    record: RunRecord | None = None
    labeled: list[str] | None = None


@dataclass
class Row:
    """One line of the comparison: a trainer with plans and configuration, or a named folder."""

    name: str
    trainer: str | None = None
    plans: str | None = None
    configuration: str | None = None
    plans_hash: str | None = None
    runs: list[Run] = field(default_factory=list)

    @property
    def repeats(self) -> list[int]:
        return sorted({run.repeat for run in self.runs})

    @property
    def folds(self) -> list[str]:
        return sorted({run.fold for run in self.runs})

    @property
    def cases(self) -> set[str]:
        return {case for run in self.runs for case in run.predictions}


@dataclass
class Collection:
    """Rows that are to be compared, with the references and images of their cases."""

    dataset: str
    labels: LabelSpace
    rows: list[Row]
    references: dict[str, Path]
    images: dict[str, Path] = field(default_factory=dict)
    channel: str = ""
    file_ending: str = ".nii.gz"
    notes: list[str] = field(default_factory=list)
    dataset_json: dict[str, Any] = field(default_factory=dict)


def check_comparable(rows: list[Row], allow_different: bool) -> list[str]:
    """Refuse rows that were not trained on the same labeled cases or not evaluated on the same cases.

    Returns:
        Notes for the page: what differs though it was allowed, and what could not be checked.

    Raises:
        UserError: Something differs and ``allow_different`` is False.
    """
    notes = []
    for problem in [*_fold_problems(rows), *_case_problems(rows), *_labeled_problems(rows)]:
        if not allow_different:
            raise UserError(f"{problem} Compare what is alike, or say --allow-different to compare all the same.")
        notes.append(f"Allowed difference: {problem}")
    seen = [row.name for row in rows
            if any(run.fold == "all" or set(run.labeled or ()) & set(run.predictions) for run in row.runs)]
    if seen:
        notes.append(f"{_listed(seen)} had validation cases among the labeled training cases (as fold all has): these "
                     "scores say nothing about new scans.")
    unknown = [row.name for row in rows if row.trainer and any(run.labeled is None for run in row.runs)]
    if unknown:
        notes.append(f"Nothing tells which labeled cases {_listed(unknown)} had: they could not be checked.")
    return notes


def _fold_problems(rows: list[Row]) -> Iterable[str]:
    folds = sorted({fold for row in rows for fold in row.folds})
    for row in rows:
        for repeat in row.repeats:
            found = {run.fold for run in row.runs if run.repeat == repeat}
            missing = [fold for fold in folds if fold not in found]
            if missing:
                yield f"{row.name} has no validation of fold {_listed(missing)}, others have; train it, or use -f."


def _case_problems(rows: list[Row]) -> Iterable[str]:
    first = rows[0]
    for row in rows:
        for repeat in row.repeats:
            cases = {case for run in row.runs if run.repeat == repeat for case in run.predictions}
            only_first, only_row = sorted(first.cases - cases), sorted(cases - first.cases)
            if only_first or only_row:
                parts = [f"{_listed(group)} only in {name}"
                         for group, name in ((only_first, first.name), (only_row, row.name)) if group]
                yield f"{row.name} was evaluated on other cases than {first.name}: {'; '.join(parts)}."


def _labeled_problems(rows: list[Row]) -> Iterable[str]:
    known: dict[str, tuple[str, list[str]]] = {}
    for row in rows:
        for run in row.runs:
            if run.labeled is None:
                continue
            name, labeled = known.setdefault(run.fold, (row.name, run.labeled))
            if labeled != run.labeled:
                only_first, only_row = set(labeled) - set(run.labeled), set(run.labeled) - set(labeled)
                yield (f"{row.name} was trained on other labeled cases than {name} (fold {run.fold}: "
                       f"{len(run.labeled)} and {len(labeled)} cases, "
                       f"{_listed(sorted(only_first | only_row))} in one only).")


def _listed(names: Iterable[str], most: int = 4) -> str:
    shown = [str(name) for name in names]
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")
