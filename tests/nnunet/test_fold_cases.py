# SPDX-License-Identifier: Apache-2.0
"""splits_final.json: what is accepted, what is refused and in which words."""

from __future__ import annotations

import json

import pytest

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.splits.fold_cases import FoldCases, ensure_splits_file, number_of_folds, read_fold_cases

CASES = ["a", "b", "c", "d", "e", "f"]


def write(folder, folds) -> None:
    (folder / "splits_final.json").write_text(json.dumps(folds))


def test_reads_the_three_lists(tmp_path):
    write(tmp_path, [{"train": ["a"], "val": ["b"]}, {"train": ["c", "d"], "val": ["a"], "unlabeled": ["e", "f"]}])
    assert read_fold_cases(tmp_path, CASES, 1) == FoldCases(("c", "d"), ("a",), ("e", "f"), left_out=("b",))
    assert read_fold_cases(tmp_path, CASES, "0") == FoldCases(("a",), ("b",), (), left_out=("c", "d", "e", "f"))


def test_fold_all_uses_every_case_as_labeled(tmp_path):
    write(tmp_path, [{"train": ["a"], "val": ["b"], "unlabeled": ["c"]}])
    assert read_fold_cases(tmp_path, CASES, "all") == FoldCases(tuple(CASES), tuple(CASES), ())


@pytest.mark.parametrize(
    ("fold", "needle"),
    [
        ({"train": ["a"], "val": ["a", "b"]}, '"train" and under "val"'),
        ({"train": ["a"], "val": ["b"], "unlabeled": ["a"]}, '"unlabeled" and under "train"'),
        ({"train": ["a"], "val": ["b"], "unlabeled": ["b", "c"]}, '"unlabeled" and under "val"'),
        ({"train": ["a", "gone"], "val": ["b"]}, "gone"),
        ({"train": ["a"], "val": ["b"], "unlabeled": ["gone"]}, "gone"),
        ({"train": [], "val": ["b"]}, "no labeled case"),
        ({"train": ["a"], "val": []}, "no validation case"),
        ({"train": ["a"]}, '"val" must be a list'),
        ({"train": "a", "val": ["b"]}, '"train" must be a list'),
        ({"train": ["a"], "val": ["b"], "unlabeled": {"c": 1}}, '"unlabeled" must be a list'),
        (["a"], "must be an object"),
    ],
)
def test_refuses_a_fold_that_would_go_wrong(tmp_path, fold, needle):
    write(tmp_path, [fold])
    with pytest.raises(UserError, match=r"splits_final\.json") as error:
        read_fold_cases(tmp_path, CASES, 0)
    assert needle in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fold", [2, -1, "7"])
def test_refuses_a_fold_that_is_not_in_the_file(tmp_path, fold):
    write(tmp_path, [{"train": ["a"], "val": ["b"]}] * 2)
    with pytest.raises(UserError, match="folds 0 to 1"):
        read_fold_cases(tmp_path, CASES, fold)


def test_a_word_is_no_fold(tmp_path):
    write(tmp_path, [{"train": ["a"], "val": ["b"]}])
    with pytest.raises(UserError, match="fold 0, or use all"):
        read_fold_cases(tmp_path, CASES, "first")


@pytest.mark.parametrize("text", ["", "[{", "{}", "[]", '"x"'])
def test_broken_json_names_the_file_and_the_remedy(tmp_path, text):
    (tmp_path / "splits_final.json").write_text(text)
    with pytest.raises(UserError, match=r"splits_final.json.*delete it"):
        read_fold_cases(tmp_path, CASES, 0)


def test_one_case_may_be_its_own_validation_case(tmp_path):
    write(tmp_path, [{"train": ["a"], "val": ["a"], "unlabeled": ["b", "c"]}])
    assert read_fold_cases(tmp_path, CASES, 0) == FoldCases(("a",), ("a",), ("b", "c"), left_out=("d", "e", "f"))


def test_default_split_is_the_one_of_stock(tmp_path):
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    assert ensure_splits_file(tmp_path, reversed(CASES)) is None
    written = json.loads((tmp_path / "splits_final.json").read_text())
    expected = generate_crossval_split(sorted(CASES), seed=12345, n_splits=5)
    assert written == [{key: [str(case) for case in cases] for key, cases in fold.items()} for fold in expected]


@pytest.mark.parametrize(("count", "folds"), [(2, 2), (3, 3), (4, 4), (5, 5), (6, 5)])
def test_few_cases_get_fewer_folds(tmp_path, count, folds):
    message = ensure_splits_file(tmp_path, CASES[:count])
    assert (message is None) == (count >= 5)
    assert number_of_folds(tmp_path, CASES[:count]) == folds
    for fold in range(folds):
        cases = read_fold_cases(tmp_path, CASES[:count], fold)
        assert set(cases.labeled) | set(cases.validation) == set(CASES[:count])


def test_one_case_is_said_to_validate_itself(tmp_path):
    assert "one labeled case" in ensure_splits_file(tmp_path, ["a"])
    assert read_fold_cases(tmp_path, ["a"], 0) == FoldCases(("a",), ("a",), ())


def test_an_existing_file_is_left_alone(tmp_path):
    write(tmp_path, [{"train": ["a"], "val": ["b"]}])
    before = (tmp_path / "splits_final.json").read_bytes()
    assert ensure_splits_file(tmp_path, CASES) is None
    assert (tmp_path / "splits_final.json").read_bytes() == before


def test_without_a_file_the_folds_are_those_that_would_be_written(tmp_path):
    planned = [read_fold_cases(tmp_path, CASES, fold) for fold in range(5)]
    assert not (tmp_path / "splits_final.json").exists()
    ensure_splits_file(tmp_path, CASES)
    assert planned == [read_fold_cases(tmp_path, CASES, fold) for fold in range(5)]


def test_labeled_cases_in_no_list_are_noted(tmp_path):
    write(tmp_path, [{"train": CASES[:2], "val": CASES[2:3]}, {"train": CASES[:1], "val": CASES[1:]}])
    cases = read_fold_cases(tmp_path, CASES, 0)
    assert cases.left_out == tuple(sorted(CASES[3:]))
    assert cases.note_on_left_out.startswith(f"{', '.join(sorted(CASES[3:])[:5])}")
    assert 'have labels and are in no list of the fold, so not used: to train with them, add them to "train"' in (
        cases.note_on_left_out
    )
    assert read_fold_cases(tmp_path, CASES, 1).note_on_left_out is None
    assert read_fold_cases(tmp_path, CASES, "all").note_on_left_out is None


def test_a_split_with_unlabeled_cases_leaves_test_cases_out_on_purpose(tmp_path):
    write(tmp_path, [{"train": CASES[:1], "val": CASES[1:2], "unlabeled": CASES[2:3]}])
    cases = read_fold_cases(tmp_path, CASES, 0)
    assert cases.left_out == tuple(sorted(CASES[3:])) and cases.note_on_left_out is None
