# SPDX-License-Identifier: Apache-2.0
"""Every setting of a recipe that concerns the losses arrives in the objective."""

from __future__ import annotations

import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunet_dhc.nnunet.training.objective import build_objective, class_names
from nnunet_dhc.nnunet.training.recipe import Recipe

LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)


def objective_of(batch_dice: bool = False, **settings):
    return build_objective(Recipe(**settings), LABELS, nn.Identity(), batch_dice, across_ranks=False)


@pytest.mark.parametrize(
    ("setting", "value", "part", "expected"),
    [
        ("supervised_ce", 0.3, "supervised_ce", 0.3),
        ("supervised_dice", 0.4, "supervised_dice", 0.4),
        ("unsupervised_ce", 0.5, "unsupervised_ce", 0.5),
        ("unsupervised_dice", 0.6, "unsupervised_dice", 0.6),
        ("dice_smooth", 0.25, "dice_smooth", 0.25),
        ("unsupervised_on", "all", "unsupervised_on_labeled", True),
        ("unsupervised_on", "unlabeled", "unsupervised_on_labeled", False),
        ("unsupervised_deep_supervision", False, "unsupervised_deep_supervision", False),
        ("confidence_threshold", 0.7, "confidence_threshold", 0.7),
        ("teacher", "mean", "teacher_is_mean", True),
        ("teacher", "peer", "teacher_is_mean", False),
        ("paste_side", 0.5, "pastes_reference", True),
        ("paste_side", 0.0, "pastes_reference", False),
        ("counts_from", "labeled", "counts_from_labeled", True),
        ("counts_from", "unlabeled", "counts_from_labeled", False),
        ("weight_mean_one", True, "weight_mean_one", True),
        ("weight_mean_one", False, "weight_mean_one", False),
        ("weight_minimum", 0.03, "weight_minimum", 0.03),
        ("dice_pooled_over_batch", True, "dice_pooled_over_batch", True),
    ],
)
def test_setting_arrives(setting, value, part, expected):
    assert getattr(objective_of(**{setting: value}).composition, part) == expected


@pytest.mark.parametrize("batch_dice", [True, False])
def test_pooling_follows_the_plans_unless_it_is_set(batch_dice):
    assert objective_of(batch_dice).composition.dice_pooled_over_batch is batch_dice
    assert objective_of(batch_dice, dice_pooled_over_batch=False).composition.dice_pooled_over_batch is False


def test_classes_have_the_names_of_their_labels_in_whatever_order_they_are_listed():
    labels = {"b": 2, "background": 0, "ignore": 3, "a": 1}
    assert class_names(LabelManager(labels, None), {"labels": labels}) == ["background", "a", "b"]


def test_each_network_has_its_weighting_and_its_options():
    objective = objective_of(
        weighting_a="distdw", weighting_a_options={"momentum": 0.25}, weighting_b="crest",
        weighting_b_options={"scale": 3.0}, weighting_mode="released",
    )
    a, b = objective.weightings
    assert [type(a).__name__, a.momentum, a.mode] == ["DistDW", 0.25, "released"]
    assert [type(b).__name__, b.scale, b.mode] == ["CReST", 3.0, "released"]
