# SPDX-License-Identifier: Apache-2.0
"""From nnU-Net's labels, loss and plans, and a recipe, to the co-training objective."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunet_dhc.core import CLD, CReST, DiffDW, DistDW, SimiS, Unweighted
from nnunet_dhc.core.class_weighting import ClassWeighting
from nnunet_dhc.core.co_training import CoTrainingObjective, LossComposition
from nnunet_dhc.core.label_spaces import ClassLabels, LabelSpace, RegionLabels
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.training.recipe import Recipe

_WEIGHTINGS: dict[str, type[ClassWeighting]] = {
    "none": Unweighted,
    "distdw": DistDW,
    "diffdw": DiffDW,
    "crest": CReST,
    "simis": SimiS,
    "cld": CLD,
}


def label_space(label_manager: LabelManager) -> LabelSpace:
    """Softmax classes or sigmoid regions, with nnU-Net's ignore label."""
    if label_manager.has_regions:
        return RegionLabels(len(label_manager.foreground_regions), has_ignore_channel=label_manager.has_ignore_label)
    return ClassLabels(label_manager.num_segmentation_heads, ignore_label=label_manager.ignore_label)


def make_weighting(name: str, num_classes: int, mode: str, options: Mapping[str, Any]) -> ClassWeighting:
    """Class weighting by its name in the recipe.

    Raises:
        UserError: ``options`` has an argument that this weighting does not know, or a value outside its range.
    """
    cls = _WEIGHTINGS[name]
    known = [p for p in inspect.signature(cls.__init__).parameters if p not in ("self", "num_classes", "mode")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(
            f"class weighting {name} has no option {', '.join(unknown)}; valid are {', '.join(known) or 'none'}. A "
            "recipe's options stay when its weighting is replaced: set weighting_a_options or weighting_b_options, too "
            "({} for none)"
        )
    try:
        return cls(num_classes) if cls is Unweighted else cls(num_classes, mode=mode, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"class weighting {name}: {error}; correct its options with `nnunet_dhc configure`") from error


def output_factors(stock_loss: nn.Module) -> tuple[float, ...]:
    """nnU-Net's factor of every deep-supervision output, (1.0,) without deep supervision."""
    return stock_loss.weight_factors if isinstance(stock_loss, DeepSupervisionWrapper) else (1.0,)


def build_objective(
    recipe: Recipe, label_manager: LabelManager, stock_loss: nn.Module, batch_dice: bool, across_ranks: bool
) -> CoTrainingObjective:
    """The objective that a recipe describes."""
    labels = label_space(label_manager)
    pooled = batch_dice if recipe.dice_pooled_over_batch is None else recipe.dice_pooled_over_batch
    composition = LossComposition(
        supervised_ce=recipe.supervised_ce,
        supervised_dice=recipe.supervised_dice,
        unsupervised_ce=recipe.unsupervised_ce,
        unsupervised_dice=recipe.unsupervised_dice,
        dice_smooth=recipe.dice_smooth,
        dice_pooled_over_batch=pooled,
        unsupervised_on_labeled=recipe.unsupervised_on == "all",
        unsupervised_deep_supervision=recipe.unsupervised_deep_supervision,
        confidence_threshold=recipe.confidence_threshold,
        teacher_is_mean=recipe.teacher == "mean",
        pastes_reference=recipe.paste_side > 0,
        counts_from_labeled=recipe.counts_from == "labeled",
        weight_mean_one=recipe.weight_mean_one,
        weight_minimum=recipe.weight_minimum,
    )
    weighting_a, weighting_b = (
        make_weighting(name, labels.num_classes, recipe.weighting_mode, options)
        for name, options in (
            (recipe.weighting_a, recipe.weighting_a_options),
            (recipe.weighting_b, recipe.weighting_b_options),
        )
    )
    return CoTrainingObjective(labels, weighting_a, weighting_b, composition, output_factors(stock_loss), across_ranks)


def class_names(label_manager: LabelManager, dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the k classes in the order of the class weights; with regions index 0 is "no region"."""
    names = list(dataset_json["labels"])
    values = dataset_json["labels"].values()
    if label_manager.has_regions:
        by_region = {tuple(v) if isinstance(v, (list, tuple)) else v: n for v, n in zip(values, names, strict=True)}
        return ["no region", *(by_region.get(r, str(r)) for r in label_manager.foreground_regions)]
    # nnU-Net takes [1] and "1" for 1, too
    by_value = {int(v[0] if isinstance(v, (list, tuple)) else v): n for v, n in zip(values, names, strict=True)}
    return [by_value[value] for value in label_manager.all_labels]
