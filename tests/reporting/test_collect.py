# SPDX-License-Identifier: Apache-2.0
"""Finding runs, and refusing what can't be compared."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
from made_up import DATASET, boxes, dataset_json, stock_log, write_json, write_volume

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.collect import Selection, collect_folders, collect_trainings
from nnunet_dhc.reporting.splits_file import SplitsFile
from nnunet_dhc.warning_kinds import LEAK, SHARED_STATISTICS, TRANSDUCTION


def test_folds_and_rows(tree):
    tree.add_stock().add_pair("nnUNetTrainerDHC")
    found = collect_trainings(Selection("901", ["nnUNetTrainer", "nnUNetTrainerDHC"]))
    assert found.dataset == DATASET
    assert [row.name for row in found.rows] == ["nnUNetTrainer", "nnUNetTrainerDHC"]
    assert found.rows[0].folds == ["0", "1"]
    assert list(found.references) == sorted(tree.cases)
    assert found.rows[0].runs[0].labeled == tree.labeled
    assert len(found.images) == len(tree.cases)


def test_images_that_dataset_json_lists_elsewhere(tree, monkeypatch):
    """nnU-Net expands variables in these paths."""
    tree.add_stock()
    elsewhere = tree.root / "elsewhere"
    (tree.raw / DATASET / "imagesTr").rename(elsewhere)
    monkeypatch.setenv("SCANS", str(elsewhere))
    listed = {case: {"images": [f"$SCANS/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
              for case in tree.cases}
    for path in tree.root.rglob("dataset.json"):
        write_json(path, {**json.loads(path.read_text()), "dataset": listed})
    found = collect_trainings(Selection("901", ["nnUNetTrainer"]))
    assert found.images[tree.cases[0]] == elsewhere / f"{tree.cases[0]}_0000.nii.gz"


def test_a_trainer_with_plans_and_a_name_of_its_own(tree):
    tree.add_stock().add_pair("nnUNetTrainerDHC")
    model = tree.model("nnUNetTrainerDHC")
    model.rename(model.with_name("nnUNetTrainerDHC__OtherPlans__3d_fullres"))
    found = collect_trainings(Selection("901", ["nnUNetTrainer", "dhc=nnUNetTrainerDHC@OtherPlans"]))
    assert [(row.name, row.plans) for row in found.rows] == [("nnUNetTrainer", "nnUNetPlans"), ("dhc", "OtherPlans")]
    found = collect_trainings(Selection("901", ["nnUNetTrainerDHC@OtherPlans"]))
    assert found.rows[0].name == "nnUNetTrainerDHC · OtherPlans"
    with pytest.raises(UserError, match="names the row a twice"):
        collect_trainings(Selection("901", ["a=nnUNetTrainer", "a=nnUNetTrainerDHC@OtherPlans"]))
    with pytest.raises(UserError, match=r"not \[NAME=\]TRAINER"):
        collect_trainings(Selection("901", ["nnUNetTrainer@"]))


def test_one_fold(tree):
    tree.add_stock()
    found = collect_trainings(Selection(DATASET, ["nnUNetTrainer"], folds=["1"]))
    assert list(found.references) == tree.folds[1]


def test_every_results_folder_is_a_repeat(tree, tmp_path):
    other = tmp_path / "seed2"
    tree.add_stock().add_stock(results=other)
    found = collect_trainings(Selection("901", ["nnUNetTrainer"], results_roots=(tree.results, other)))
    assert found.rows[0].repeats == [0, 1]
    assert len(found.rows[0].runs) == 4


def test_a_results_folder_that_is_gone_or_named_twice_is_no_repeat(tree):
    tree.add_stock()
    for roots, message in (
        ((tree.results, tree.root / "typo"), "typo is not there"),
        ((tree.results, tree.root / "." / tree.results.name), "twice, which would count its trainings as repeats"),
    ):
        with pytest.raises(UserError, match=message):
            collect_trainings(Selection("901", ["nnUNetTrainer"], results_roots=roots))


@pytest.mark.parametrize("kind", [LEAK, TRANSDUCTION, SHARED_STATISTICS])
def test_what_changes_the_meaning_of_scores_is_said_without_naming_cases(tree, kind):
    tree.add_stock().add_pair("nnUNetTrainerDHC")
    record = tree.model("nnUNetTrainerDHC") / "fold_1" / "dhc_run.json"
    write_json(record, {**json.loads(record.read_text()), "warnings": ["no matter", f"{kind}: patient_07 (u0)."]})
    found = collect_trainings(Selection("901", ["nnUNetTrainer", "nnUNetTrainerDHC"]))
    notes = [note.text for note in found.anonymous().notes if note.text.startswith("nnUNetTrainerDHC: ")]
    assert len(notes) == 1
    assert {LEAK: "LEAK", TRANSDUCTION: "transduction", SHARED_STATISTICS: "intensity"}[kind] in notes[0]
    assert "patient_07" not in notes[0]


def test_a_missing_fold_is_refused(tree):
    tree.add_stock().add_pair("nnUNetTrainerDHC")
    remove(tree.model("nnUNetTrainerDHC") / "fold_1")
    with pytest.raises(UserError, match="nnUNetTrainerDHC has no validation of fold 1"):
        collect_trainings(Selection("901", ["nnUNetTrainer", "nnUNetTrainerDHC"]))


def test_other_cases_are_refused_or_left_out(tree):
    tree.add_stock().add_stock("nnUNetTrainer_8epochs", epochs=8)
    (tree.preprocessed / DATASET / "splits_final.json").unlink()  # nothing else tells which cases are expected
    (tree.model("nnUNetTrainer_8epochs") / "fold_0" / "validation" / "patient_01.nii.gz").unlink()
    selection = Selection("901", ["nnUNetTrainer", "nnUNetTrainer_8epochs"])
    with pytest.raises(UserError, match="patient_01 only in nnUNetTrainer"):
        collect_trainings(selection)
    found = collect_trainings(selection, allow_different=True)
    assert "patient_01" not in found.references
    assert any("patient_01" in note.text for note in found.notes)
    assert not any("patient_01" in note.anonymous for note in found.notes)


def test_the_split_file_is_read_once_for_all_folds_and_repeats(tree, tmp_path, monkeypatch):
    tree.add_stock().add_stock(results=tmp_path / "seed2")
    read, stock = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *args, **options: read.append(path.name) or stock(
        path, *args, **options))
    found = collect_trainings(Selection("901", ["nnUNetTrainer"], results_roots=(tree.results, tmp_path / "seed2")))
    assert [run.labeled for run in found.rows[0].runs] == [tree.labeled] * 4
    assert read.count("splits_final.json") == 1


@pytest.mark.parametrize("fold", [
    None, {}, {"train": ["a"]}, {"val": ["a"]}, {"train": None, "val": ["a"]}, {"train": "a", "val": ["b"]},
    {"train": [None], "val": ["a"]}, {"train": ["a"], "val": [{}]}, {"train": ["a"], "val": [1]},
])
def test_a_fold_that_says_nothing_of_its_cases_is_refused(tmp_path, fold):
    path = write_json(tmp_path / "splits_final.json", [{"train": ["a"], "val": []}, fold])
    splits = SplitsFile(tmp_path)
    with pytest.raises(UserError) as raised:
        splits.fold(1)
    assert str(raised.value) == (f'{path} is no list of folds with lists of cases under "train" and "val": put the '
                                 "file back that was trained with")
    assert splits.fold(0) == {"train": ["a"], "val": []} and splits.fold(2) is None


def test_other_labeled_cases_are_refused(tree):
    tree.add_stock().add_pair("nnUNetTrainerDHC", labeled=[*tree.labeled[:2], "another"])
    with pytest.raises(UserError, match="trained on other labeled cases"):
        collect_trainings(Selection("901", ["nnUNetTrainer", "nnUNetTrainerDHC"]))


def test_labeled_cases_of_an_earlier_start_are_labeled_cases_too(tree):
    tree.add_stock().add_pair("nnUNetTrainerDHC")
    for fold in range(2):
        record = tree.model("nnUNetTrainerDHC") / f"fold_{fold}" / "dhc_run.json"
        content = json.loads(record.read_text())
        of_all_starts = {**content["cases"], "labeled": [*tree.labeled, "another"]}
        write_json(record, {**content, "cases_of_all_starts": of_all_starts})
    with pytest.raises(UserError, match="trained on other labeled cases"):
        collect_trainings(Selection("901", ["nnUNetTrainer", "nnUNetTrainerDHC"]))


def test_an_unfinished_validation_is_refused(tree):
    tree.add_stock()
    (tree.model("nnUNetTrainer") / "fold_0" / "validation" / "patient_01.nii.gz").unlink()
    with pytest.raises(UserError, match="lacks 1 of 4 validation cases"):
        collect_trainings(Selection("901", ["nnUNetTrainer"]))


def test_a_split_that_changed_since_a_stock_run_is_noticed(tree):
    tree.add_stock()
    write_json(tree.preprocessed / DATASET / "splits_final.json",
               [{"train": ["one"], "val": fold} for fold in tree.folds])  # its log counted three training cases
    found = collect_trainings(Selection("901", ["nnUNetTrainer"]))
    assert found.rows[0].runs[0].labeled is None
    assert any("could not be checked" in note.text for note in found.notes)


def test_a_new_split_of_the_same_size_says_nothing_of_a_stock_run(tree):
    tree.add_stock()
    write_json(splits := tree.preprocessed / DATASET / "splits_final.json",
               [{"train": ["one", "two", "three"], "val": fold} for fold in tree.folds])
    later = (tree.model("nnUNetTrainer") / "fold_0" / "training_log_2026_1_1_00_00_00.txt").stat().st_mtime + 60
    os.utime(splits, (later, later))
    found = collect_trainings(Selection("901", ["nnUNetTrainer"]))
    assert found.rows[0].runs[0].labeled is None
    assert any("could not be checked" in note.text for note in found.notes)


def split_anew(tree) -> None:
    """After the trainings, cases that were for validation are labeled."""
    write_json(splits := tree.preprocessed / DATASET / "splits_final.json",
               [{"train": fold, "val": tree.labeled} for fold in tree.folds])
    logs = [path.stat().st_mtime for path in tree.results.rglob("training_log_*.txt")]
    os.utime(splits, (max(logs) + 60,) * 2)


def test_trainings_from_before_a_new_split_are_compared_on_their_own_cases(tree):
    tree.add_stock().add_pair("nnUNetTrainerDHC")
    split_anew(tree)
    found = collect_trainings(Selection("901", ["nnUNetTrainer", "nnUNetTrainerDHC"]))
    assert list(found.references) == sorted(tree.cases)


def test_predictions_of_an_earlier_split_are_left_out(tree):
    """nnU-Net never empties the validation folder."""
    tree.add_pair("nnUNetTrainerDHC")
    old = tree.model("nnUNetTrainerDHC") / "fold_0" / "validation" / f"{tree.folds[1][0]}.nii.gz"
    write_volume(old, boxes())
    found = collect_trainings(Selection("901", ["nnUNetTrainerDHC"], folds=["0"]))
    assert list(found.references) == tree.folds[0]
    assert any("nnUNetTrainerDHC: 1 predictions in its validation folders" in note.text for note in found.notes)


def test_predictions_of_an_earlier_split_in_a_stock_training(tree):
    tree.add_stock()
    write_volume(tree.model("nnUNetTrainer") / "fold_0" / "validation" / f"{tree.folds[1][0]}.nii.gz", boxes())
    selection = Selection("901", ["nnUNetTrainer"], folds=["0"])
    assert list(collect_trainings(selection).references) == tree.folds[0]
    split_anew(tree)  # now nothing tells which four of the five they are
    with pytest.raises(UserError, match="holds 5 predictions, and by its log the training has 4 validation cases"):
        collect_trainings(selection)


def test_what_is_not_there_is_named(tree):
    with pytest.raises(UserError, match="no folder for dataset 901"):
        collect_trainings(Selection("901", ["nnUNetTrainer"], results_roots=(tree.root,)))
    tree.add_stock()
    with pytest.raises(UserError, match=r"trained: nnUNetTrainer__nnUNetPlans__.*or train it with nnUNetv2_train 901"):
        collect_trainings(Selection("901", ["nnUNetTrainerDHC"]))


def test_unset_variables_are_named(monkeypatch):
    monkeypatch.delenv("nnUNet_results", raising=False)
    with pytest.raises(UserError, match="nnUNet_results is not set"):
        collect_trainings(Selection("901", ["nnUNetTrainer"]))


@pytest.mark.parametrize(("change", "name"), [
    (lambda image: image.SetSpacing((3.0, 3.0, 5.0)), "spacing"),
    (lambda image: image.SetOrigin((40.0, 0.0, 0.0)), "origin"),
    (lambda image: image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1)), "direction"),
])
def test_predictions_in_another_geometry_are_refused(tmp_path, change, name):
    """A flipped copy with the matching header shows the same anatomy, and would have scored as another."""
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    reference = write_volume(tmp_path / "reference" / "case.nii.gz", boxes())
    image = sitk.ReadImage(str(reference))
    change(image)
    (tmp_path / "one").mkdir()
    sitk.WriteImage(image, str(tmp_path / "one" / "case.nii.gz"))
    folders = [("one", tmp_path / "one")], tmp_path / "reference", djfile
    with pytest.raises(UserError, match=rf"one/case\.nii\.gz and its reference .*\({name} "):
        collect_folders(*folders)
    assert name in collect_folders(*folders, allow_different=True).notes[0].text


def test_copies_of_a_fold_are_no_folds(tree):
    tree.add_stock()
    model = tree.model("nnUNetTrainer")
    shutil.copytree(model / "fold_0", model / "fold_0_old")
    assert collect_trainings(Selection("901", ["nnUNetTrainer"])).rows[0].folds == ["0", "1"]


def test_fold_all_counts_where_there_is_no_other_or_by_name(tree):
    """Its validation cases are training cases; one row that has it doesn't oblige the others to train it."""
    tree.add_stock().add_pair("nnUNetTrainerDHC")
    model = tree.model("nnUNetTrainerDHC")
    shutil.copytree(model / "fold_0", model / "fold_all")
    found = collect_trainings(Selection("901", ["nnUNetTrainer", "nnUNetTrainerDHC"]))
    assert [row.folds for row in found.rows] == [["0", "1"], ["0", "1"]]
    assert any(note.text.startswith("Fold all of nnUNetTrainerDHC is left out") for note in found.notes)
    assert collect_trainings(Selection("901", ["nnUNetTrainerDHC"], folds=["all"])).rows[0].folds == ["all"]
    for fold in (0, 1):
        remove(model / f"fold_{fold}")
    alone = collect_trainings(Selection("901", ["nnUNetTrainerDHC"]))
    assert alone.rows[0].folds == ["all"] and not any("left out" in note.text for note in alone.notes)


