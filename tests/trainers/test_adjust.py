# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with offsets predicts the old logits plus them, in the pair and in stock nnU-Net."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tiny_data import TINY_PLANS, make_scan, write_image
from tiny_training import assert_same, make_trainer
from variants import REGIONS, make_variant

from nnunet_dhc.cli.main import main
from nnunet_dhc.core.class_offsets import STRENGTHS, choose_offsets, confusion, dice_of_cases, reduce_case
from nnunet_dhc.nnunet.models import adjust_model
from nnunet_dhc.nnunet.models.adjust_model import ADJUSTED, REPORT, Adjustment, _choose, _reduce, shifted
from nnunet_dhc.nnunet.network.predictor import trained_predictor

FOLD = {"train": ["case_0", "case_1"], "val": ["case_2", "case_3", "case_4"], "unlabeled": ["case_5"]}
CPU = torch.device("cpu")
COMMAND = ["adjust", "-d", "999", "-c", "3d_fullres", "-p", TINY_PLANS, "-f", "0", "-device", "cpu"]


@pytest.fixture
def dataset(tiny_dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_dhc_seed", "1")
    tiny_dataset.write_split([FOLD])
    return tiny_dataset


def train(dataset, name="nnUNetTrainerDHC") -> Path:
    """A training of a few steps; its folder."""
    if name == "nnUNetTrainer":
        torch.manual_seed(1)
        plans = {**dataset.plans_content(), "continue_training": False}
        trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset.dataset_json, CPU)
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 3, 8, 1
    else:
        trainer = make_trainer(dataset, name, num_epochs=3, num_iterations_per_epoch=8)
    trainer.run_training()
    return Path(trainer.output_folder)


def shift_final(folder: Path, offsets: list[float]) -> None:
    """Make a trained model paint some classes too large or too small."""
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    biases = [name for name in checkpoint["network_weights"] if name.endswith("seg_layers.1.bias")]
    torch.save(shifted(checkpoint, biases, torch.tensor(offsets)), folder / "checkpoint_final.pth")


def logits_of(folder: Path, name: str, image: torch.Tensor) -> torch.Tensor:
    """Without the border, where nnU-Net's weights of the sliding window are too small for half precision."""
    logits = trained_predictor(folder.parent, (0,), name, CPU).predict_sliding_window_return_logits(image)
    return logits[:, 6:-6, 6:-6, 6:-6].float()


@pytest.mark.parametrize("name", ["nnUNetTrainerDHC", "nnUNetTrainer"])
def test_logits_are_shifted_and_the_trained_checkpoint_stays(dataset, name, capsys):
    folder = train(dataset, name)
    shift_final(folder, [-3.0, -1.0, -1.0])
    final = (folder / "checkpoint_final.pth").read_bytes()
    assert main([*COMMAND, "-tr", name]) == 0
    said = capsys.readouterr().out
    report = json.loads((folder / REPORT).read_text())
    assert report["helps"], said
    assert f"-tr {name} -p {TINY_PLANS} -f 0 -chk {ADJUSTED}" in said
    assert report["mean_dice"]["cross_fitted"] > report["mean_dice"]["before"]
    assert report["validation_cases"] == FOLD["val"]
    assert (folder / "checkpoint_final.pth").read_bytes() == final

    image = torch.from_numpy(make_scan(77)[0][None].astype(np.float32))
    offsets = torch.tensor([0.0, *report["offsets"].values()])
    before, after = (logits_of(folder, file, image) for file in ("checkpoint_final.pth", ADJUSTED))
    assert offsets.any()
    torch.testing.assert_close(after, before + offsets[:, None, None, None], atol=0.02, rtol=0.01)


