# SPDX-License-Identifier: Apache-2.0
"""The demo: steps that resume, small plans, other people's data, and one whole run."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_dhc.cli.main import main
from nnunet_dhc.demo import pipeline
from nnunet_dhc.demo.phantom_dataset import PhantomPlan
from nnunet_dhc.demo.small_plans import write_small_plans
from nnunet_dhc.demo.steps import STATE_FILE, Steps
from nnunet_dhc.errors import UserError

DATASET_JSON = '{{"labels": {{"background": 0, "{}": 9}}, "file_ending": ".nii.gz", "channel_names": {{"0": "CT"}}}}'


def _append(path: Path, text: str) -> None:
    path.write_text((path.read_text() if path.exists() else "") + text)


def _run(folder: Path, second: str = "b") -> str:
    done = folder / "done.txt"
    steps = Steps(folder, 3, os.environ)
    steps.call("first", 1, lambda: _append(done, "a"))
    steps.command("second", ["python", "-c", f"open({str(done)!r}, 'a').write('{second}')"])
    steps.call("third", 3, lambda: _append(done, "c"))
    return done.read_text()


def test_finished_steps_are_skipped(tmp_path, capsys):
    assert _run(tmp_path) == "abc"
    assert _run(tmp_path) == "abc"
    assert "[3/3] third: done before" in capsys.readouterr().out


def test_changed_step_makes_later_ones_again(tmp_path):
    _run(tmp_path)
    assert _run(tmp_path, second="B") == "abcBc"


def test_failed_command_names_its_log_and_runs_again(tmp_path):
    steps = Steps(tmp_path, 1, os.environ)
    flag = tmp_path / "flag"
    command = ["python", "-c", f"import os; print('the reason'); assert os.path.exists({str(flag)!r})"]
    with pytest.raises(UserError, match=r"failed .*01_python.log"):
        steps.command("only", command)
    flag.touch()
    Steps(tmp_path, 1, os.environ).command("only", command)


def test_step_that_failed_after_a_change_is_not_taken_for_the_old_one(tmp_path):
    _run(tmp_path)
    with pytest.raises(UserError):
        Steps(tmp_path, 1, os.environ).command("second", ["python", "-c", "raise SystemExit(1)"])
    assert _run(tmp_path) == "abcbc"


def test_step_of_an_option_leaves_the_others_done(tmp_path):
    _run(tmp_path)
    done = tmp_path / "done.txt"
    steps = Steps(tmp_path, 4, os.environ)
    steps.call("first", 1, lambda: _append(done, "a"))
    steps.call("between", 2, lambda: _append(done, "x"))
    assert _run(tmp_path) == "abcx"
    assert list(json.loads((tmp_path / "steps.json").read_text())) == ["first", "between", "second", "third"]


def test_resume_arguments_do_not_count_as_a_change(tmp_path):
    target = tmp_path / "seen.txt"
    command = ["python", "-c", f"import sys; open({str(target)!r}, 'a').write(str(sys.argv[1:]))"]
    Steps(tmp_path, 1, os.environ).command("only", command)
    Steps(tmp_path, 1, os.environ).command("only", command, prepare=lambda: ["--c"])
    assert target.read_text() == "[]"


def test_small_plans(tiny_dataset):
    settings = {"num_epochs": 3}
    path = write_small_plans(tiny_dataset.preprocessed, "3d_fullres", (17, 99, 16), (4, 8, 8), settings=settings)
    old, new = tiny_dataset.plans_content("nnUNetPlans"), json.loads(path.read_text())
    plan = new["configurations"]["3d_fullres"]
    assert new["plans_name"] == path.stem == "nnUNetPlansSmall"
    assert new["nnunet_dhc"] == settings
    assert list(new["configurations"]) == ["3d_fullres"]
    arguments = plan["architecture"]["arch_kwargs"]
    assert arguments["n_stages"] == len(arguments["strides"]) == len(arguments["features_per_stage"]) == 3
    median = old["configurations"]["3d_fullres"]["median_image_size_in_voxels"]
    for size, largest, *strides in zip(plan["patch_size"], median, *arguments["strides"], strict=True):
        assert size % math.prod(strides) == 0 and size <= largest + math.prod(strides)
    # The preprocessed data are shared.
    for key in ("data_identifier", "spacing", "normalization_schemes"):
        assert plan[key] == old["configurations"]["3d_fullres"][key]
    with pytest.raises(UserError, match="run nnUNetv2_plan_and_preprocess"):
        write_small_plans(tiny_dataset.preprocessed, "3d_fullres", (16,) * 3, (4, 8), plans_identifier="nobody")
    with pytest.raises(UserError, match="no plan of its own"):
        write_small_plans(tiny_dataset.preprocessed, "3d_lowres", (16,) * 3, (4, 8))
    with pytest.raises(UserError, match="2 resolutions, and nnU-Net needs 3"):
        write_small_plans(tiny_dataset.preprocessed, "3d_fullres", (16,) * 3, (4, 8))


def test_training_seconds_counts_each_epoch_once(tmp_path):
    line = "2026-01-01 00:00:00.000000: "
    (tmp_path / "training_log_1.txt").write_text(f"{line}Epoch 0 \n{line}Epoch time: 10.0 s\n{line}Epoch 1 \n"
                                                 f"{line}Epoch time: 4.0 s\n{line}Epoch 2 \n")
    (tmp_path / "training_log_2.txt").write_text(f"{line}Epoch 1\n{line}Epoch time: 5.5 s\n")
    assert pipeline.training_seconds(tmp_path) == 15.5
    with pytest.raises(UserError, match="no finished epoch"):
        pipeline.training_seconds(tmp_path / "elsewhere")


@pytest.mark.parametrize(("options", "message"), [
    (["--data", "nowhere"], "must be named like Dataset123_Name"),
    (["--data", "Dataset123_Gone"], "no dataset.json"),
    (["--epochs", "0"], "positive numbers"),
    (["-o", "file"], "file is a file; give a folder"),
    (["-o", "file/below"], "file is a file; give a folder"),
])
def test_bad_options_are_one_line(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["demo", "-device", "cpu", *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_folders_that_no_demo_made_are_left_alone(tmp_path, capsys):
    source, out = tmp_path / "Dataset123_Mine", tmp_path / "out"
    (source / "imagesUn").mkdir(parents=True)
    (source / "dataset.json").write_text(DATASET_JSON.format("tumor"))
    (mine := out / "preprocessed" / source.name / "case.b2nd").parent.mkdir(parents=True)
    mine.touch()
    (out / "logs").mkdir()
    assert main(["demo", "-device", "cpu", "-o", str(out), "--data", str(source)]) == 2
    assert f"{out / 'preprocessed'} has files that no demo made" in capsys.readouterr().err.splitlines()[-1]
    assert mine.exists() and not (out / "raw").exists()


def test_a_demo_that_was_stopped_in_its_first_step_is_known(tmp_path):
    (tmp_path / "raw" / "half").mkdir(parents=True)
    (tmp_path / "logs").mkdir()
    Steps(tmp_path / "logs", 1, os.environ)
    pipeline._refuse_folders_of_others(tmp_path, tmp_path / "logs" / STATE_FILE)


def test_data_without_unlabeled_scans(tmp_path, capsys):
    source = tmp_path / "Dataset123_Mine"
    source.mkdir()
    (source / "dataset.json").write_text(DATASET_JSON.format("tumor"))
    (source / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    assert main(["demo", "-device", "cpu", "-o", str(tmp_path / "out"), "--data", str(source)]) == 2
    assert "no unlabeled scans" in capsys.readouterr().err.splitlines()[-1]


def test_equal_time_without_test_cases_is_refused_before_it_is_trained(tmp_path, capsys):
    source = tmp_path / "Dataset123_Mine"
    source.mkdir()
    assert main(["demo", "-device", "cpu", "-o", str(tmp_path / "out"), "--data", str(source), "--equal-time"]) == 2
    assert "has no imagesTs and labelsTs" in capsys.readouterr().err.splitlines()[-1]


def test_data_are_linked_and_their_split_is_used(tmp_path):
    source = tmp_path / "Dataset123_Mine"
    (source / "imagesTr").mkdir(parents=True)
    (source / "dataset.json").write_text(DATASET_JSON.format("tumor"))
    split = tmp_path / "split.json"
    split.write_text('[{"train": ["a"], "val": ["b"], "unlabeled": ["c"]}]')
    dataset = pipeline._Dataset(pipeline.DemoOptions(data=source, split=split), tmp_path / "out")
    dataset.make(Steps(tmp_path, 1, os.environ))
    assert not dataset.has_test_labels
    assert (dataset.raw / "imagesTr").resolve() == (source / "imagesTr").resolve()
    assert (dataset.preprocessed / "splits_final.json").read_text() == split.read_text()
    assert not (source / "splits_final.json").exists()


def test_changed_data_begin_again(tmp_path):
    source = tmp_path / "Dataset123_Mine"
    (source / "imagesUn").mkdir(parents=True)
    (source / "dataset.json").write_text(DATASET_JSON.format("tumor"))
    split = tmp_path / "split.json"
    for change in (lambda: split.write_text('[{"train": ["a"], "val": ["b"], "unlabeled": ["c"]}]'),
                   lambda: split.write_text('[{"train": ["b"], "val": ["a"], "unlabeled": ["cc"]}]'),
                   lambda: (source / "imagesUn" / "d_0000.nii.gz").touch()):
        change()
        dataset = pipeline._Dataset(pipeline.DemoOptions(data=source, split=split), tmp_path / "out")
        dataset.make(Steps(tmp_path, 1, os.environ))
        assert (dataset.preprocessed / "splits_final.json").read_text() == split.read_text()
        (made := dataset.preprocessed / "made").touch()
        dataset.make(Steps(tmp_path, 1, os.environ))
        assert made.exists()  # nothing has changed


def test_another_source_of_the_same_name_replaces_the_links(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "Dataset123_Mine" / "imagesUn").mkdir(parents=True)
        (tmp_path / place / "Dataset123_Mine" / "dataset.json").write_text(DATASET_JSON.format("tumor"))
        options = pipeline.DemoOptions(data=tmp_path / place / "Dataset123_Mine")
        dataset = pipeline._Dataset(options, tmp_path / "out")
        dataset.preprocessed.mkdir(parents=True)
        (dataset.preprocessed / "of_this_source").touch()
        dataset.make(Steps(tmp_path, 1, os.environ))
        assert (dataset.raw / "imagesUn").resolve() == dataset.source / "imagesUn"
        assert not (dataset.preprocessed / "of_this_source").exists()
    with pytest.raises(UserError, match="give another -o"):
        pipeline._Dataset(pipeline.DemoOptions(data=dataset.raw), tmp_path / "out")._link()


def _write_names_of_labels(raw: Path, number: int, *_) -> None:
    folder = raw / f"Dataset{number}_AbdomenPhantom"
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(DATASET_JSON.format('left_kidney": 1, "right_kidney'))


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Commands that the demo would run; trainings leave a checkpoint and predictions a file named by the options."""
    seen: list[list[str]] = []

    def run(steps: Steps, words: list[str], epochs: int) -> None:
        seen.append(words)
        if "short_stock" in words[2] or words[0] == "nnUNetv2_train":
            trainer = words[words.index("-tr") + 1]
            number = next(word for word in words if word.isdecimal())
            fold, = Path(steps.environment["nnUNet_results"]).glob(f"Dataset{number}_*/{trainer}__*/fold_0")
            (fold / "checkpoint_final.pth").touch()
        if words[0] == "nnUNetv2_predict":
            target = Path(words[words.index("-o") + 1])
            target.mkdir(parents=True)
            (target / f"case_of_{words[words.index('-d') + 1]}.nii.gz").touch()

    monkeypatch.setattr(Steps, "_run", run)
    monkeypatch.setattr(Steps, "show", lambda *_: None)
    monkeypatch.setattr(pipeline, "write_dataset", _write_names_of_labels)
    monkeypatch.setattr(pipeline, "write_small_plans", lambda *_, **__: None)
    return seen


