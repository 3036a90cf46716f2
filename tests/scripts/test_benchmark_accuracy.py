# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark with two-stage self-training on the tiny dataset: stopped, continued, test cases predicted."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK
from console import environment
from tiny_data import TinyDataset, make_scan, write_image

from nnunet_dhc.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_accuracy.py"
SPLIT = [{"train": ["case_0", "case_1"], "val": ["case_5"], "unlabeled": ["case_2", "case_3"]}]
ROWS = ["two-stage=two-stage:trainer=nnUNetTrainerNoMirroring*2"]
"""Of all rows the one with the most parts; each costs CI half a minute."""


def run(dataset: TinyDataset, work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(SCRIPT), "--data", str(dataset.raw), "--split", str(work / "split.json"),
        "--work", str(work), "--rows", *ROWS, "--epochs", "1", "--iterations", "2", "--val-iterations", "1",
        "--patch", "16", "16", "16", "--features", "4", "8", "8", "--convolutions", "1", "--device", "cpu",
        "--predict", *options,
    ]  # fmt: skip
    return subprocess.run(
        command, env=environment(dataset, {"nnUNet_def_n_proc": "1"}), capture_output=True, text=True, check=True
    )


@pytest.mark.slow
def test_goes_on_after_a_stop_and_ends_with_predictions(tiny_dataset, tmp_path):
    work = tmp_path / "bench"
    shutil.copytree(tiny_dataset.preprocessed, work / "preprocessed" / tiny_dataset.name)
    (work / "split.json").write_text(json.dumps(SPLIT))
    write_image(tiny_dataset.raw / "imagesTs" / "test_0_0000.nii.gz", make_scan(300)[0])
    for case in SPLIT[0]["unlabeled"]:  # whoever reads the label of an unlabeled case fails here
        for folder in (tiny_dataset.raw / "labelsTr", work / "preprocessed" / tiny_dataset.name / "gt_segmentations"):
            (folder / f"{case}.nii.gz").write_text("not a label")

    four = "--features", "4", "8", "8", "8"
    stopped = run(tiny_dataset, work, "--minutes", "0.05", *four)
    assert "stopped; call again to continue" in stopped.stdout
    assert "--features [4, 8, 8, 8] are used as [4, 8, 8]" in stopped.stderr
    assert not (work / "results.jsonl").read_text()
    split_file = work / "preprocessed" / tiny_dataset.name / "splits_final.json"
    written = split_file.stat().st_mtime_ns
    run(tiny_dataset, work, *four)
    assert split_file.stat().st_mtime_ns == written
    (line,) = map(json.loads, (work / "results.jsonl").read_text().splitlines())
    assert (line["row"], line["steps"]) == ("two-stage", 4)
    predicted = SimpleITK.ReadImage(str(work / "predictions" / "two-stage" / "seed_0" / "test_0.nii.gz"))
    assert predicted.GetSize() == (24, 26, 28)

    # the student was trained on the teacher's predictions as if they were labels
    student = work / "two-stage" / "two-stage" / "seed_0"
    assert {path.name for path in (student / "pseudo_labels").glob("*.nii.gz")} == {"case_2.nii.gz", "case_3.nii.gz"}
    assert (student / "preprocessed" / tiny_dataset.name / "nnUNetPlans_3d_fullres" / "case_3_seg.b2nd").is_file()


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import benchmark_accuracy

    return benchmark_accuracy


def made_run(module, tmp_path: Path, row: str, **changed):
    (tmp_path / "split.json").write_text(json.dumps(SPLIT))
    options = {"data": tmp_path / "Dataset999_Tiny", "work": tmp_path / "work", "split": tmp_path / "split.json",
               "fold": 0, "epochs": 5, "iterations": 2, "val_iterations": 1, "configuration": "3d_fullres",
               "plans": "nnUNetPlans", "patch": None, "features": [4, 8, 8], "convolutions": 1, "device": "cpu",
               "predict": False}
    return module.Run(module.Row.parse(row), 0, argparse.Namespace(**{**options, **changed}))


