# SPDX-License-Identifier: Apache-2.0
"""Settings: validated, overridden by the plans, written by configure."""

from __future__ import annotations

import json
from copy import deepcopy

import numpy as np
import pytest
from tiny_data import TINY_PLANS

from nnunet_dhc.cli.main import main
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.training.recipe import Recipe, overridden, recipe_from_plans, settings_help
from nnunet_dhc.nnunet.training.unlabeled_schedule import lambda_and_rate


def test_plans_override_the_recipe_of_the_class():
    recipe = recipe_from_plans(Recipe(lambda_max=0.3, weighting_a="cld"), {"nnunet_dhc": {"lambda_max": 0.2}})
    assert recipe.lambda_max == 0.2 and recipe.weighting_a == "cld"
    assert recipe_from_plans(recipe, {}) == recipe


def test_exponent_of_the_weights_by_epoch():
    def by_epoch(**settings):
        return [Recipe(**settings).weight_exponents_at(epoch, 3) for epoch in range(3)]

    assert by_epoch(weight_exponent=0.5) == [(0.5, 0.5)] * 3
    assert by_epoch(weight_exponent_final=0.0) == [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0)]
    assert by_epoch(weight_exponent_final=0.5, background_exponent_final=0.0) == [(1.0, 1.0), (0.5, 0.75), (0.0, 0.5)]
    assert by_epoch(background_exponent_final=0.0) == [(1.0, 1.0), (0.5, 1.0), (0.0, 1.0)]
    assert Recipe(weight_exponent_final=0.0).weight_exponents_at(0, 1) == (1.0, 1.0)


def test_final_exponent_follows_the_labels_where_it_is_auto():
    def final(counts, setting="auto"):
        return Recipe(weight_exponent_final=setting).for_labels(counts).weight_exponent_final

    assert final([9_000_000, 424, 1]) == 0.5
    assert final([242_517, 7_098, 6_599]) == 0  # however frequent the background is
    assert final([900, 10, 1]) == 0 and final([900, 11, 1]) == 0.5
    assert final([900, 11, 0]) == final([900, 11]) == final([900, 0]) == 0  # a class without labels is not rare
    assert final([900, 424, 1], None) is None and final([900, 424, 1], 0.25) == 0.25


def test_background_weight_is_given_where_a_structure_is_rare_and_it_is_auto():
    def background(counts, setting="auto"):
        recipe = Recipe(background_weight=setting)
        assert recipe.left_to_labels == (("background_weight",) if setting == "auto" else ())
        return recipe.for_labels(counts).background_weight

    assert background([900, 11, 1]) == 0.02 and background([900, 10, 1]) is None
    assert background([900, 11, 1], None) is None and background([900, 10, 1], 0.5) == 0.5


def test_a_run_that_goes_on_keeps_the_exponent_that_it_began_with():
    auto, equal_counts = Recipe(weight_exponent_final="auto"), [900, 11, 10]
    for before in (0.5, None):
        assert auto.for_labels(equal_counts, {"weight_exponent_final": before}).weight_exponent_final == before
    assert auto.for_labels(equal_counts, {}).weight_exponent_final == 0  # a checkpoint older than the setting
    assert auto.for_labels(equal_counts, {"background_weight": 0.02}) == Recipe(weight_exponent_final=0.0)
    assert Recipe(weight_exponent_final=0.2).for_labels(equal_counts, {"weight_exponent_final": 0.5}) == Recipe(
        weight_exponent_final=0.2
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"lambda_max": -1},
        {"lambda_max": "much"},
        {"lambda_max": True},
        {"weighting_a": "dhc"},
        {"num_epochs": 0},
        {"num_epochs": 1.5},
        {"unsupervised_deep_supervision": 1},
        {"weighting_a_options": [1]},
        {"mirror_axes": [3]},
        {"mirror_axes": [True, 1.0]},
        {"weight_exponent_final": "automatic"},
        {"confidence_threshold": 1.5},
        {"teacher_momentum": 1},
        {"lambda_max": float("nan")},
    ],
)
def test_bad_value_names_setting_and_range(setting):
    with pytest.raises(UserError, match=next(iter(setting))) as error:
        overridden(Recipe(), setting, "somewhere.json")
    assert "somewhere.json" in str(error.value) and "must be" in str(error.value)