def test_a_model_from_a_zip_has_scores_and_no_label_maps(tree):
    tree.add_stock()
    for path in (tree.model("nnUNetTrainer") / "fold_0" / "validation").glob("*.nii.gz"):
        path.unlink()
    with pytest.raises(UserError, match="scores of a validation without its label maps, as a model from a zip does"):
        collect_trainings(Selection("901", ["nnUNetTrainer"]))


def test_the_validation_of_an_earlier_training_in_the_folder_is_not_that_of_this_one(tree):
    """nnU-Net leaves it where it is when a training begins anew."""
    tree.add_stock()
    folder = tree.model("nnUNetTrainer") / "fold_0"
    done = "2026-01-01 00:00:00.1: Validation complete \n"
    (folder / "training_log_2026_1_1_00_00_00.txt").write_text(stock_log(4) + done)
    assert len(collect_trainings(Selection("901", ["nnUNetTrainer"])).references) == 8
    (folder / "training_log_2026_1_2_00_00_00.txt").write_text(stock_log(1))
    with pytest.raises(UserError, match="fold_0/validation is that of an earlier training"):
        collect_trainings(Selection("901", ["nnUNetTrainer"]))
    running = collect_trainings(Selection("901", ["nnUNetTrainer"], folds=["0"]), unfinished=True)
    assert running.rows[0].cases == set()
    assert running.rows[0].runs[0].record.epochs_done == 1
    (folder / "training_log_2026_1_3_00_00_00.txt").write_text(done)
    assert len(collect_trainings(Selection("901", ["nnUNetTrainer"])).references) == 8