def _trained(commands: list[list[str]]) -> list[tuple[str, bool]]:
    """Program and whether it was told to continue, of the trainings since the last call."""
    found = [(words[0], "--c" in words) for words in commands if words[0] in ("python", "nnUNetv2_train")]
    commands.clear()
    return found


ANEW = [("python", False), ("nnUNetv2_train", False)]


@pytest.mark.parametrize("options", [{"iterations": 250}, {"epochs": 5}, {"patch": (16, 16, 16)}, {"features": (4, 8)}])
def test_other_options_train_anew(tmp_path, capsys, commands, options):
    first = pipeline.DemoOptions(tmp_path / "demo", device="cpu")
    pipeline.run_demo(first)
    assert _trained(commands) == ANEW
    pipeline.run_demo(first)
    assert not commands
    assert "removed" not in capsys.readouterr().out

    pipeline.run_demo(replace(first, **options))
    assert _trained(commands) == ANEW
    assert capsys.readouterr().out.count("was started with other options: removed") == 2


def test_stopped_training_continues(tmp_path, commands):
    options = pipeline.DemoOptions(tmp_path / "demo", device="cpu")
    pipeline.run_demo(options)
    _trained(commands)
    (tmp_path / "demo" / "logs" / STATE_FILE).write_text("{}")
    pipeline.run_demo(options)
    assert _trained(commands) == [("python", False), ("nnUNetv2_train", True)]