def test_a_run_of_other_options_is_refused_and_kept(module, tmp_path):
    def noted(row, **changed):
        run = made_run(module, tmp_path, row, **changed)
        run.refuse_other_options()
        run.note_options()
        return run

    noted("dhc=nnUNetTrainerDHC", epochs=9)
    run = noted("dhc=nnUNetTrainerDHC:lambda_max=3")  # nothing was started with the former ones
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint_latest.pth").touch()
    noted("dhc=nnUNetTrainerDHC:lambda_max=3")
    for row, changed, message in (
        ("dhc=nnUNetTrainerDHC:lambda_max=3", {"epochs": 9}, r"dhc, seed 0, was .* \(epochs: 5 before, 9 now\)"),
        ("dhc=nnUNetTrainerDHC", {}, "settings: "),
        ("dhc=nnUNetTrainerCPS:lambda_max=3", {}, "trainer: "),  # whose predictions would have the same folder
        ("dhc=nnUNetTrainerDHC:lambda_max=3@all", {}, "all_labels: "),
        ("dhc=nnUNetTrainerDHC:lambda_max=3*2", {}, "times: "),
        ("dhc=nnUNetTrainerDHC:lambda_max=3", {"configuration": "2d"}, "configuration: "),
    ):
        with pytest.raises(UserError, match=message):
            noted(row, **changed)
    noted("other=nnUNetTrainerDHC", epochs=9)


def test_options_of_a_work_folder_of_earlier_are_known(module, tmp_path):
    run = made_run(module, tmp_path, "dhc=nnUNetTrainerDHC")
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint_latest.pth").touch()
    (run.folder / "benchmark_options.json").write_text(json.dumps({"epochs": 9, "iterations": 2}))
    with pytest.raises(UserError, match=r"\(epochs: 9 before, 5 now\)"):
        run.refuse_other_options()


def test_a_run_as_long_as_another_goes_on_with_its_epochs(module, tmp_path):
    run = made_run(module, tmp_path, "long=nnUNetTrainer~dhc")
    run.note_options()
    run.keep_epochs(7)
    with pytest.raises(UserError, match="run dhc and a row of nnUNetTrainer first"):
        module.epochs_of(run, [run])  # not started: other rows tell
    run.folder.mkdir(parents=True)
    (run.folder / "training_log_2026_1_1_00_00_00.txt").touch()
    run.note_options()
    assert module.epochs_of(run, [run]) == 7


@pytest.mark.parametrize("row", ["a=nnUNetTrainerDHC_20epochs", "a=nnUNetTrainerDHC:num_epochs=3",
                                 "a=nnUNetTrainerDHC*1.2.3"])
def test_rows_whose_length_is_another_than_the_one_noted_are_refused(module, row):
    with pytest.raises(UserError, match="--rows"):
        module.Row.parse(row)


def test_another_split_or_dataset_in_the_same_folder_is_refused(module, tiny_dataset, tmp_path):
    run = made_run(module, tmp_path, "a=nnUNetTrainerDHC")
    splits = run.args.work / "splits_final.json"
    run.args.work.mkdir()
    for train in (["case_3"], ["case_4"]):  # nothing has run with the former one
        run.args.split.write_text(json.dumps([{**SPLIT[0], "train": train}]))
        module.write_split(run.args, splits)
    run.folder.mkdir(parents=True)
    (run.folder / "training_log_2026_1_1_00_00_00.txt").touch()
    module.write_split(run.args, splits)
    run.args.split.write_text(json.dumps(SPLIT))
    with pytest.raises(UserError, match="has runs of another split"):
        module.write_split(run.args, splits)
    assert json.loads(splits.read_text())[0]["train"] == ["case_4"]
    raw = run.args.work / "raw" / run.args.data.name
    raw.parent.mkdir()
    raw.symlink_to(tiny_dataset.raw)
    with pytest.raises(UserError, match="has runs on"):
        module.prepare(run.args, [run.row])