def test_plain_folders(tmp_path):
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    for name in ("reference", "one", "two"):
        write_volume(tmp_path / name / "case.nii.gz", boxes())
    found = collect_folders([("a", tmp_path / "one"), ("b", tmp_path / "two"), ("a", tmp_path / "two")],
                            tmp_path / "reference", djfile)
    assert [(row.name, len(row.runs)) for row in found.rows] == [("a", 2), ("b", 1)]


def test_a_folder_of_predictions_that_is_none_is_named(tmp_path):
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    with pytest.raises(UserError, match=r"-i .*nowhere is not there: it must be a folder of predictions"):
        collect_folders([("a", tmp_path / "nowhere")], tmp_path / "reference", djfile)
    write_volume(tmp_path / "one" / "case.mha", boxes())
    with pytest.raises(UserError, match=r"holds no \.nii\.gz file, which is file_ending in .*dataset\.json"):
        collect_folders([("a", tmp_path / "one")], tmp_path / "reference", djfile)


def test_a_prediction_without_reference_is_refused(tmp_path):
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    write_volume(tmp_path / "reference" / "case.nii.gz", boxes())
    write_volume(tmp_path / "one" / "other.nii.gz", boxes())
    with pytest.raises(UserError, match=r"1 case with predictions, but no reference \(other\)"):
        collect_folders([("a", tmp_path / "one")], tmp_path / "reference", djfile)