def test_predictions_of_another_dataset_do_not_stay(tmp_path, commands):
    options = pipeline.DemoOptions(tmp_path / "demo", device="cpu")
    pipeline.run_demo(options)
    source = tmp_path / "Dataset123_Mine"
    for folder in ("imagesUn", "imagesTs", "labelsTs"):
        (source / folder).mkdir(parents=True)
    (source / "dataset.json").write_text(DATASET_JSON.format("tumor"))
    commands.clear()
    pipeline.run_demo(replace(options, data=source))
    assert [path.name for path in (tmp_path / "demo" / "predictions" / "DHC").iterdir()] == ["case_of_123.nii.gz"]
    assert _stock_trainers(commands) == ["nnUNetTrainer"]  # DHC mirrors there, too


def _stock_trainers(commands: list[list[str]]) -> list[str]:
    return [words[words.index("-tr") + 1] for words in commands if words[0] == "python"]


def test_stock_is_trained_and_longer_without_mirroring_where_dhc_is(tmp_path, commands, monkeypatch):
    monkeypatch.setattr(pipeline, "training_seconds", lambda folder: 3.0 if "DHC" in str(folder) else 1.0)
    pipeline.run_demo(pipeline.DemoOptions(tmp_path / "demo", device="cpu", equal_time=True))
    assert _stock_trainers(commands) == ["nnUNetTrainerNoMirroring"] * 2
    stock = [words for words in commands if words[0] == "python"]
    assert [words[words.index("--epochs") + 1] for words in stock] == ["10", "30"]
    assert {words[words.index("--oversample-foreground") + 1] for words in stock} == {"0.33"}


@pytest.mark.slow
def test_whole_demo_and_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "PhantomPlan", lambda: PhantomPlan(2, 1, 1, 1))
    monkeypatch.setenv("PATH", os.defpath)  # as where the environment of this interpreter isn't activated
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    command = ["demo", "-o", str(tmp_path / "demo"), "--epochs", "2", "--iterations", "1", "--patch", "24", "32", "32",
               "--features", "4", "8", "8", "-device", "cpu", "-np", "1"]
    assert main(command) == 0
    report = tmp_path / "demo" / "comparison" / "comparison.html"
    assert report.is_file()
    printed = capsys.readouterr().out
    assert f"Report: {report}" in printed
    results = tmp_path / "demo" / "results" / "Dataset901_AbdomenPhantom"
    checkpoints = list(results.glob("*/fold_0/checkpoint_final.pth"))
    assert len(checkpoints) == 2
    before = [path.stat().st_mtime_ns for path in checkpoints]
    assert main(command) == 0
    assert capsys.readouterr().out.count("done before") == 7
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