@pytest.mark.parametrize("ignore", [False, True])
def test_regions(tmp_path, monkeypatch, ignore, no_process_pools, capsys):
    monkeypatch.setenv("nnUNet_dhc_seed", "1")
    dataset = make_variant(tmp_path / "nnunet", monkeypatch, REGIONS, ignore=ignore)
    dataset.write_split([{"train": ["case_0", "case_1"], "val": ["case_2", "case_3"], "unlabeled": []}])
    folder = train(dataset)
    shift_final(folder, [-2.0, 0.0, 0.0])
    assert main(COMMAND) == 0
    report = json.loads((folder / REPORT).read_text())
    assert list(report["offsets"]) == ["whole", "core", "small"] and report["helps"], capsys.readouterr().out
    assert report["offsets"]["whole"] > 0
    assert report["dice"]["cross_fitted"]["whole"] > report["dice"]["before"]["whole"]

    image = torch.from_numpy(make_scan(77)[0][None].astype(np.float32))
    before, after = (logits_of(folder, file, image) for file in ("checkpoint_final.pth", ADJUSTED))
    offsets = torch.tensor(list(report["offsets"].values()))
    torch.testing.assert_close(after, before + offsets[:, None, None, None], atol=0.02, rtol=0.01)


def test_where_offsets_do_not_help_the_network_is_the_old_one(dataset, capsys):
    folder = train(dataset)
    shift_final(folder, [-40.0, -40.0, -40.0])  # background everywhere, out of reach
    assert main(COMMAND) == 0
    assert "written, without offsets: chosen on some validation cases" in capsys.readouterr().out
    assert not json.loads((folder / REPORT).read_text())["helps"]
    before, after = (torch.load(folder / name, weights_only=False)["network_weights"]
                     for name in ("checkpoint_final.pth", ADJUSTED))
    assert_same(before, after)