def test_a_folder_of_images_that_is_none_is_named(tmp_path):
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    write_volume(tmp_path / "one" / "case.nii.gz", boxes())
    with pytest.raises(UserError, match=r"--images .*nowhere is not there"):
        collect_folders([("a", tmp_path / "one")], tmp_path / "one", djfile, tmp_path / "nowhere")


def test_a_row_has_a_name_that_can_be_printed(tree, tmp_path):
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    write_volume(tmp_path / "one" / "case.nii.gz", boxes())
    with pytest.raises(UserError, match=r"-i 'a\\nb': a row's name holds a line break"):
        collect_folders([("a\nb", tmp_path / "one")], tmp_path / "one", djfile)
    tree.add_stock()
    with pytest.raises(UserError, match=r"-tr 'a\\x1bb=nnUNetTrainer': a row's name"):
        collect_trainings(Selection("901", ["a\x1bb=nnUNetTrainer"]))


def test_a_fold_given_twice_counts_once(tree):
    tree.add_stock()
    row, = collect_trainings(Selection("901", ["nnUNetTrainer"], folds=["0", "0", "1"])).rows
    assert [run.fold for run in row.runs] == ["0", "1"]


@pytest.mark.parametrize(("option", "twice"), [
    ("-c", {"configurations": ["2d", "2d"]}), ("-p", {"plans": ["nnUNetPlans", "nnUNetPlans"]}),
])
def test_what_is_given_twice_is_named_by_its_option(tree, option, twice):
    tree.add_stock()
    with pytest.raises(UserError, match=rf"^{option} names \w+ twice: leave one out"):
        collect_trainings(Selection("901", ["nnUNetTrainer"], **twice))


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_scores_on_training_cases_are_pointed_out(tree):
    tree.add_pair("nnUNetTrainerDHC", labeled=[*tree.labeled, "patient_00"])
    notes = collect_trainings(Selection("901", ["nnUNetTrainerDHC"])).notes
    assert any("among the labeled training cases" in note.text for note in notes)


def test_a_fold_that_one_repeat_lacks_is_refused(tree, tmp_path):
    other = tmp_path / "seed2"
    tree.add_stock().add_stock(results=other)
    remove(tree.model("nnUNetTrainer", other) / "fold_1")
    with pytest.raises(UserError, match="nnUNetTrainer has no validation of fold 1"):
        collect_trainings(Selection("901", ["nnUNetTrainer"], results_roots=(tree.results, other)))
