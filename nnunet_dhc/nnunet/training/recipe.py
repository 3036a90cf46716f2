# SPDX-License-Identifier: Apache-2.0
"""Every setting of a pair trainer, its default, its range, and how the plans override it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from nnunet_dhc.core.co_training import LEAST_REGION_WEIGHT
from nnunet_dhc.core.votes import LEARNED
from nnunet_dhc.earlier_recipes import completed
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.plans_settings import CONFIGURE, PLANS_KEY, settings_in

WEIGHTINGS = ("none", "distdw", "diffdw", "crest", "simis", "cld")
AUTO = "auto"
ARCHITECTURE_KEYS = ("network_class_name", "arch_kwargs", "_kw_requires_import")
# What auto means where some structure is rare, and how much rarer than another it must be. Measured with 424 (abdominal
# CT) and 1.1 (hippocampus) between the most frequent and the rarest: docs/results.
EXPONENT_FOR_RARE, BACKGROUND_FOR_RARE, RARE_RATIO = 0.5, 0.02, 10
_SOMETHING_RARE = f"if a structure has less than 1/{RARE_RATIO} of the fold's labeled voxels of another one"


def _choice(*values: str):
    return lambda value: value in values, "one of " + ", ".join(values)


def _between(low: float, high: float):
    return (
        lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high,
        f"a number from {low:g} to {high:g}",
    )


def _integer(low: int, high: int | None = None):
    return (
        lambda value: isinstance(value, int)
        and not isinstance(value, bool)
        and value >= low
        and (high is None or value <= high),
        f"an integer >= {low}" if high is None else f"an integer from {low} to {high}",
    )


def _or_auto(check: tuple):
    valid, expected = check
    return lambda value: value == AUTO or valid(value), f"{AUTO}, {expected}"


def _or_null(check: tuple):
    valid, expected = check
    return lambda value: value is None or valid(value), f"{expected}, or null"


_BOOLEAN = (lambda value: isinstance(value, bool), "true or false")
_MAPPING = (lambda value: isinstance(value, Mapping), "a JSON object")
_ARCHITECTURES = (
    lambda value: isinstance(value, Mapping)
    and all(isinstance(entry, Mapping) and entry.keys() >= set(ARCHITECTURE_KEYS) for entry in value.values()),
    "a JSON object with " + ", ".join(ARCHITECTURE_KEYS) + " for each configuration that it names",
)


def _setting(default: Any, check: tuple, help_text: str) -> Any:
    metadata = {"check": check[0], "expected": check[1], "help": help_text}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """Settings of a pair trainer; a trainer class sets them, ``plans["nnunet_dhc"]`` overrides them.

    The objective of a step is S_A + S_B + lambda * (U_A + U_B) with
    S = supervised_ce * CE_w + supervised_dice * Dice_w on labeled patches against the reference, and
    U = unsupervised_ce * CE_w + unsupervised_dice * Dice_w against the teacher's pseudo label.
    """

    weighting_a: str = _setting("diffdw", _choice(*WEIGHTINGS), "class weighting of sub-network A")
    weighting_b: str = _setting("distdw", _choice(*WEIGHTINGS), "class weighting of sub-network B")
    weighting_mode: str = _setting(
        "robust",
        _choice("robust", "released"),
        "numerical policy of the weightings: guarded, or as in the released code",
    )
    weighting_a_options: dict = _setting({}, _MAPPING, 'further arguments of A\'s weighting, for example {"tau": 50}')
    weighting_b_options: dict = _setting({}, _MAPPING, "further arguments of B's weighting")
    weight_exponent: float = _setting(
        1.0, _between(0, 1), "exponent of the class weights, relative to the largest; 0 makes all equal"
    )
    weight_exponent_final: float | str | None = _setting(
        None,
        _or_null(_or_auto(_between(0, 1))),
        "exponent in the last epoch, approached evenly from the first one on; null = weight_exponent; auto = "
        f"{EXPONENT_FOR_RARE} {_SOMETHING_RARE}, otherwise 0",
    )
    background_exponent_final: float | None = _setting(
        None,
        _or_null(_between(0, 1)),
        "weight_exponent_final for the background's weight alone, 0 = the largest weight; null = as the other classes; "
        "nothing with regions",
    )
    background_weight: float | str | None = _setting(
        None,
        _or_null(_or_auto(_between(0, 1))),
        "the background's weight before the exponent, relative to the largest one, in both sub-networks; null = what "
        f"each weighting says; auto = {BACKGROUND_FOR_RARE} {_SOMETHING_RARE}, otherwise null; nothing with regions",
    )
    weight_mean_one: bool = _setting(
        False,
        _BOOLEAN,
        "scale the class weights to a mean of 1, so that the Dice terms keep nnU-Net's size; the cross entropies don't "
        "depend on the scale",
    )
    weight_minimum: float = _setting(
        0.0,
        _between(0, 1),
        "smallest class weight before the exponent, relative to the largest; above 0, false positives always cost; "
        f"with regions at least {LEAST_REGION_WEIGHT}",
    )
    counts_from: str = _setting(
        "unlabeled", _choice("unlabeled", "labeled"), "patches whose pseudo labels DistDW and CReST count"
    )
    supervised_ce: float = _setting(1.0, _between(0, 100), "factor of the supervised cross entropy")
    supervised_dice: float = _setting(1.0, _between(0, 100), "factor of the supervised Dice term")
    unsupervised_ce: float = _setting(1.0, _between(0, 100), "factor of the cross entropy on pseudo labels")
    unsupervised_dice: float = _setting(0.0, _between(0, 100), "factor of the Dice term on pseudo labels")
    unsupervised_on: str = _setting(
        "all",
        _choice("all", "unlabeled"),
        "patches that the pseudo labels supervise: labeled and unlabeled, or unlabeled",
    )
    teacher: str = _setting(
        "peer",
        _choice("peer", "mean"),
        "whose pseudo labels a sub-network learns: the other sub-network's, or those of the mean of both ones' logits",
    )
    teacher_momentum: float = _setting(
        0.0,
        (lambda value: _between(0, 1)[0](value) and value < 1, "a number from 0 to below 1"),
        "momentum of the moving average of both ones' weights that makes the pseudo labels of mixed patches; 0 = the "
        "weights as they are; above 0 needs paste_side above 0",
    )
    unsupervised_deep_supervision: bool = _setting(True, _BOOLEAN, "pseudo labels also at the coarser outputs")
    dice_smooth: float = _setting(1e-5, _between(0, 1e3), "smoothing constant of the Dice terms, in voxels")
    dice_pooled_over_batch: bool | None = _setting(
        None,
        _or_null(_BOOLEAN),
        "Dice over the whole batch; null follows the plans' batch_dice",
    )
    confidence_threshold: float = _setting(
        0.0, _between(0, 1), "pseudo labels below this probability supervise nothing"
    )
    lambda_max: float = _setting(0.1, _between(0, 100), "final weight of the unsupervised term")
    ramp_length: float = _setting(1.0, _between(0, 1), "part of the training over which lambda rises; 0 = no ramp")
    ramp_lag_epochs: int = _setting(0, _integer(0, 10), "epochs by which lambda lags behind (released code: 1)")
    unlabeled_schedule: str = _setting(
        "always",
        _choice("always", "ramp"),
        "draw unlabeled patches in every step, or as often as lambda / lambda_max says",
    )
    unlabeled_minimum_rate: float = _setting(0.1, _between(0, 1), 'lowest rate of the schedule "ramp"')
    paste_side: float = _setting(
        0.0,
        _between(0, 1),
        "side of the box of a labeled patch that is pasted into an unlabeled one, as a part of the patch (of half of "
        "them what lies around the box is); 0 = unlabeled patches stay whole",
    )
    initialization_a: str = _setting("plans", _choice("plans", "kaiming", "xavier"), "initialisation of A")
    initialization_b: str = _setting("plans", _choice("plans", "kaiming", "xavier"), "initialisation of B")
    architecture_b: dict = _setting(
        {}, _ARCHITECTURES, 'architecture of B by configuration, as in the plans\' key "architecture"; empty = as A'
    )
    abstain_below: float = _setting(
        0.0,
        _between(0, 1),
        "a sub-network has no say in a class, in validation and prediction, while its Dice on labeled patches is below "
        f"this part of the other's, which is at least {LEARNED}; 0 = both have always half",
    )
    oversample_foreground: float | None = _setting(
        None,
        _or_null(_between(0, 1)),
        "probability that a labeled patch is drawn around a voxel of a random class, not anywhere in the scan; null = "
        "nnU-Net's 0.33, rounded to whole patches of a batch",
    )
    mirror_axes: list | str | None = _setting(
        "auto",
        _or_null(
            (
                lambda value: value == "auto"
                or (isinstance(value, (list, tuple)) and all(_integer(0, 2)[0](axis) for axis in value)),
                "auto, a list of axes (0, 1, 2) of the preprocessed scan",
            )
        ),
        "axes mirrored in augmentation and prediction; null = nnU-Net's, all; auto = none if two labels differ only in "
        "their side (left, anterior, superior, upper, dorsal, cranial and their opposites, or l and r), otherwise "
        "nnU-Net's",
    )
    num_epochs: int | None = _setting(None, _or_null(_integer(1)), "epochs; null = nnU-Net's 1000")
    num_iterations_per_epoch: int | None = _setting(None, _or_null(_integer(1)), "steps an epoch; null = nnU-Net's 250")
    num_val_iterations_per_epoch: int | None = _setting(
        None, _or_null(_integer(1)), "validation steps an epoch; null = nnU-Net's 50"
    )
    allow_leaks: bool = _setting(
        False,
        _BOOLEAN,
        "train although unlabeled cases have the voxels of labeled or validation cases; they are named in the log",
    )
    low_memory: str = _setting(
        "auto",
        _choice("auto", "on", "off"),
        "a few patches at a time, with the same gradients: on = from the start; auto = once a step doesn't fit",
    )
    max_non_finite_steps: int = _setting(
        25, _integer(1, 10000), "steps in a row without finite loss or gradient that end the training (AMP: 25 or more)"
    )
    collapse_patience: int | None = _setting(
        None, _or_null(_integer(1)), "epochs at Dice or share 0 before the alarm; null = 5 % of the epochs"
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            default = setting.default_factory() if setting.default is MISSING else setting.default
            _require_valid(setting, getattr(self, setting.name), default)
        if self.teacher_momentum > 0 and self.paste_side == 0:
            raise UserError(
                "setting teacher_momentum of nnunet_dhc needs mixed patches: set paste_side too, for example: "
                f"{CONFIGURE} --set teacher_momentum=0.99 --set paste_side=0.67, then train with -p NEW_PLANS"
            )
        if not self.has_supervised_term and not self._every_step_has_unsupervised_term:
            raise UserError(
                "settings supervised_ce and supervised_dice of nnunet_dhc are both 0, which leaves no loss in some or "
                "all steps: set one of them above 0, or lambda_max and unsupervised_ce above 0 and "
                f"unlabeled_schedule=always, for example: {CONFIGURE} --set supervised_ce=1, then train with "
                "-p NEW_PLANS"
            )

    @property
    def has_supervised_term(self) -> bool:
        return self.supervised_ce > 0 or self.supervised_dice > 0

    @property
    def weighs_background(self) -> bool:
        """Whether the background's weight is another one than its weighting and the exponent of all classes say."""
        return self.background_weight is not None or self.background_exponent_final is not None

    @property
    def reads_all_outputs(self) -> bool:
        """Whether each output of a network gets a gradient, which DistributedDataParallel asks for."""
        return self.has_supervised_term or self.unsupervised_deep_supervision

    @property
    def _every_step_has_unsupervised_term(self) -> bool:
        has_term = self.lambda_max > 0 and (self.unsupervised_ce > 0 or self.unsupervised_dice > 0)
        leaves_out = self.unlabeled_schedule == "ramp" and self.ramp_length > 0 and self.unlabeled_minimum_rate < 1
        return has_term and not leaves_out

    @property
    def left_to_labels(self) -> tuple[str, ...]:
        """Names of the settings that the labels are still to decide."""
        return tuple(name for name in ("weight_exponent_final", "background_weight") if getattr(self, name) == AUTO)

    def for_labels(self, labeled_counts: Sequence[int], decided_before: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe with values for what is left to the labels.

        Args:
            labeled_counts: Labeled voxels of each class, background first.
            decided_before: What the labels decided when the run began that goes on; it keeps these values.
        """
        labeled = [int(count) for count in labeled_counts[1:] if count > 0]
        has_rare = bool(labeled) and max(labeled) > RARE_RATIO * min(labeled)
        decided = {
            "weight_exponent_final": EXPONENT_FOR_RARE if has_rare else 0.0,
            "background_weight": BACKGROUND_FOR_RARE if has_rare else None,
            **(decided_before or {}),
        }
        return replace(self, **{name: decided[name] for name in self.left_to_labels})

    def weight_exponents_at(self, epoch: int, num_epochs: int) -> tuple[float, float]:
        """Exponents of the background's weight and of all others in an epoch, counted from 0; after `for_labels`."""
        first = self.weight_exponent
        final = first if self.weight_exponent_final is None else float(self.weight_exponent_final)
        background = final if self.background_exponent_final is None else self.background_exponent_final
        progress = min(epoch / max(num_epochs - 1, 1), 1.0)
        return first + (background - first) * progress, first + (final - first) * progress

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _require_valid(setting: Any, value: Any, example: Any) -> None:
    if not setting.metadata["check"](value):
        raise UserError(
            f"setting {setting.name} = {value!r} of nnunet_dhc must be {setting.metadata['expected']}; "
            f"correct it, for example: {CONFIGURE} --set {setting.name}={json.dumps(example)}, then train "
            "with -p NEW_PLANS"
        )


def overridden(recipe: Recipe, overrides: Mapping[str, Any], source: str) -> Recipe:
    """Recipe with other values for some settings.

    Raises:
        UserError: Unknown setting or a value outside its range; the message names ``source`` and what is valid.
    """
    refuse_invalid(overrides, source, recipe)
    try:
        return replace(recipe, **overrides)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def refuse_invalid(settings: Mapping[str, Any], source: str, recipe: Recipe | None = None) -> None:
    """Raise if a setting is unknown or its value outside of the setting's range, whatever the other settings are.

    Args:
        settings: Values by name.
        source: Begins the message.
        recipe: Its values are the examples in messages; default the base recipe.
    """
    known = {setting.name: setting for setting in fields(Recipe)}
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise UserError(
            f"{source}: unknown setting {', '.join(unknown)} of nnunet_dhc; valid are {', '.join(sorted(known))}"
        )
    examples = recipe or Recipe()
    try:
        for name, value in settings.items():
            _require_valid(known[name], value, getattr(examples, name))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def recipe_from_plans(recipe: Recipe, plans: Mapping[str, Any]) -> Recipe:
    """The trainer's recipe with what ``plans["nnunet_dhc"]`` overrides."""
    return overridden(recipe, settings_in(plans), f"plans {plans.get('plans_name', '?')}")


def changed_since(recipe: Recipe, before: Mapping[str, Any], *plans: Mapping[str, Any]) -> list[str]:
    """Settings whose value in the trainer is another one than in the recipe of a checkpoint, "name: before -> now".

    Those that any of the plans, of the checkpoint or of now, sets are left out: the comparison of the plans tells them.
    """
    before = completed(before)
    from_plans = {name for some in plans for name in some.get(PLANS_KEY, {})}
    return [
        f"{name}: {json.dumps(before[name])} -> {json.dumps(value)}"
        for name, value in recipe.to_json().items()
        if name in before and name not in from_plans and before[name] != value
    ]


def settings_help(recipe: Recipe) -> list[tuple[str, Any, str, str]]:
    """(name, value in this recipe, what is valid, meaning) of every setting, for the command line and the docs."""
    return [(s.name, getattr(recipe, s.name), s.metadata["expected"], s.metadata["help"]) for s in fields(Recipe)]