def test_a_new_training_sets_the_adjusted_checkpoint_aside(dataset):
    folder = train(dataset)
    (folder / ADJUSTED).write_text("of the first training")
    make_trainer(dataset).on_train_start()
    assert not (folder / ADJUSTED).exists() and (folder / f"{ADJUSTED}.before").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["-f", "0", "0"], "-f: name each fold once"),
        (["-f", "all"], "-f all: its validation cases were trained on"),
        (["-f", "1"], "has no checkpoint_final.pth of fold 1: train them, or use -f 0\n"),
        (["-chk", ADJUSTED], f"-chk {ADJUSTED} has offsets already"),
        (["-d", "998"], "no trained model of dataset 998"),
    ],
)
def test_refused(dataset, capsys, changes, message):
    folder = train(dataset)
    for fold in ("fold_0", "fold_all"):
        (folder.parent / fold).mkdir(exist_ok=True)
        (folder.parent / fold / ADJUSTED).touch()
        (folder.parent / fold / "checkpoint_final.pth").touch()
    capsys.readouterr()
    assert main([*COMMAND, *changes]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_damaged_checkpoint_is_named(dataset, capsys):
    path = train(dataset) / "checkpoint_final.pth"
    for content in (path.read_bytes()[:1000], b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(content)
        capsys.readouterr()
        assert main(COMMAND) == 2
        error = capsys.readouterr().err
        assert "has a checkpoint_final.pth of fold 0 that can't be loaded" in error and error.count("\n") == 1


def test_data_that_were_preprocessed_for_other_plans_are_refused(dataset, capsys):
    """As after another nnUNetv2_plan_and_preprocess: the model's own plans are in its folder."""
    path = train(dataset).parent / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["NoNormalization"]
    path.write_text(json.dumps(plans))
    capsys.readouterr()
    assert main(COMMAND) == 2
    error = capsys.readouterr().err
    assert "were preprocessed with other settings, as those of normalization, than the model in" in error
    assert error.count("\n") == 1


def test_another_split_than_that_of_the_training_is_refused(dataset, capsys):
    train(dataset)
    dataset.write_split([{**FOLD, "train": FOLD["val"], "val": FOLD["train"]}])
    capsys.readouterr()
    assert main(COMMAND) == 2
    error = capsys.readouterr().err
    assert "has other validation cases of fold 0 than this training had (case_2, case_3, case_4 ...)" in error
    assert error.count("\n") == 1


def test_one_validation_case_is_not_enough(dataset, capsys):
    dataset.write_split([{**FOLD, "val": ["case_2"]}])
    train(dataset)
    assert main(COMMAND) == 2
    message = "fold 0 has 1 validation case; to see whether offsets help it takes 2: a model of these folds can't be"
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_predicts_with_nnunets_command(dataset, tmp_path):
    folder = train(dataset)
    shift_final(folder, [-3.0, -1.0, -1.0])
    assert main(COMMAND) == 0
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "scan_0000.nii.gz", make_scan(77)[0])
    predict = str(Path(sys.executable).with_name("nnUNetv2_predict"))
    command = f"-d 999 -c 3d_fullres -p {TINY_PLANS} -f 0 -tr nnUNetTrainerDHC -device cpu -npp 1 -nps 1"
    painted = {}
    for name in ("checkpoint_final.pth", ADJUSTED):
        files = ["-chk", name, "-i", tmp_path / "in", "-o", tmp_path / name]
        subprocess.run([predict, *command.split(), *files], check=True, timeout=300)
        image = SimpleITK.ReadImage(str(tmp_path / name / "scan.nii.gz"))
        painted[name] = np.bincount(SimpleITK.GetArrayFromImage(image).ravel(), minlength=4)
    assert painted[ADJUSTED][1] > painted["checkpoint_final.pth"][1]


def two_cases():
    """Two classes whose border lies at a logit of -1 instead of 0."""
    logit = torch.linspace(-3, 3, 600)
    return [reduce_case(torch.stack((torch.zeros(600), logit)), (logit > -1).long())] * 2


@pytest.mark.parametrize("best", [0, 1])
def test_the_strength_that_is_better_on_other_cases_is_taken(monkeypatch, best):
    fitted = torch.full((2, 2, 1), 0.5, dtype=torch.float64)
    fitted[best] = 0.6
    monkeypatch.setattr(adjust_model, "cross_fitted_dice", lambda cases: fitted)
    cases = two_cases()
    chosen = STRENGTHS[best] * choose_offsets(cases, [1])
    found = _choose(["one"], [cases])
    assert chosen[1] > 0 and torch.equal(found.offsets, chosen[1:])
    assert torch.equal(found.cross_fitted, fitted[best]) and torch.equal(found.after, dice_of_cases(cases, chosen))


def test_offsets_help_if_those_chosen_on_other_cases_do():
    dice = torch.full((2, 1), 0.5)
    assert not Adjustment(["one"], torch.ones(1), ["one"], before=dice, cross_fitted=dice - 0.1, after=dice + 0.2).helps
    assert Adjustment(["one"], torch.ones(1), ["one"], before=dice, cross_fitted=dice + 0.1, after=dice - 0.2).helps


def test_what_nnunet_has_cut_off_is_background():
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    case, = _reduce(logits, torch.tensor([-1, 0, 1]), LabelManager({"background": 0, "one": 1}, None))
    assert confusion(case, torch.zeros(2)).tolist() == [[0, 2], [0, 1]]


def test_ignored_voxels_are_outside_of_no_region():
    labels = LabelManager({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2])
    whole, core = _reduce(torch.ones(2, 4), torch.tensor([0, 1, 2, 3]), labels)
    assert confusion(whole, torch.zeros(2)).tolist() == [[0, 1], [0, 2]]
    assert confusion(core, torch.zeros(2)).tolist() == [[0, 2], [0, 1]]


def test_offsets_that_are_no_better_on_other_cases_are_not_written(dataset, monkeypatch, capsys):
    folder = train(dataset)
    names = ["large", "middle", "small"]
    found = Adjustment(names, torch.ones(3), names[:2], *(torch.full((3, 3), d) for d in (0.5, 0.4, 0.6)))
    monkeypatch.setattr(adjust_model, "_choose", lambda *_: found)
    assert main(COMMAND) == 0
    out = capsys.readouterr().out
    assert "written, without offsets" in out
    assert "Left as they are, because fewer than two validation cases have them: small\n" in out
    assert_same(*(torch.load(folder / name, weights_only=False)["network_weights"]
                  for name in ("checkpoint_final.pth", ADJUSTED)))
