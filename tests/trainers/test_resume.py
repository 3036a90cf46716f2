# SPDX-License-Identifier: Apache-2.0
"""A resumed run is the run that was never stopped; damaged and foreign checkpoints get one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_training import FOLD, assert_same, differs, log_lines, make_trainer, parameters, resumed

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.training import checkpoint as checkpoint_module
from nnunet_dhc.nnunet.training import preparation
from nnunet_dhc.nnunet.training.epoch_log import read_epoch_log

SETTINGS = {"num_epochs": 3, "lambda_max": 0.5, "teacher": "mean", "teacher_momentum": 0.9}
LONGER = {**SETTINGS, "num_epochs": 5}


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    monkeypatch.setenv("nnUNet_dhc_seed", "3")


def stop_in_epoch(trainer, epoch: int) -> None:
    """Die in the middle of an epoch, as a killed process does."""
    stock = trainer.train_step

    def train_step(batch):
        if trainer.current_epoch == epoch and trainer.statistics.steps == 1:
            raise KeyboardInterrupt
        return stock(batch)

    trainer.train_step = train_step
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()


@pytest.mark.parametrize("killed_in_epoch", [0, 1, 2])
def test_resumed_run_equals_one_never_stopped(tiny_dataset, killed_in_epoch):
    whole = make_trainer(tiny_dataset, **SETTINGS)
    whole.run_training()
    expected, lines, average = parameters(whole), log_lines(whole), whole.averaged_pair.state_dict()
    states = [w.state_dict() for w in whole.objective.weightings]
    Path(whole.output_folder, "checkpoint_final.pth").unlink()

    killed = make_trainer(tiny_dataset, **SETTINGS)
    stop_in_epoch(killed, killed_in_epoch)
    second = resumed(tiny_dataset, killed, **SETTINGS)
    assert second.current_epoch == killed_in_epoch
    second.run_training()
    record = json.loads(Path(second.output_folder, "dhc_run.json").read_text())
    assert record["seconds_total"] == pytest.approx(sum(line["seconds"]["epoch"] for line in log_lines(second)))

    assert_same(expected, parameters(second))
    assert_same(average, second.averaged_pair.state_dict())
    assert differs(average, expected)
    for state, weighting in zip(states, second.objective.weightings, strict=True):
        after = weighting.state_dict()
        assert all(torch.equal(torch.as_tensor(after[n]), torch.as_tensor(state[n])) for n in state)
    for before, after in zip(lines, log_lines(second), strict=True):
        for key in ("epoch", "lambda", "losses", "class_weights_a", "class_weights_b", "dice_mean", "agreement"):
            assert before[key] == after[key], key
    assert second._best_ema == whole._best_ema


def test_finished_run_needs_no_unlabeled_case_and_keeps_its_checkpoint(tiny_dataset):
    trainer = make_trainer(tiny_dataset)
    trainer.run_training()
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    content = final.read_bytes()
    for path in tiny_dataset.images_un.iterdir():
        path.unlink()
    leftover = Path(trainer.output_folder) / "dhc_training.lock"
    leftover.touch()  # by a process that was killed after its last checkpoint
    again = resumed(tiny_dataset, trainer, "checkpoint_final.pth")
    again.run_training()
    assert final.read_bytes() == content
    assert not leftover.exists()


def test_a_run_that_is_shortened_to_what_it_has_done_ends_with_its_final_checkpoint(tiny_dataset):
    trainer = make_trainer(tiny_dataset, num_epochs=3)
    stop_in_epoch(trainer, 2)
    shorter = resumed(tiny_dataset, trainer, num_epochs=2)
    shorter.run_training()
    final = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert final["current_epoch"] == 2
    assert_same(final["network_weights"], parameters(shorter))


def test_a_new_training_in_the_folder_of_a_finished_one_is_what_continues(tiny_dataset):
    make_trainer(tiny_dataset).run_training()
    killed = make_trainer(tiny_dataset, **SETTINGS)
    stop_in_epoch(killed, 2)
    folder = Path(killed.output_folder)
    assert not (folder / "checkpoint_final.pth").exists()
    assert torch.load(folder / "checkpoint_final.pth.before", weights_only=False)["current_epoch"] == 2
    again = make_trainer(tiny_dataset, continues=True, **SETTINGS)
    maybe_load_checkpoint(again, True, False)  # what --c does
    assert again.current_epoch == 2


def epoch_of(folder: Path, name: str) -> int:
    return torch.load(folder / name, weights_only=False)["current_epoch"]


def test_starting_anew_keeps_what_an_interrupted_run_had(tiny_dataset):
    """Somebody repeats the command without --c, twice, before the first epoch has ended."""
    stopped = make_trainer(tiny_dataset, **LONGER)
    stop_in_epoch(stopped, 3)
    folder, log = Path(stopped.output_folder), log_lines(stopped)
    for _ in range(2):
        make_trainer(tiny_dataset, **LONGER).on_train_start()
        assert epoch_of(folder, "checkpoint_latest.pth") == 0
        assert epoch_of(folder, "checkpoint_latest.pth.before") == 3
        assert read_epoch_log(folder / "dhc_log.jsonl.before") == log and len(log) == 3
        assert (folder / "dhc_run.json.before").is_file()


def test_a_finished_run_that_goes_on_is_continued_where_it_was_stopped(tiny_dataset):
    make_trainer(tiny_dataset).run_training()
    longer = make_trainer(tiny_dataset, continues=True, **LONGER)
    maybe_load_checkpoint(longer, True, False)
    stop_in_epoch(longer, 3)
    folder = Path(longer.output_folder)
    again = make_trainer(tiny_dataset, continues=True, **LONGER)
    maybe_load_checkpoint(again, True, False)
    assert again.current_epoch == 3
    assert epoch_of(folder, "checkpoint_final.pth.before") == 2


def test_without_checkpointing_those_of_another_run_stay(tiny_dataset):
    stopped = make_trainer(tiny_dataset, **LONGER)
    stop_in_epoch(stopped, 3)
    folder = Path(stopped.output_folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    trial = make_trainer(tiny_dataset)
    trial.disable_checkpointing = True
    stop_in_epoch(trial, 1)
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == before
    assert {"checkpoint_latest.pth", "checkpoint_best.pth"} <= before.keys()


def test_what_an_earlier_training_validated_is_not_taken_for_the_new_one(tiny_dataset):
    make_trainer(tiny_dataset).run_training()
    for _ in range(2):
        trainer = make_trainer(tiny_dataset)
        folder = Path(trainer.output_folder)
        (folder / "validation").mkdir()
        (folder / "validation" / "summary.json").write_text("{}")
        trainer.on_train_start()
        assert not (folder / "validation").exists()
        assert (folder / "validation.before" / "summary.json").is_file()


def test_the_command_to_resume_never_means_an_earlier_training_of_the_folder(tiny_dataset):
    make_trainer(tiny_dataset).run_training()
    trainer = make_trainer(tiny_dataset)
    assert not trainer.resume_command.endswith("--c")  # stopped now, it has no checkpoint of its own
    trainer.on_train_start()
    assert trainer.resume_command.endswith("--c")
    again = make_trainer(tiny_dataset, continues=True)
    maybe_load_checkpoint(again, True, False)
    assert again.resume_command.endswith("--c")


def test_torchrun_restarts_a_training_that_has_no_checkpoint_yet(tiny_dataset, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    trainer = make_trainer(tiny_dataset, continues=True)  # with the --c that is added to its command
    trainer.on_train_start()
    assert trainer.current_epoch == 0


def test_continue_without_checkpoint_never_starts_over(tiny_dataset):
    trainer = make_trainer(tiny_dataset, continues=True)
    with pytest.raises(UserError, match=r"there is no checkpoint in .*without --c"):
        trainer.run_training()


def test_alarms_count_on_after_a_stop(tiny_dataset):
    trainer = make_trainer(tiny_dataset)
    trainer.on_train_start()
    trainer.monitor.load_state_dict({**trainer.monitor.state_dict(), "epochs_with_zero_dice": [2, 0, 1]})
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    second = resumed(tiny_dataset, trainer)
    second.on_train_start()
    assert second.monitor.state_dict()["epochs_with_zero_dice"] == [2, 0, 1]


def test_checkpoint_before_the_first_step(tiny_dataset):
    trainer = make_trainer(tiny_dataset)
    trainer.on_train_start()
    latest = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=False)
    assert latest["current_epoch"] == 0
    assert latest["nnunet_dhc"]["weighting_b"]["weights"].shape == (4,)


def test_our_part_loads_without_executing_code(tiny_dataset, tmp_path):
    trainer = make_trainer(tiny_dataset)
    trainer.on_train_start()
    state = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=False)["nnunet_dhc"]
    torch.save(state, tmp_path / "state.pth")
    assert torch.load(tmp_path / "state.pth", weights_only=True).keys() == state.keys()


def test_changed_cases_are_told(tiny_dataset):
    trainer = make_trainer(tiny_dataset)
    stop_in_epoch(trainer, 1)
    sorted(tiny_dataset.images_un.iterdir())[0].unlink()
    second = resumed(tiny_dataset, trainer)
    second.run_training()
    log = "".join(path.read_text() for path in Path(second.output_folder).glob("training_log_*.txt"))
    assert "WARNING: the list of cases (unlabeled) is not what this run started with" in log
    record = json.loads(Path(second.output_folder, "dhc_run.json").read_text())
    assert "the list of cases (unlabeled)" in record["warnings"][-1]


@pytest.mark.parametrize("trained_on", ["case_1", "case_3"])  # labeled, unlabeled
def test_a_training_case_does_not_become_a_validation_case(tiny_dataset, trained_on):
    trainer = make_trainer(tiny_dataset)
    stop_in_epoch(trainer, 1)
    swapped = {key: ["case_2" if case == trained_on else case for case in FOLD[key]] for key in ("train", "unlabeled")}
    tiny_dataset.write_split([{**swapped, "val": [trained_on]}])
    with pytest.raises(UserError, match=rf"splits_final.json now has {trained_on} for validation, .* --c"):
        resumed(tiny_dataset, trainer).run_training()
    tiny_dataset.write_split([FOLD])
    resumed(tiny_dataset, trainer).run_training()


def test_a_case_that_left_the_training_is_still_no_validation_case(tiny_dataset):
    """Two changes of the split, of which neither makes a validation case of a training case."""
    trainer = make_trainer(tiny_dataset)
    stop_in_epoch(trainer, 1)
    tiny_dataset.write_split([{**FOLD, "train": ["case_0"]}])
    second = resumed(tiny_dataset, trainer)
    stop_in_epoch(second, 1)
    record = json.loads(Path(second.output_folder, "dhc_run.json").read_text())
    assert record["cases"]["labeled"] == ["case_0"]
    assert record["cases_of_all_starts"]["labeled"] == ["case_0", "case_1"]
    assert "(labeled now without case_1)" in record["warnings"][-1]
    tiny_dataset.write_split([{**FOLD, "train": ["case_0"], "val": ["case_1"]}])
    with pytest.raises(UserError, match=r"splits_final.json now has case_1 for validation"):
        resumed(tiny_dataset, second).run_training()


def test_a_finished_training_validates_no_case_that_it_has_trained_on(tiny_dataset):
    """``--val``, and ``--c`` of what is finished, come here without a look at the split."""
    make_trainer(tiny_dataset, num_epochs=1).run_training()
    tiny_dataset.write_split([{"train": ["case_0", "case_2"], "val": ["case_1"], "unlabeled": FOLD["unlabeled"]}])
    trainer = make_trainer(tiny_dataset, num_epochs=1)
    trainer.initialize()
    with pytest.raises(UserError, match=r"splits_final.json now has case_1 for validation, on which this run has"):
        trainer.perform_actual_validation()
    assert not Path(trainer.output_folder, "validation").exists()


def test_a_new_validation_case_is_no_leak(tiny_dataset):
    trainer = make_trainer(tiny_dataset)
    stop_in_epoch(trainer, 1)
    tiny_dataset.write_split([{**FOLD, "val": ["case_2", "case_5"]}])
    resumed(tiny_dataset, trainer).run_training()


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "stock", "later format", "other trainer"])
def test_bad_checkpoint_gets_one_line(tiny_dataset, damage):
    trainer = make_trainer(tiny_dataset)
    trainer.on_train_start()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    content = path.read_bytes()
    checkpoint = torch.load(path, weights_only=False)
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        torch.save([1, 2], path)
    elif damage == "stock":
        del checkpoint["nnunet_dhc"]
        torch.save({**checkpoint, "trainer_name": "nnUNetTrainer"}, path)
    elif damage == "later format":
        checkpoint["nnunet_dhc"]["format"] = 99
        torch.save(checkpoint, path)
    else:
        torch.save({**checkpoint, "trainer_name": "nnUNetTrainerCPS"}, path)
    with pytest.raises(UserError) as error:
        make_trainer(tiny_dataset, continues=True).load_checkpoint(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_another_number_of_epochs_in_the_name_is_the_same_trainer(tmp_path):
    path = str(tmp_path / "checkpoint_latest.pth")
    torch.save({"trainer_name": "nnUNetTrainerDHC_5epochs", "nnunet_dhc": {"format": 1}}, path)
    for name in ("nnUNetTrainerDHC_1epoch", "nnUNetTrainerDHC"):
        assert checkpoint_module.read_checkpoint(path, name)["trainer_name"] == "nnUNetTrainerDHC_5epochs"
    with pytest.raises(UserError, match="continue it with -tr nnUNetTrainerDHC_5epochs"):
        checkpoint_module.read_checkpoint(path, "nnUNetTrainerCPS_5epochs")


def test_kill_while_writing_leaves_the_old_checkpoint(tiny_dataset, monkeypatch):
    trainer = make_trainer(tiny_dataset)
    trainer.on_train_start()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    content = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_module.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer._save([trainer.files.path("checkpoint_latest.pth")], finished_epochs=1)
    assert path.read_bytes() == content
    assert not [name for name in os.listdir(trainer.output_folder) if name.endswith(".tmp")]


def test_full_disk_while_writing_is_one_line(tiny_dataset, monkeypatch):
    trainer = make_trainer(tiny_dataset)
    trainer.on_train_start()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*previous checkpoint is kept"):
        trainer._save([trainer.files.path("checkpoint_latest.pth")], finished_epochs=1)


def test_stock_part_of_a_checkpoint_is_nnunets(tiny_dataset):
    """A reader that knows nnU-Net finds every key it expects."""
    trainer = make_trainer(tiny_dataset)
    trainer.on_train_start()
    ours = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=False)
    nnUNetTrainer.save_checkpoint(trainer, str(Path(trainer.output_folder) / "stock.pth"))
    stock = torch.load(Path(trainer.output_folder) / "stock.pth", weights_only=False)
    assert set(ours) == {*stock, "nnunet_dhc"}


@pytest.mark.parametrize("links", [True, False])
def test_best_checkpoint_is_the_latest_one_until_an_epoch_is_worse(tiny_dataset, monkeypatch, links):
    if not links:
        monkeypatch.setattr(checkpoint_module.os, "link", refuse_links)
    trainer = make_trainer(tiny_dataset, num_epochs=4)
    latest, best = (Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("latest", "best"))

    end_epoch(trainer, 0, dice=0.5)
    assert os.path.samefile(latest, best) == links
    of_first = torch.load(best, weights_only=False)
    assert of_first["current_epoch"] == 1 and of_first["nnunet_dhc"]["monitor"] == trainer.monitor.state_dict()

    end_epoch(trainer, 1, dice=0.4)
    assert torch.load(best, weights_only=False)["current_epoch"] == 1  # kept while the latest one was replaced
    assert torch.load(latest, weights_only=False)["current_epoch"] == 2

    end_epoch(trainer, 2, dice=0.9)
    assert os.path.samefile(latest, best) == links
    assert torch.load(best, weights_only=False)["current_epoch"] == 3
    assert not [name for name in os.listdir(trainer.output_folder) if name.endswith(".tmp")]


def test_best_checkpoint_of_the_last_epoch_is_written(tiny_dataset):
    trainer = make_trainer(tiny_dataset, num_epochs=1)
    trainer.run_training()
    best = torch.load(Path(trainer.output_folder) / "checkpoint_best.pth", weights_only=False)
    assert best["current_epoch"] == 1 and best["_best_ema"] == trainer._best_ema


def refuse_links(*_):
    raise OSError(95, "Operation not supported")


def end_epoch(trainer, epoch, dice):
    """An epoch of a running training whose mean Dice on the validation patches is ``dice``."""
    if epoch == 0:
        trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
    trainer.logger.log("ema_fg_dice", dice, trainer.current_epoch)
    trainer.on_epoch_end()


def test_a_resumed_run_keeps_its_exponent_though_the_labels_have_changed(tiny_dataset, monkeypatch):
    trainer = make_trainer(tiny_dataset)
    trainer.on_train_start()
    second = resumed(tiny_dataset, trainer)
    monkeypatch.setattr(preparation, "labeled_voxel_counts", lambda *_: np.array([900, 11, 11, 11]))  # none is rare
    second.on_train_start()
    assert trainer.recipe.weight_exponent_final == second.recipe.weight_exponent_final == 0.5
