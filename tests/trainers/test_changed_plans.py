# SPDX-License-Identifier: Apache-2.0
"""``--c`` after the plans were edited: what changed is named, and what can't go on is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tiny_training import make_trainer, resumed

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.reliability.changed_plans import changed_plans
from nnunet_dhc.nnunet.training.recipe import Recipe

FOR_LABELS = Recipe.for_labels


@pytest.fixture
def started(tiny_dataset):
    trainer = make_trainer(tiny_dataset)
    trainer.on_train_start()
    return trainer


def test_another_setting_is_told(tiny_dataset, started, capsys):
    resumed(tiny_dataset, started, lambda_max=0.3)
    assert "the plans have changed since this run started (nnunet_dhc.lambda_max)" in capsys.readouterr().out


@pytest.mark.parametrize("before", [None, 0.9])
def test_what_the_labels_decide_is_decided_where_the_plans_say_so_now(tiny_dataset, before):
    started = make_trainer(tiny_dataset, weight_exponent_final=before)
    started.on_train_start()
    again = resumed(tiny_dataset, started, weight_exponent_final="auto")
    again.on_train_start()
    decided = Recipe(weight_exponent_final="auto").for_labels(again.data.labeled_counts)
    assert again.recipe.weight_exponent_final == decided.weight_exponent_final


def test_a_number_in_the_plans_does_not_outlive_them(tiny_dataset):
    exponents, trainer = [], make_trainer(tiny_dataset, weight_exponent_final="auto")
    for setting in ("auto", 0.9, "auto"):
        if exponents:
            trainer = resumed(tiny_dataset, trainer, weight_exponent_final=setting)
        trainer.on_train_start()
        trainer._save([trainer.files.path("checkpoint_latest.pth")], finished_epochs=0)
        exponents.append(trainer.recipe.weight_exponent_final)
    assert exponents[1] == 0.9 and exponents[0] == exponents[2] != 0.9


def test_what_the_labels_have_decided_stays_when_they_change(tiny_dataset, monkeypatch):
    settings = {"weight_exponent_final": "auto", "background_weight": "auto"}
    started = make_trainer(tiny_dataset, **settings)
    started.on_train_start()
    monkeypatch.setattr(Recipe, "for_labels", lambda recipe, counts, decided_before=None: FOR_LABELS(
        recipe, [1000, 500, 500, 500], decided_before))
    again = resumed(tiny_dataset, started, **settings)
    again.on_train_start()
    assert again.recipe == started.recipe
    assert (again.recipe.weight_exponent_final, again.recipe.background_weight) == (0.5, 0.02)
    of_labels_now = FOR_LABELS(Recipe(**settings), [1000, 500, 500, 500])
    assert (of_labels_now.weight_exponent_final, of_labels_now.background_weight) == (0, None)


def test_a_run_that_began_before_there_was_a_background_weight_goes_on_without(tiny_dataset):
    settings = {"weight_exponent_final": "auto", "background_weight": "auto"}
    started = make_trainer(tiny_dataset, **settings)
    started.on_train_start()
    path = started.files.path("checkpoint_latest.pth")
    checkpoint = torch.load(path, weights_only=False)
    ours = checkpoint["nnunet_dhc"]
    assert ours.pop("decided_by_labels") == {"weight_exponent_final": 0.5, "background_weight": 0.02}
    del ours["averaged_pair"], ours["class_names"]  # the first checkpoints had neither
    del ours["recipe"]["background_weight"]
    ours |= {"labels_decide_exponent": True, "recipe": {**ours["recipe"], "weight_exponent_final": 0.25}}
    torch.save(checkpoint, path)
    again = resumed(tiny_dataset, started, **settings)
    again.on_train_start()
    assert (again.recipe.weight_exponent_final, again.recipe.background_weight) == (0.25, None)


def test_preprocessed_cases_that_are_gone_are_one_line(tiny_dataset, started):
    configuration = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"
    assert started.preprocessed_dataset_folder == str(configuration)
    configuration.rename(configuration.with_name("elsewhere"))
    with pytest.raises(UserError, match=r"nnUNetPlans_3d_fullres.*nnUNetv2_preprocess"):
        resumed(tiny_dataset, started)


def test_same_plans_are_not_mentioned(tiny_dataset, started, capsys):
    resumed(tiny_dataset, started).on_train_start()
    printed = capsys.readouterr().out
    assert "plans have changed" not in printed and "recipe of" not in printed


def test_another_recipe_of_the_trainer_is_told(tiny_dataset, started, capsys, monkeypatch):
    trainer = type(started)
    monkeypatch.setattr(trainer, "recipe", replace(trainer.recipe, dice_pooled_over_batch=False))
    resumed(tiny_dataset, started).on_train_start()
    printed = capsys.readouterr().out
    assert f"the recipe of {trainer.__name__} has changed since this run started" in printed
    assert "(dice_pooled_over_batch: true -> false)" in printed


def test_a_setting_taken_out_of_the_plans_is_told_once(tiny_dataset, capsys):
    started = make_trainer(tiny_dataset, lambda_max=0.3)
    started.on_train_start()
    resumed(tiny_dataset, started).on_train_start()
    printed = capsys.readouterr().out
    assert "the plans have changed since this run started (nnunet_dhc.lambda_max)" in printed
    assert "recipe of" not in printed


def test_another_network_is_refused(tiny_dataset, started):
    path = tiny_dataset.preprocessed / f"{tiny_dataset.tiny_plans}.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [6, 8, 8]
    path.write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"checkpoint_latest.pth does not fit the plans .*features_per_stage.*restore"):
        resumed(tiny_dataset, started)


def test_another_structure_in_dataset_json_is_refused(tiny_dataset, started):
    for path in (tiny_dataset.preprocessed / "dataset.json", tiny_dataset.raw / "dataset.json"):
        content = json.loads(path.read_text())
        content["labels"]["new organ"] = len(content["labels"])
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"_latest.pth does not fit dataset.json, .* \(labels.new organ\).*--c"):
        resumed(tiny_dataset, started)


@pytest.mark.parametrize("weighting", ["diffdw", "none", "crest"])
def test_another_class_weighting_is_refused(tiny_dataset, started, weighting):
    """Those that never update, or whose state looks alike, would keep the old weights."""
    message = rf"can't be taken over \(weighting_b was distdw and is {weighting}\).*train without --c"
    with pytest.raises(UserError, match=message):
        resumed(tiny_dataset, started, weighting_b=weighting).on_train_start()


def test_other_configurations_do_not_matter():
    before = {"configurations": {"2d": {"batch_size": 2}, "3d": {"patch_size": (1, 2)}}}
    now = {"configurations": {"2d": {"batch_size": 9}, "3d": {"patch_size": [1, 2]}}, "continue_training": True}
    assert changed_plans(before, now, "3d") == []
    assert changed_plans(before, now, "2d") == ["2d.batch_size"]
