# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc compare`` and ``report`` from the command line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from nnunet_dhc.cli.main import main

sys.path.insert(0, str(Path(__file__).parent.parent / "reporting"))
from made_up import ResultsTree, boxes, dataset_json, write_json, write_volume


@pytest.fixture
def tree(tmp_path, monkeypatch):
    tree = ResultsTree(tmp_path / "nnunet")
    tree.environment(monkeypatch)
    return tree


def test_compare_trainings(tree, tmp_path, capsys):
    tree.add_stock(shift=3).add_pair("nnUNetTrainerDHC", shift=1)
    out = tmp_path / "out"
    assert main(["compare", "-d", "901", "-tr", "nnUNetTrainer", "nnUNetTrainerDHC", "-np", "1", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "nnUNetTrainerDHC is better than nnUNetTrainer on these 8 cases" in printed
    assert "Missing control: nnUNetTrainerPairSupervised" in printed
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        "comparison.html", "comparison.json", "comparison.md"]


def test_compare_folders_anonymised_without_images(tmp_path, capsys):
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    for index in range(6):
        case = f"patient_{index}"
        write_volume(tmp_path / "reference" / f"{case}.nii.gz", boxes())
        for name, shift in (("one", 2), ("two", index % 2)):
            write_volume(tmp_path / name / f"{case}.nii.gz", boxes(shift))
    out = tmp_path / "out"
    assert main(["compare", "-i", f"first={tmp_path / 'one'}", f"second={tmp_path / 'two'}", "-ref",
                 str(tmp_path / "reference"), "-djfile", str(djfile), "-np", "1", "-o", str(out), "--anonymise",
                 "--no-images", "--protocol", "dhc"]) == 0
    assert "second is better than first on these 6 cases" in capsys.readouterr().out
    for name in ("comparison.json", "comparison.md", "comparison.html"):
        text = (out / name).read_text()
        assert "patient_" not in text
        assert str(tmp_path) not in text
        assert "data:image" not in text
    assert json.loads((out / "comparison.json").read_text())["protocol"]["name"] == "dhc"


@pytest.mark.parametrize(("arguments", "message"), [
    (["-d", "901"], "Say what to compare"),
    (["-i", "a=b"], "-i needs -ref"),
    (["-i", "a/validation", "b/validation", "-ref", ".", "-djfile", "d"], "-i a/validation is one of 2 folders named"),
    (["-i", "a/validation", "validation=b", "-ref", ".", "-djfile", "d"], "give each a name (-i NAME=DIR)"),
    (["-d", "901", "-tr", "nnUNetTrainerDHC"], "no folder for dataset 901"),
    (["-d", "901", "-tr", "nnUNetTrainer", "-i", "a=b"], "-d is for trainings, -i for folders of predictions"),
    (["-i", "a=b", "-ref", ".", "-djfile", "d", "-f", "0"], "-f is for trainings, -i for folders of predictions"),
    (["-d", "901", "-tr", "nnUNetTrainer", "-ref", "."], "-ref is for folders of predictions: give them with -i"),
    (["-d", "901", "-tr", "nnUNetTrainer", "--images", "."], "--images is for folders of predictions"),
])
def test_errors_are_one_line(tree, tmp_path, capsys, arguments, message):
    tree.results.mkdir(exist_ok=True)
    assert main(["compare", *arguments, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("content", "message"), [
    (None, "can't be read (Is a directory)"),
    ({"labels": ["background", "large"], "file_ending": ".nii.gz"}, "labels must give each name its number"),
    ({"labels": {"0": "background", "1": "large"}, "file_ending": ".nii.gz"}, "labels must give each name its number"),
    ([1], 'has no "labels"'),
    ({"labels": {"background": 0, "ignore": 1}, "file_ending": ".nii.gz"}, "labels name no structure beside"),
])
def test_bad_dataset_json_is_one_line(tmp_path, capsys, content, message):
    djfile = tmp_path if content is None else write_json(tmp_path / "dataset.json", content)
    assert main(["compare", "-i", f"a={tmp_path}", "-ref", str(tmp_path), "-djfile", str(djfile), "-o",
                 str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def _damage(split: Path, content: str) -> None:
    """As an interrupted copy would: it is no younger than the trainings."""
    split.write_text(content)
    os.utime(split, (0, 0))


@pytest.mark.parametrize("content", ["[1, 2]", '[{"train": 3, "val": null}]', '{"a": 1}', "[{"])
def test_damaged_split_is_one_line(tree, tmp_path, capsys, content):
    tree.add_stock(shift=3).add_pair("nnUNetTrainerDHC", shift=1)
    split, = tree.preprocessed.rglob("splits_final.json")
    _damage(split, content)
    arguments = ["compare", "-d", "901", "-np", "1", "-o", str(tmp_path / "out"), "-tr", "nnUNetTrainerDHC"]
    assert main(arguments) == 0  # its record names its cases
    capsys.readouterr()
    assert main([*arguments, "nnUNetTrainer"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nnunet_dhc compare: {split} ") and error.endswith("that was trained with\n")
    assert error.count("\n") == 1


def test_a_split_may_hold_more_than_nnunet_reads(tree, tmp_path):
    tree.add_stock(shift=3)
    split, = tree.preprocessed.rglob("splits_final.json")
    folds = [{**fold, "note": "drawn by hand", "seed": 3} for fold in json.loads(split.read_text())]
    _damage(split, json.dumps([*folds, None]))
    assert main(["compare", "-d", "901", "-np", "1", "-o", str(tmp_path / "out"), "-tr", "nnUNetTrainer"]) == 0


def test_damaged_logs_and_caches_are_no_obstacle(tree, tmp_path, capsys):
    tree.add_stock(shift=3).add_pair("nnUNetTrainerDHC", shift=1)
    for log in tree.results.rglob("dhc_log.jsonl"):
        log.write_text(log.read_text() + '{"epoch": "x"}\n')
    out = tmp_path / "out"
    out.mkdir()
    (out / ".metrics_cache.json").write_text("[]")
    assert main(["compare", "-d", "901", "-tr", "nnUNetTrainer", "nnUNetTrainerDHC", "-np", "1", "-o", str(out)]) == 0
    assert "nnUNetTrainerDHC is better than nnUNetTrainer on these 8 cases" in capsys.readouterr().out


def test_unforeseen_error_is_one_line_and_a_traceback_with_debug(tree, tmp_path, capsys):
    tree.add_pair("nnUNetTrainerDHC")
    for record in tree.results.rglob("dhc_run.json"):
        record.write_text('{"warnings": 3}')
    arguments = ["report", "-d", "901", "-tr", "nnUNetTrainerDHC", "-f", "0", "-np", "1", "-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnunet_dhc report: unexpected TypeError: ") and error.count("\n") == 1
    kept = Path(error.split("; ")[-1].removesuffix(" says where it happened\n"))
    assert kept.read_text().startswith("Traceback ")
    kept.unlink()
    with pytest.raises(TypeError):
        main([*arguments, "--debug"])


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_output_that_is_a_file(tmp_path, capsys, verb):
    (tmp_path / "out").touch()
    assert main([verb, "-d", "901", "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith("out is a file; give a folder\n")


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_output_that_can_not_be_written_to(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root, as whom tests may run, may write
    assert main([verb, "-d", "901", "-o", str(tmp_path / "new" / "out")]) == 2
    assert capsys.readouterr().err.endswith(f"this user may not write to {tmp_path}; give another folder\n")


def test_report_before_and_after_validation(tree, tmp_path, capsys):
    tree.add_pair("nnUNetTrainerDHC", epochs=2, validated=False)
    arguments = ["report", "-d", "901", "-tr", "nnUNetTrainerDHC", "-f", "0", "-np", "1", "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "not validated yet" in capsys.readouterr().out
    tree.add_pair("nnUNetTrainerDHC")
    assert main(arguments) == 0
    assert "mean Dice" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").is_file()


def test_report_of_repeats_of_which_one_is_still_training(tree, tmp_path, capsys):
    other = tmp_path / "seed_2"
    tree.add_pair("nnUNetTrainerDHC").add_pair("nnUNetTrainerDHC", epochs=2, validated=False, results=other)
    assert main(["report", "-d", "901", "-tr", "nnUNetTrainerDHC", "-f", "0", "-np", "1", "-o", str(tmp_path / "out"),
                 "--results-roots", str(tree.results), str(other), "--no-images"]) == 0
    assert "mean Dice" in capsys.readouterr().out
    assert "Allowed difference" not in (tmp_path / "out" / "report.html").read_text()