@pytest.mark.parametrize("also", [
    {"unlabeled_schedule": "ramp"}, {"lambda_max": 0}, {"unsupervised_ce": 0, "unsupervised_dice": 0},
])
def test_some_loss_must_be_left_in_every_step(also):
    nothing = {"supervised_ce": 0.0, "supervised_dice": 0}
    with pytest.raises(UserError, match=r"somewhere.json: settings supervised_ce and supervised_dice .* both 0"):
        overridden(Recipe(), {**nothing, **also}, "somewhere.json")
    assert overridden(Recipe(), also, "somewhere.json").has_supervised_term
    always = {"unlabeled_schedule": "ramp", "unlabeled_minimum_rate": 1}
    assert not overridden(Recipe(), {**nothing, **always}, "somewhere.json").has_supervised_term


def test_averaged_weights_need_mixed_patches():
    with pytest.raises(UserError, match=r"somewhere.json: setting teacher_momentum .* set paste_side too"):
        overridden(Recipe(), {"teacher_momentum": 0.9}, "somewhere.json")
    assert overridden(Recipe(paste_side=0.5), {"teacher_momentum": 0.9}, "somewhere.json").teacher_momentum == 0.9


def test_unknown_setting_lists_the_valid_ones():
    with pytest.raises(UserError, match=r"unknown setting lambda .*lambda_max"):
        overridden(Recipe(), {"lambda": 1}, "x.json")


def test_every_setting_has_a_help_text():
    assert all(meaning and expected for _, _, expected, meaning in settings_help(Recipe()))


@pytest.mark.parametrize(
    ("given", "value"), [([], 1.0), (["nnUNetTrainerCPS"], 0.1), (["nnUNetTrainerCPS_5epochs"], 0.1)]
)
def test_list_shows_the_values_of_a_trainer(capsys, given, value):
    assert main(["configure", "--list", *given]) == 0
    assert f"lambda_max = {value}\n" in capsys.readouterr().out


def test_list_of_an_unknown_trainer_says_where_the_names_are(capsys):
    assert main(["configure", "--list", "nnUNetTrainer"]) != 0
    assert "nnunet_dhc methods" in capsys.readouterr().err


NO_ARCHITECTURE = {"network_class_name": "x.Y", "arch_kwargs": {}, "_kw_requires_import": []}


def test_configure_writes_plans_under_a_new_identifier(tiny_dataset, capsys):
    arguments = ["configure", "-d", "999", "-p", "nnUNetPlansTiny", "-o", "Mine"]
    assert main([*arguments, "--set", "lambda_max=0.2", "--set", "weighting_b=simis"]) == 0
    written = json.loads((tiny_dataset.preprocessed / "Mine.json").read_text())
    assert written["plans_name"] == "Mine"
    assert written["nnunet_dhc"] == {"lambda_max": 0.2, "weighting_b": "simis"}
    original = tiny_dataset.plans_content()
    assert written["configurations"] == original["configurations"]

    assert main([*arguments, "--set", "lambda_max=0.3"]) == 2  # never over an existing file
    assert "exists" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--set", "lambda_max=0.3"]) == 0


