# SPDX-License-Identifier: Apache-2.0
"""What a gain is put down to, and which rows count as controls."""

from __future__ import annotations

import shutil
from dataclasses import fields

import pytest
from made_up import build_from, write_json

from nnunet_dhc.nnunet.training.recipe import Recipe
from nnunet_dhc.reporting import attribution
from nnunet_dhc.reporting.protocols import STANDARD

SAME_PLANS = {"planned": "a hash", "configuration": "3d_fullres"}


def test_what_mixed_patches_give_is_told_from_what_unlabeled_scans_add(tree):
    recipe = {"paste_side": 0.67}
    tree.add_stock(epochs=4, shift=3).add_pair("nnUNetTrainerPairSupervised", shift=2, unlabeled=0)
    tree.add_pair("nnUNetTrainerDHC", shift=1, recipe=recipe)
    trainers = ["nnUNetTrainer", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC"]
    found = build_from(tree, *trainers)["attribution"]
    assert found["parts"][0]["what"] == "unlabeled data and mixed patches"
    assert found["sentence"].startswith("The unlabeled data and mixed patches change nnUNetTrainerDHC by ")
    assert any(text.startswith("nnUNetTrainerPairMixed with the same plans and ") for text in found["missing"])
    tree.add_pair("nnUNetTrainerPairMixed", shift=1, unlabeled=0, recipe=recipe)
    found = build_from(tree, *trainers, "nnUNetTrainerPairMixed")["attribution"]
    parts = {part["what"]: (part["row"], part["against"]) for part in found["parts"]}
    assert parts["unlabeled data"] == ("nnUNetTrainerDHC", "nnUNetTrainerPairMixed")
    assert parts["mixed patches of labeled scans"] == ("nnUNetTrainerPairMixed", "nnUNetTrainerPairSupervised")
    assert parts["two networks and class weights"] == ("nnUNetTrainerPairSupervised", "nnUNetTrainer")
    assert not any("nnUNetTrainerPair" in text for text in found["missing"])
    assert "mixed patches of labeled scans change the pair by" in found["sentence"]


def test_a_control_with_another_recipe_is_said(tree):
    tree.add_stock().add_pair("nnUNetTrainerDHC", recipe={"dice_pooled_over_batch": True, "counts_from": "unlabeled"})
    tree.add_pair("nnUNetTrainerPairSupervised", recipe={"dice_pooled_over_batch": None, "counts_from": "labeled"})
    names = "nnUNetTrainer", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC"
    said = build_from(tree, *names)["attribution"]["sentence"]
    assert "against a pair without them whose recipe differs, too (in dice_pooled_over_batch)" in said
    tree.add_pair("nnUNetTrainerPairSupervised", recipe={"dice_pooled_over_batch": True, "counts_from": "labeled"})
    assert "against the same pair without them" in build_from(tree, *names)["attribution"]["sentence"]


def test_a_control_from_before_there_was_abstaining_predicts_otherwise(tree):
    tree.add_stock().add_pair("nnUNetTrainerDHC", recipe={"abstain_below": 0.25, "supervised_ce": 1.0})
    tree.add_pair("nnUNetTrainerPairSupervised", recipe={"supervised_ce": 1.0})
    found = build_from(tree, "nnUNetTrainer", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC")["attribution"]
    assert "recipe differs, too (in abstain_below)" in found["sentence"]


def test_a_recipe_that_follows_the_labels_of_each_fold_is_compared_fold_by_fold(tree):
    follows = [{"weight_exponent_final": 0.0}, {"weight_exponent_final": 0.5}]
    names = "nnUNetTrainer", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC"
    tree.add_stock().add_pair("nnUNetTrainerDHC", recipe=follows)
    tree.add_pair("nnUNetTrainerPairSupervised", recipe=follows)
    assert "against the same pair without them" in build_from(tree, *names)["attribution"]["sentence"]
    tree.add_pair("nnUNetTrainerPairSupervised", recipe=[follows[0], follows[0]])  # the second fold alone differs
    assert "recipe differs, too (in weight_exponent_final)" in build_from(tree, *names)["attribution"]["sentence"]


def test_each_setting_concerns_training_on_labels_or_does_not():
    """A new setting belongs in one of the three lists: a control that differs in one of the first is no control."""
    of_unlabeled_patches = {
        "counts_from", "unsupervised_ce", "unsupervised_dice", "unsupervised_on", "teacher", "teacher_momentum",
        "unsupervised_deep_supervision", "confidence_threshold", "lambda_max", "ramp_length", "ramp_lag_epochs",
        "unlabeled_schedule", "unlabeled_minimum_rate", "paste_side",
    }
    on_labels, of_the_run = set(attribution.SETTINGS_ON_LABELS), set(attribution.SETTINGS_OF_THE_RUN)
    assert on_labels.isdisjoint(of_unlabeled_patches | of_the_run) and of_the_run.isdisjoint(of_unlabeled_patches)
    assert on_labels | of_unlabeled_patches | of_the_run == {setting.name for setting in fields(Recipe)}


RECIPE = {"paste_side": 0.67, "lambda_max": 0.1, "supervised_ce": 1.0, "counts_from": "unlabeled", "num_epochs": 4}

OF_SUPERVISED = {**RECIPE, "counts_from": "labeled"}


def _made_up_row(name, role, recipe=None, **facts):
    return {"name": name, "trainer": None, "role": role, "facts": {"steps": 40, "seconds": 40.0, **facts},
            "runs": [{"fold": "0", "recipe": recipe}], **SAME_PLANS}


def _attribution_of(*rows, p=0.001):
    def contrast(*_):
        return {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 20, "p": p}

    return attribution.attribution(rows, contrast, STANDARD.metrics[0], None)


@pytest.mark.parametrize(("of_mixed", "of_supervised", "said"), [
    ({"num_epochs": 8}, {}, ["the same pair without them", "scans change the pair by", "class weights change stock"]),
    ({"lambda_max": 0.2}, {"lambda_max": 0.3}, [
        "a pair without them whose recipe differs, too (in lambda_max)", "scans change the pair by",
        "class weights change stock"]),
    ({}, {"supervised_ce": 0.5}, [
        "the same pair without them", "scans change a pair whose recipe differs, too (in supervised_ce), by",
        "class weights (of a pair that differs from dhc in supervised_ce) change stock"]),
    ({"supervised_ce": 0.5}, {"supervised_ce": 0.5}, [
        "a pair without them whose recipe differs, too (in supervised_ce)", "scans change the pair by",
        "class weights (of a pair that differs from dhc in supervised_ce) change stock"]),
])
def test_each_part_names_the_settings_in_which_its_pairs_differ(of_mixed, of_supervised, said):
    found = _attribution_of(
        _made_up_row("stock", "stock"), _made_up_row("dhc", "semi-supervised", RECIPE),
        _made_up_row("mixed", "pair mixed", {**RECIPE, **of_mixed}),
        _made_up_row("supervised", "pair supervised", {**OF_SUPERVISED, **of_supervised}))
    assert [text for text in said if text not in found["sentence"]] == []


def test_missing_controls_are_named(tree):
    tree.add_stock(epochs=2).add_pair("nnUNetTrainerDHC")
    found = build_from(tree, "nnUNetTrainer", "nnUNetTrainerDHC")["attribution"]
    assert [text.split(" ")[0] for text in found["missing"]] == ["nnUNetTrainerPairSupervised", "stock", "stock"]


def test_trainers_of_nnunet_count_as_stock():
    names = ["", "NoMirroring", "_8epochs", "_1epoch", "_2000epochs_NoMirroring", "_onlyMirror01", "PairSupervised"]
    roles = [attribution.role(f"nnUNetTrainer{name}", 0) for name in names]
    assert roles == ["stock"] * 5 + ["other", "pair supervised"]


@pytest.mark.parametrize(("also", "part"), [
    ([_made_up_row("mixed", "pair mixed", RECIPE)], "mixed patches"), ([], "the unlabeled data"),
])
def test_a_missing_pair_on_labels_alone_is_named_beside_one_with_mixed_patches_too(also, part):
    found = _attribution_of(_made_up_row("stock", "stock"), _made_up_row("dhc", "semi-supervised", RECIPE), *also)
    assert found["missing"][0] == ("nnUNetTrainerPairSupervised with the same plans and number of steps: without it, "
                                   f"the part of {part} can't be told from that of two networks")
    assert any(text.startswith("nnUNetTrainerPairMixed") for text in found["missing"]) == (not also)


def test_a_control_with_the_same_recipe_but_fewer_steps_is_not_taken_before_one_with_as_many():
    rows = [_made_up_row("dhc", "semi-supervised", RECIPE), _made_up_row("short", "pair mixed", RECIPE, steps=20),
            _made_up_row("other", "pair mixed", {**RECIPE, "lambda_max": 0.2})]
    found = _attribution_of(*rows)
    assert [(part["against"], part["differing_settings"]) for part in found["parts"]] == [("other", ["lambda_max"])]
    alike = _made_up_row("alike", "pair mixed", RECIPE, steps=41)  # and of two with as many, the one with the recipe
    assert [part["against"] for part in _attribution_of(*rows, alike)["parts"]] == ["alike"]


@pytest.mark.parametrize(("trainer", "control"), [
    ("nnUNetTrainerDHC", "PairMixed"), ("nnUNetTrainerDHC_50epochs", "PairMixed"), ("nnUNetTrainerCPS", "Supervised"),
])
def test_names_alone_tell_which_folders_of_predictions_are_of_mixed_patches(trainer, control):
    rows = [_made_up_row(trainer, "semi-supervised"), _made_up_row("Supervised", "pair supervised"),
            _made_up_row("PairMixed", "pair mixed")]
    parts = {part["what"]: part["against"] for part in _attribution_of(*rows)["parts"]}
    assert parts["unlabeled data"] == control
    assert ("mixed patches of labeled scans" in parts) == (control == "PairMixed")


def test_an_upper_bound_is_no_control(tree):
    tree.add_stock().add_stock("nnUNetTrainer_16epochs", epochs=16).add_pair("nnUNetTrainerDHC")
    tree.add_pair("nnUNetTrainerPairSupervised", labeled=[*tree.labeled, "another"], unlabeled=0)
    trainers = ["nnUNetTrainer", "nnUNetTrainer_16epochs", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC"]
    found = build_from(tree, *trainers, allow_different=True)
    assert "unlabeled data" not in [part["what"] for part in found["attribution"]["parts"]]
    assert found["attribution"]["missing"][0].startswith("nnUNetTrainerPairSupervised with the same plans and ")


def test_a_training_with_other_plans_is_no_control(tree):
    """Plans that differ in their name and in our settings alone are the same plans."""
    tree.add_stock().add_pair("nnUNetTrainerPairSupervised", shift=3, unlabeled=0).add_pair("nnUNetTrainerDHC")

    def add_plans(trainer, name, **planned):
        folder = tree.model(trainer).with_name(f"{trainer}__{name}__3d_fullres")
        shutil.copytree(tree.model(trainer), folder)
        write_json(folder / "plans.json", {"plans_name": name, **planned})

    def parts(*more):
        rows = "nnUNetTrainer", "nnUNetTrainerPairSupervised", "half=nnUNetTrainerDHC@nnUNetPlansHalf", *more
        found = build_from(tree, *rows)["attribution"]
        return {part["what"]: part["against"] for part in found["parts"]}, found["missing"]

    add_plans("nnUNetTrainerDHC", "nnUNetPlansHalf", configurations={"3d_fullres": {"batch_size": 1}})
    of_parts, missing = parts()
    assert of_parts == {}
    assert missing[0].startswith("nnUNetTrainerPairSupervised with the same plans")
    add_plans("nnUNetTrainerPairSupervised", "nnUNetPlansControl", nnunet_dhc={"supervised_ce": 1},
              configurations={"3d_fullres": {"batch_size": 1}})
    of_parts, _ = parts("control=nnUNetTrainerPairSupervised@nnUNetPlansControl")
    assert of_parts == {"unlabeled data": "control"}


def test_stock_with_other_labels_is_no_control():
    for labeled, found in ((4, True), (20, False)):
        rows = [_made_up_row("stock", "stock", labeled_cases=labeled),
                _made_up_row("pair", "semi-supervised", labeled_cases=4)]
        parts = _attribution_of(*rows)["parts"]
        assert ("everything together, at equal steps" in [part["what"] for part in parts]) == found


@pytest.mark.parametrize(("steps", "seconds", "found"), [
    (42, 10.0, ["everything together, at equal steps"]), (44, 10.0, []),
    (10, 46.0, ["everything together, at equal wall-clock"]), (10, 47.0, []),
])
def test_steps_are_equal_within_5_and_times_within_15_percent(steps, seconds, found):
    rows = [_made_up_row("stock", "stock", steps=steps, seconds=seconds), _made_up_row("pair", "semi-supervised")]
    assert [part["what"] for part in _attribution_of(*rows)["parts"]] == found


def test_the_parts_of_a_gain_are_corrected_together():
    rows = [_made_up_row("stock", "stock"), _made_up_row("control", "pair supervised"),
            _made_up_row("pair", "semi-supervised")]
    judged = _attribution_of(*rows, p=0.019)
    parts = {part["what"]: part for part in judged["parts"]}
    assert parts["unlabeled data"]["p_holm"] == pytest.approx(3 * 0.019)  # three pairs of rows
    assert {part["claim"] for part in parts.values()} == {"no claim"}
    assert judged["sentence"].count("(no claim)") == 3
