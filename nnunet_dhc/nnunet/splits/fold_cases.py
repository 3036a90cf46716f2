# SPDX-License-Identifier: Apache-2.0
"""Which cases of a fold are labeled, which are for validation and which count as unlabeled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_file
from nnunet_dhc.wording import name_some

SPLITS_FILE = "splits_final.json"
_NUM_FOLDS = 5


@dataclass(frozen=True)
class FoldCases:
    """Identifiers of one fold.

    Attributes:
        labeled: Cases to train on with their labels.
        validation: Cases to validate on.
        unlabeled: Only what the split file lists under that key.
        left_out: Preprocessed labeled cases in none of these lists.
    """

    labeled: tuple[str, ...]
    validation: tuple[str, ...]
    unlabeled: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def note_on_left_out(self) -> str | None:
        """A sentence on cases that are left out, for example because they were labeled after the split.

        None with unlabeled cases in the split file: such a file leaves cases out on purpose, as test cases.
        """
        if self.unlabeled or not self.left_out:
            return None
        one = len(self.left_out) == 1
        return (
            f"{name_some(self.left_out, 5)} {'has a label and is' if one else 'have labels and are'} in no list of the "
            f"fold, so not used: to train with {'it' if one else 'them'}, add {'it' if one else 'them'} to \"train\" "
            f"of each fold in {SPLITS_FILE}"
        )


def read_fold_cases(
    preprocessed_dataset_folder_base: str | Path, preprocessed_identifiers: Iterable[str], fold: int | str
) -> FoldCases:
    """Read and validate one fold of ``splits_final.json``.

    Without that file, the folds are those that ``ensure_splits_file`` would write.

    Args:
        preprocessed_dataset_folder_base: The folder of the dataset in ``nnUNet_preprocessed``.
        preprocessed_identifiers: Every case that nnU-Net preprocessed with its label.
        fold: A fold number, or "all".

    Raises:
        UserError: The file, or this fold of it, can't be trained on as it stands.
    """
    known = sorted(set(preprocessed_identifiers))
    if not known:
        raise UserError(
            f"No preprocessed labeled case belongs to {preprocessed_dataset_folder_base}: "
            "run nnUNetv2_plan_and_preprocess first."
        )
    if fold == "all":
        return FoldCases(labeled=tuple(known), validation=tuple(known))
    path = Path(preprocessed_dataset_folder_base) / SPLITS_FILE
    folds = load_folds(path) if path.is_file() else default_folds(known)
    number = _fold_number(fold, len(folds), path)
    return _validated(folds[number], f"fold {number} of {path}", set(known))


def number_of_folds(preprocessed_dataset_folder_base: str | Path, preprocessed_identifiers: Sequence[str]) -> int:
    """How many folds the split file has, or would have if it were made now."""
    path = Path(preprocessed_dataset_folder_base) / SPLITS_FILE
    return len(load_folds(path)) if path.is_file() else len(default_folds(sorted(set(preprocessed_identifiers))))


def ensure_splits_file(preprocessed_dataset_folder_base: str | Path, identifiers: Iterable[str]) -> str | None:
    """Write the split that stock nnU-Net would write, with fewer folds where there are fewer than five cases.

    Stock uses the same file, so both train on the same cases. An existing file is left alone.

    Returns:
        A message to print when the file differs from what nnU-Net promises (fewer than five cases), else None.
    """
    path = Path(preprocessed_dataset_folder_base) / SPLITS_FILE
    if path.is_file():
        return None
    known = sorted(set(identifiers))
    if not known:
        raise UserError(f"There is no case to split in {path.parent}: run nnUNetv2_plan_and_preprocess first.")
    folds = default_folds(known)
    replace_file(path, json.dumps(folds, indent=4).encode())
    if len(known) == 1:
        return f"There is one labeled case only: {path} uses it for training and for validation, so the validation " \
               "score says nothing about new cases."
    if len(known) < _NUM_FOLDS:
        return f"There are {len(known)} labeled cases, fewer than {_NUM_FOLDS}: {path} has {len(folds)} folds, " \
               f"0 to {len(folds) - 1}."
    return None


def default_folds(identifiers: Sequence[str]) -> list[dict[str, list[str]]]:
    """nnU-Net's own split (seed 12345), with min(5, n) folds; a single case is also its own validation case."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if len(identifiers) == 1:
        return [{"train": list(identifiers), "val": list(identifiers)}]
    folds = generate_crossval_split(list(identifiers), seed=12345, n_splits=min(_NUM_FOLDS, len(identifiers)))
    return [{key: [str(case) for case in cases] for key, cases in fold.items()} for fold in folds]


def load_folds(path: Path) -> list[Any]:
    """The folds of a split file, each still to be checked."""
    remedy = "repair it, or delete it to let nnU-Net make a new one"
    try:
        folds = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}): {remedy}.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}): {remedy}."
        ) from error
    if not isinstance(folds, list) or not folds:
        raise UserError(f'{path} must be a list with one {{"train": [...], "val": [...]}} per fold: {remedy}.')
    return folds


def _fold_number(fold: int | str, num_folds: int, path: Path) -> int:
    choices = "fold 0" if num_folds == 1 else f"folds 0 to {num_folds - 1}"
    has = "has" if path.is_file() else "is not there yet and will have"
    try:
        number = int(fold)
    except ValueError as error:
        raise UserError(f"{fold!r} is no fold: {path} {has} {choices}, or use all.") from error
    if not 0 <= number < num_folds:
        raise UserError(
            f"Fold {number} is not in {path}, which {has} {choices} (stock nnU-Net would draw a random split of all "
            "cases, the unlabeled ones included): choose one of these, or add the fold to the file."
        )
    return number


def _validated(fold: Any, where: str, known: set[str]) -> FoldCases:
    if not isinstance(fold, dict):
        raise UserError(f'{where} must be an object with the keys "train" and "val" (and "unlabeled").')
    train, validation = case_list(fold, "train", where), case_list(fold, "val", where)
    unlabeled = case_list(fold, "unlabeled", where) if "unlabeled" in fold else ()
    if not train:
        raise UserError(f'{where} has no labeled case: list some under "train".')
    if not validation:
        raise UserError(f'{where} has no validation case: list some under "val".')
    for key, cases in (("train", train), ("val", validation), ("unlabeled", unlabeled)):
        missing = [case for case in cases if case not in known]
        if missing:
            raise UserError(
                f'{where}: {name_some(missing)} under "{key}" {"is" if len(missing) == 1 else "are"} not among the '
                f"{len(known)} preprocessed cases: correct the list, or preprocess again if cases were added."
            )
    both = sorted(set(train) & set(validation))
    if both and len(set(train) | set(validation)) > 1:
        raise UserError(f'{where}: {name_some(both)} stands under "train" and under "val": keep it in one of them.')
    for key, cases in (("train", train), ("val", validation)):
        leaking = sorted(set(unlabeled) & set(cases))
        if leaking:
            raise UserError(
                f'{where}: {name_some(leaking)} stands under "unlabeled" and under "{key}", which would leak: '
                "keep it in one of them."
            )
    left_out = tuple(sorted(known.difference(train, validation, unlabeled)))
    return FoldCases(labeled=train, validation=validation, unlabeled=unlabeled, left_out=left_out)


def case_list(fold: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """The identifiers under a key of a fold, each once."""
    cases = fold.get(key)
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise UserError(f'{where}: "{key}" must be a list of case identifiers.')
    return tuple(dict.fromkeys(cases))
