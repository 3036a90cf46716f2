# SPDX-License-Identifier: Apache-2.0
"""What a comparison is made of: rows (trainers), their runs (fold by fold, seed by seed) and their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.run_files import RunRecord
from nnunet_dhc.reporting.structures import LabelSpace
from nnunet_dhc.warning_kinds import LEAK, SHARED_STATISTICS, TRANSDUCTION


class Note(NamedTuple):
    """A line for the page, and the same where no case may be named."""

    text: str
    anonymous: str


@dataclass
class Run:
    """One fold of one repeat of a row.

    ``labeled`` is None where nothing tells the labeled cases; ``leftovers`` are cases whose predictions lie in the
    validation folder though this training didn't validate them.
    """

    repeat: int
    fold: str
    predictions: dict[str, Path]
    record: RunRecord | None = None
    labeled: list[str] | None = None
    leftovers: list[str] = field(default_factory=list)


@dataclass
class Row:
    """One line of the comparison: a trainer with plans and configuration, or a named folder.

    ``planned`` is a hash of what was planned, the same for plans that differ in their name and our settings alone.
    """

    name: str
    trainer: str | None = None
    plans: str | None = None
    configuration: str | None = None
    plans_hash: str | None = None
    planned: str | None = None
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
    notes: list[Note] = field(default_factory=list)
    dataset_json: dict[str, Any] = field(default_factory=dict)

    def anonymous(self) -> Collection:
        """The same with cases by number, and without what trainings noted about cases, commands and folders."""
        names = {case: f"case {number}" for number, case in enumerate(self.references, 1)}

        def renamed(files: dict[str, Path]) -> dict[str, Path]:
            return {names[case]: path for case, path in files.items() if case in names}

        rows = [replace(row, runs=[replace(run, predictions=renamed(run.predictions), labeled=None, leftovers=[],
                                           record=run.record and run.record.anonymous())
                                   for run in row.runs]) for row in self.rows]
        return replace(self, rows=rows, references=renamed(self.references), images=renamed(self.images),
                       notes=[Note(note.anonymous, note.anonymous) for note in self.notes])


def check_comparable(rows: list[Row], allow_different: bool) -> list[Note]:
    """Refuse rows that were not trained on the same labeled cases or not evaluated on the same cases.

    Returns:
        Notes for the page: what differs though it was allowed, and what could not be checked.

    Raises:
        UserError: Something differs and ``allow_different`` is False.
    """
    notes = []
    for problem, which in [*_fold_problems(rows), *_case_problems(rows), *_labeled_problems(rows)]:
        if not allow_different:
            raise UserError(f"{problem}{which}. Compare what is alike, or say --allow-different to compare all the "
                            "same.")
        notes.append(Note(f"Allowed difference: {problem}{which}.", f"Allowed difference: {problem}."))
    seen = [row.name for row in rows
            if any(run.fold == "all" or set(run.labeled or ()) & set(run.predictions) for run in row.runs)]
    others = []
    if seen:
        others.append(f"{_listed(seen)} had validation cases among the labeled training cases (as fold all has): these "
                      "scores say nothing about new scans.")
    unknown = [row.name for row in rows if row.trainer and any(run.labeled is None for run in row.runs)]
    if unknown:
        others.append(f"Nothing tells which labeled cases {_listed(unknown)} had: they could not be checked.")
    return [*notes, *(Note(text, text) for text in others)]


_MEANING = {
    LEAK: "unlabeled cases had the voxels of labeled or validation cases (LEAK, allowed by the setting allow_leaks): "
          "scores on validation cases among them are not scores on unseen images.",
    TRANSDUCTION: "unlabeled cases were also test cases, or labeled cases that no list of the fold names "
                  "(transduction): scores on these are not scores on unseen images.",
    SHARED_STATISTICS: "the plans' intensity statistics come from all labeled cases, also those that count as "
                       "unlabeled or for validation; trainers with the same plans share them. "
                       "nnunet_dhc split --strict plans without them.",
}


def notes_of_trainings(rows: list[Row]) -> list[Note]:
    """What trainings warned of that changes what their scores mean."""
    notes = []
    for kind, meaning in _MEANING.items():
        warned = [row.name for row in rows if any(text.startswith(kind) for run in row.runs if run.record
                                                  for text in run.record.facts()["warnings"])]
        if warned:
            text = f"{_listed(warned)}: {meaning}"
            notes.append(Note(text, text))
    return notes


# Each problem is a sentence that names no case, and which cases it is about.
Problems = Iterator[tuple[str, str]]


def _fold_problems(rows: list[Row]) -> Problems:
    repeats = _validated_repeats(rows)
    folds = sorted({run.fold for _, runs in repeats for run in runs})
    for row, runs in repeats:
        missing = [fold for fold in folds if fold not in {run.fold for run in runs}]
        if missing:
            yield f"{row.name} has no validation of fold {_listed(missing)}, others have; train it, or use -f", ""


def _case_problems(rows: list[Row]) -> Problems:
    first = rows[0]
    for row, runs in _validated_repeats(rows):
        cases = {case for run in runs for case in run.predictions}
        only_first, only_row = sorted(first.cases - cases), sorted(cases - first.cases)
        if only_first or only_row:
            parts = [f"{_listed(group)} only in {name}"
                     for group, name in ((only_first, first.name), (only_row, row.name)) if group]
            yield f"{row.name} was evaluated on other cases than {first.name}", f": {'; '.join(parts)}"


def _validated_repeats(rows: list[Row]) -> list[tuple[Row, list[Run]]]:
    """Runs with predictions of each repeat that has some: the report of one training takes others, too."""
    found = [(row, [run for run in row.runs if run.repeat == repeat and run.predictions])
             for row in rows for repeat in row.repeats]
    return [(row, runs) for row, runs in found if runs]


def _labeled_problems(rows: list[Row]) -> Problems:
    known: dict[str, tuple[str, list[str]]] = {}
    for row in rows:
        for run in row.runs:
            if run.labeled is None:
                continue
            name, labeled = known.setdefault(run.fold, (row.name, run.labeled))
            if labeled != run.labeled:
                only_one = sorted(set(labeled) ^ set(run.labeled))
                yield (f"{row.name} was trained on other labeled cases than {name} (fold {run.fold}: "
                       f"{len(run.labeled)} and {len(labeled)} cases, {len(only_one)} in one only)",
                       f": {_listed(only_one)}")


def _listed(names: Iterable[str], most: int = 4) -> str:
    shown = [str(name) for name in names]
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")