def test_architecture_of_b_in_one_configuration_leaves_that_of_another(tiny_dataset):
    plans = tiny_dataset.plans_content()
    plans["configurations"]["3d_lowres"] = plans["configurations"]["3d_fullres"]
    for name, width in ((TINY_PLANS, 1), ("Wide", 2)):
        changed = deepcopy({**plans, "plans_name": name})
        for configuration in ("3d_fullres", "3d_lowres"):
            arguments = changed["configurations"][configuration]["architecture"]["arch_kwargs"]
            arguments["features_per_stage"] = [width * features for features in arguments["features_per_stage"]]
        (tiny_dataset.preprocessed / f"{name}.json").write_text(json.dumps(changed))
    arguments = ["configure", "-d", "999", "--architecture-b-from", "Wide"]
    assert main([*arguments, "-p", TINY_PLANS, "-o", "One", "-c", "3d_fullres"]) == 0
    assert main([*arguments, "-p", "One", "-o", "Both", "-c", "3d_lowres"]) == 0
    of_b = json.loads((tiny_dataset.preprocessed / "Both.json").read_text())["nnunet_dhc"]["architecture_b"]
    assert sorted(of_b) == ["3d_fullres", "3d_lowres"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "Mine", "--set", "lamda_max=1"], "unknown setting lamda_max"),
        (["-o", "Mine", "--set", "lambda_max"], "name=value"),
        (["-o", "nnUNetPlansTiny", "--set", "lambda_max=1"], "another identifier"),
        (["-o", "Mine", "--architecture-b-from", "Nowhere"], "Nowhere.json does not exist"),
        (["-o", "a/b", "--set", "lambda_max=1"], "-o a/b: the identifier"),
        (["-o", "a__b", "--set", "lambda_max=1"], "-o a__b: the identifier"),
        (["-o", "Mine", "-d", "998"], "no dataset 998"),
        (["-o", "Mine", "-d", "X501"], "no dataset X501"),
        (["-o", "Mine", "-p", "Damaged"], "Damaged.json can't be read"),
        (["-o", "Mine", "-p", "dataset"], "dataset.json is no plans file"),
        (["-o", "Mine", "-tr", "nnUNetTrainer"], "-tr nnUNetTrainer: no trainer of this package"),
        (["-o", "Mine", "--set", 'weighting_a_options={"momentum": 0.95}'], "for nnUNetTrainerDHC (-tr names another"),
        (["-o", "Mine", "-tr", "nnUNetTrainerCPS_5epochs", "--set", "num_epochs=3"], "give -tr nnUNetTrainerCPS\n"),
        (["-o", "Mine", "-tr", "nnUNetTrainerCPS", "--set", "teacher_momentum=0.9"], "for nnUNetTrainerCPS"),
        (
            ["-o", "Mine", "--set", f"architecture_b={json.dumps({'3d_fullres': NO_ARCHITECTURE})}"],
            "Mine.json: architecture_b of 3d_fullres can't be built (ImportError: ",
        ),
        (["-o", "Mine", "-c", "3d_fullres", "--set", "lambda_max=0.2"], "settings hold for all configurations"),
        (["-o", "Mine", "--set", "ramp_lag_epochs=0.5"], "ramp_lag_epochs = 0.5 of nnunet_dhc must be an integer from"),
    ],
)
def test_configure_refuses_in_one_line(tiny_dataset, capsys, arguments, message):
    (tiny_dataset.preprocessed / "Damaged.json").write_text('{"plans_name": ')
    assert main(["configure", "-d", "999", "-p", "nnUNetPlansTiny", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tiny_dataset.preprocessed / "Mine.json").exists()


def test_configure_without_the_environment(tiny_dataset, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert main(["configure", "-d", "999", "-o", "Mine"]) == 2
    assert "nnUNet_preprocessed is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "setting"),
    [
        ([], "teacher_momentum=0.99"),  # needs mixed patches, which the trainer has and the base recipe hasn't
        (["-tr", "nnUNetTrainerSimiS"], 'weighting_a_options={"momentum": 0.95}'),
        (["-tr", "nnUNetTrainerCReST_5epochs"], 'weighting_b_options={"momentum": 0.95}'),
    ],
)
def test_configure_checks_with_the_recipe_of_the_trainer(tiny_dataset, trainer, setting):
    assert main(["configure", "-d", "999", "-o", "Mine", *trainer, "--set", setting]) == 0
    written = json.loads((tiny_dataset.preprocessed / "Mine.json").read_text())
    assert list(written["nnunet_dhc"]) == [setting.partition("=")[0]]


def test_lambda_lags_behind_as_in_the_released_code():
    recipe = Recipe(lambda_max=0.1, ramp_lag_epochs=1)
    found = [lambda_and_rate(recipe, epoch, 4, 10)[0] for epoch in range(4)]
    assert found == pytest.approx([0.1 * np.exp(-5 * (1 - progress) ** 2) for progress in (0, 0, 0.25, 0.5)])


def test_unlabeled_patches_are_drawn_no_less_often_than_the_minimum():
    recipe = Recipe(unlabeled_schedule="ramp", unlabeled_minimum_rate=0.25)
    assert [lambda_and_rate(recipe, epoch, 4, 100)[1] for epoch in range(4)] == [0.25, 0.25, 0.29, 0.74]


@pytest.mark.parametrize("settings", [[], "lambda_max=1", 3])
def test_settings_in_plans_are_an_object(settings):
    with pytest.raises(UserError, match='plans P: "nnunet_dhc" must be a JSON object of settings'):
        recipe_from_plans(Recipe(), {"plans_name": "P", "nnunet_dhc": settings})


@pytest.mark.parametrize("architecture", [5, {"2d": 5}, {"2d": {"arch_kwargs": {}}}])
def test_architectures_are_whole(architecture):
    with pytest.raises(UserError, match="must be a JSON object with network_class_name, arch_kwargs"):
        Recipe(architecture_b=architecture)


def test_outputs_that_nothing_reads():
    assert Recipe().reads_all_outputs and Recipe(unsupervised_deep_supervision=False).reads_all_outputs
    unsupervised = {"supervised_ce": 0, "supervised_dice": 0}
    assert Recipe(**unsupervised).reads_all_outputs
    assert not Recipe(**unsupervised, unsupervised_deep_supervision=False).reads_all_outputs