def test_labels_that_name_two_rows_are_refused(module, tiny_dataset, tmp_path):
    run = made_run(module, tmp_path, "a=nnUNetTrainerDHC", data=tiny_dataset.raw)
    with pytest.raises(UserError, match="a names two rows"):
        module.check(run.args, [run.row, module.Row.parse("a=nnUNetTrainerCPS")])


def test_printed_commands_continue_and_rows_that_wait_are_comments(module, tiny_dataset, tmp_path, capsys, monkeypatch):
    work = tmp_path / "bench"
    shutil.copytree(tiny_dataset.preprocessed, work / "preprocessed" / tiny_dataset.name)
    (tmp_path / "split.json").write_text(json.dumps(SPLIT))
    monkeypatch.setattr(sys, "argv", [
        "benchmark_accuracy.py", "--data", str(tiny_dataset.raw), "--split", str(tmp_path / "split.json"), "--work",
        str(work), "--rows", "long=nnUNetTrainer~dhc", "dhc=nnUNetTrainerDHC", "stock=nnUNetTrainer", "--device", "cpu",
        "--patch", "16", "16", "16", "--features", "4", "8", "8", "--print-commands"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("raw", "preprocessed", "results"):  # the script sets them for its children
        monkeypatch.setenv(f"nnUNet_{name}", "")
    assert module.main() == 0
    comment, ours, stock = capsys.readouterr().out.splitlines()
    assert comment.startswith("# --rows long: run dhc and a row of nnUNetTrainer first")
    assert "nnUNetv2_train" in ours and ours.endswith("&& echo --c)")
    assert "nnunet_dhc.demo.short_stock" in stock and "--c" not in stock


def test_preprocessing_that_was_cut_is_not_complete(module, tiny_dataset):
    args = argparse.Namespace(data=tiny_dataset.raw, plans=tiny_dataset.tiny_plans, configuration="3d_fullres")
    assert module.is_preprocessed(args, tiny_dataset.preprocessed)
    (tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres" / "case_1.pkl").unlink()
    assert not module.is_preprocessed(args, tiny_dataset.preprocessed)


def test_files_of_a_killed_prediction_are_removed(module, tmp_path):
    write_image(tmp_path / "whole.nii.gz", make_scan(0)[1])
    content = (tmp_path / "whole.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    module.remove_cut_files(tmp_path, ".nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.nii.gz"]


def test_no_command_survives_the_script(module):
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    module._end(process)
    assert process.returncode == -signal.SIGTERM
    module._end(process)


def test_trainers_of_nnunet_take_one_setting(module):
    row = module.Row.parse("stock=nnUNetTrainerNoMirroring:oversample_foreground=0.33*2")
    assert row.settings == {"oversample_foreground": 0.33}
    for text in ("two-stage=two-stage:oversample_foreground=0.33", "stock=nnUNetTrainer:lambda_max=1"):
        with pytest.raises(UserError, match="oversample_foreground alone, two-stage the setting trainer"):
            module.Row.parse(text)


def test_row_with_lists_and_objects_among_its_settings(module):
    row = module.Row.parse("sides=nnUNetTrainerDHC:lambda_max=3,mirror_axes=[0,1],low_memory=on*2")
    assert row.settings == {"lambda_max": 3, "mirror_axes": [0, 1], "low_memory": "on"} and row.times == 2

    architecture = '{"3d_fullres":{"arch_kwargs":{"n_stages":2,"strides":[[1,1,1],[2,2,2]]}}}'
    row = module.Row.parse(f"residual=nnUNetTrainerDHC:architecture_b={architecture},lambda_max=3")
    assert row.settings == {"architecture_b": json.loads(architecture), "lambda_max": 3}
