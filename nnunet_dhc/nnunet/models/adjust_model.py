# SPDX-License-Identifier: Apache-2.0
"""A trained model whose classes have other borders: offsets of the logits, chosen on the fold's validation cases."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_dhc.core.class_offsets import (
    STRENGTHS,
    CaseLogits,
    choose_offsets,
    cross_fitted_dice,
    dice_of_cases,
    foreground_mean,
    judged_classes,
    reduce_case,
    reduce_regions,
)
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_file, replace_json
from nnunet_dhc.nnunet.models.validation_cases import ValidationCases
from nnunet_dhc.nnunet.network.cotrained_pair import CoTrainedPair, unwrapped
from nnunet_dhc.nnunet.network.model_folder import ModelFolder, file_hash, option_of_device
from nnunet_dhc.nnunet.network.predictor import trained_predictor
from nnunet_dhc.nnunet.training.checkpoint import checkpoint_bytes
from nnunet_dhc.nnunet.training.objective import class_names
from nnunet_dhc.nnunet.training.run_record import installed_versions
from nnunet_dhc.wording import counted

ADJUSTED = "checkpoint_adjusted.pth"
REPORT = "dhc_class_offsets.json"


@dataclass(frozen=True)
class Adjustment:
    """What was chosen for one fold, and what it does to the validation cases.

    Attributes:
        classes: Names of the foreground classes or regions.
        offsets: (classes,), added to their logits if they help.
        judged: Names of those that enough cases have; the others get no offset.
        before: (cases, classes), Dice without offsets, NaN where the reference lacks the class.
        cross_fitted: The same with offsets chosen on the other cases, at the better of the two strengths.
        after: The same with ``offsets``, so optimistic.
    """

    classes: list[str]
    offsets: Tensor
    judged: list[str]
    before: Tensor
    cross_fitted: Tensor
    after: Tensor

    @property
    def helps(self) -> bool:
        return bool((self.offsets != 0).any()) and foreground_mean(self.cross_fitted) > foreground_mean(self.before)


def adjust_model(model: ModelFolder, fold: int | str, checkpoint_name: str, device: torch.device) -> Adjustment:
    """Choose offsets for a fold and write ``checkpoint_adjusted.pth`` beside its checkpoint.

    Offsets that don't help are left out of it. They help if the mean Dice of the validation cases rises with offsets
    that were chosen on other ones of them; by the same measure all of them are halved or not. The Dice is that of the
    preprocessed space. The new checkpoint has the offsets in the bias of the last layer, no state of the optimizer, and
    everything else of the old one, so nnU-Net predicts with it as with any other. Regions are scored as their sigmoid
    outputs say, before nnU-Net writes them into one label map.

    Raises:
        UserError: No validation cases of its own, preprocessed data gone, or a network without the layer.
    """
    cases = _validation_cases(model, fold)
    predictor = trained_predictor(model.path, (fold,), checkpoint_name, device)
    biases = _output_biases(predictor.network)
    reduced = []
    for identifier in tqdm(cases.identifiers, desc=f"Fold {fold}: validation cases"):
        case = cases.load(identifier)
        logits = predictor.predict_sliding_window_return_logits(case.image).cpu()
        reduced.append(_reduce(logits, case.reference.long(), cases.label_manager))
    names = class_names(cases.label_manager, model.dataset_json)[1:]
    found = _choose(names, list(zip(*reduced, strict=True)))
    source = model.checkpoint(fold, checkpoint_name)
    checkpoint = torch.load(source, map_location="cpu", weights_only=False, mmap=True)
    content = checkpoint_bytes(shifted(checkpoint, biases, found.helps * found.offsets))
    _write(model.checkpoint(fold, ADJUSTED), content)
    report = _report(found, cases.identifiers, checkpoint_name, file_hash(source))
    replace_json(model.fold_folder(fold) / REPORT, report)
    return found


def shifted(checkpoint: Mapping[str, Any], biases: Sequence[str], offsets: Tensor) -> dict[str, Any]:
    """A checkpoint whose foreground logits are those of the old one plus ``offsets``, without the optimizer's state."""
    weights = dict(checkpoint["network_weights"])
    for name in biases:
        weights[name] = weights[name].clone()
        weights[name][-len(offsets) :] += offsets  # the background, if there is one, comes first
    settings = {"state": {}, "param_groups": checkpoint["optimizer_state"]["param_groups"]}
    return {**checkpoint, "network_weights": weights, "optimizer_state": settings}


def adjust_folds(
    model: ModelFolder,
    folds: Sequence[int | str],
    checkpoint_name: str,
    device: torch.device,
    say: Callable[[str], None] = print,
) -> None:
    """``adjust_model`` for each fold, and what it found in a table."""
    if checkpoint_name == ADJUSTED:
        raise UserError(f"-chk {ADJUSTED} has offsets already: give the checkpoint that it was made from")
    if "all" in folds:
        raise UserError("-f all: its validation cases were trained on, so they can't tell; adjust numbered folds")
    if len(set(folds)) < len(folds):
        raise UserError("-f: name each fold once")
    model.require_checkpoints(folds, checkpoint_name)
    _require_validation_cases(model, folds)
    for fold in folds:
        found = adjust_model(model, fold, checkpoint_name, device)
        say(_table(found))
        useless = "" if found.helps else ", without offsets: chosen on some validation cases, they don't help on others"
        say(f"{model.checkpoint(fold, ADJUSTED)} written{useless}")
    say(
        f"Predict with: nnUNetv2_predict -d {shlex.quote(model.dataset)} -c {model.configuration} -tr {model.trainer} "
        f"-p {model.plans_identifier} -f {' '.join(map(str, folds))} -chk {ADJUSTED} "
        f"-i IMAGES -o OUT{model.option_of_previous_stage}{option_of_device(device)}"
    )


def _validation_cases(model: ModelFolder, fold: int | str) -> ValidationCases:
    return ValidationCases(model, fold, "bring the preprocessed data back")


def _require_validation_cases(model: ModelFolder, folds: Sequence[int | str]) -> None:
    """Refuse folds with fewer than two validation cases, before the first fold is predicted."""
    counts = {fold: len(_validation_cases(model, fold).identifiers) for fold in folds}
    enough = [str(fold) for fold, count in counts.items() if count >= 2]
    if len(enough) == len(folds):
        return
    few = ", ".join(
        f"fold {fold} has {counted(count, 'validation case')}" for fold, count in counts.items() if count < 2
    )
    if enough:
        remedy = f"use -f {' '.join(enough)}, here and for nnUNetv2_predict"
    else:
        remedy = "a model of these folds can't be adjusted"
    raise UserError(f"{few}; to see whether offsets help it takes 2: {remedy}")


def _reduce(logits: Tensor, reference: Tensor, labels: LabelManager) -> list[CaseLogits]:
    """What is decided by itself: all classes together, or each region."""
    reference[reference == -1] = 0  # nnU-Net's mark of the border that it cut off
    if not labels.has_regions:
        return [reduce_case(logits, reference)]
    members = torch.stack([torch.isin(reference, torch.as_tensor(region)) for region in labels.foreground_regions])
    if labels.has_ignore_label:
        return reduce_regions(logits, members.long().masked_fill(reference == labels.ignore_label, -1))
    return reduce_regions(logits, members.long())


def _choose(names: list[str], decisions: Sequence[Sequence[CaseLogits]]) -> Adjustment:
    """The adjustment by what each decision says of the cases: classes have one, of regions each has its own."""
    of_strengths = torch.cat([cross_fitted_dice(cases) for cases in decisions], -1)
    best = max(range(len(STRENGTHS)), key=lambda index: foreground_mean(of_strengths[index]))
    judged = [judged_classes(cases) for cases in decisions]
    offsets = [
        STRENGTHS[best] * choose_offsets(cases, classes) for cases, classes in zip(decisions, judged, strict=True)
    ]
    before, after = (
        torch.cat([dice_of_cases(cases, factor * chosen) for cases, chosen in zip(decisions, offsets, strict=True)], -1)
        for factor in (0, 1)
    )
    has_offset = [index in classes for classes, chosen in zip(judged, offsets, strict=True)
                  for index in range(1, len(chosen))]
    return Adjustment(
        names,
        torch.cat([chosen[1:] for chosen in offsets]),
        [name for name, is_judged in zip(names, has_offset, strict=True) if is_judged],
        before,
        of_strengths[best],
        after,
    )


def _output_biases(network: nn.Module) -> list[str]:
    """Names of the biases that are added to the logits of full resolution."""
    network = unwrapped(network)
    parts = network.sub_networks if isinstance(network, CoTrainedPair) else (network,)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = []
    for part in parts:
        layers = getattr(getattr(part, "decoder", None), "seg_layers", None)
        bias = layers[-1].bias if layers is not None and len(layers) else None
        if bias is None:
            raise UserError(
                f"{type(part).__name__} has no bias in decoder.seg_layers[-1], where nnU-Net's networks have their "
                "last layer: offsets can't be put into it"
            )
        found.append(names[id(bias)])
    return found


def _write(path: Path, content: bytes) -> None:
    try:
        replace_file(path, content)
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror or error}): free disk space") from error


def _report(found: Adjustment, identifiers: Sequence[str], checkpoint: str, sha256: str) -> dict[str, Any]:
    dice = {"before": found.before, "cross_fitted": found.cross_fitted, "after": found.after}
    return {
        "format": 1,
        "checkpoint": checkpoint,
        "sha256": sha256,
        "offsets": dict(zip(found.classes, found.offsets.tolist(), strict=True)),
        "helps": found.helps,
        "validation_cases": list(identifiers),
        "mean_dice": {name: _number(foreground_mean(values)) for name, values in dice.items()},
        "dice": {
            name: {
                label: _number(value)
                for label, value in zip(found.classes, torch.nanmean(values, 0).tolist(), strict=True)
            }
            for name, values in dice.items()
        },
        "versions": installed_versions(),
    }


def _number(value: float) -> float | None:
    return value if value == value else None


def _table(found: Adjustment) -> str:
    width = max(len(name) for name in (*found.classes, "mean"))
    columns = [torch.nanmean(dice, 0).tolist() for dice in (found.before, found.cross_fitted, found.after)]
    means = [foreground_mean(dice) for dice in (found.before, found.cross_fitted, found.after)]
    lines = [f"{'Dice [%]':{width}}  offset  before  on left-out cases  on the choosing cases"]
    for name, offset, *dice in zip(found.classes, found.offsets.tolist(), *columns, strict=True):
        lines.append(_line(f"{name:{width}}", f"{offset:+.2f}", dice))
    lines.append(_line(f"{'mean':{width}}", "", means))
    left = [name for name in found.classes if name not in found.judged]
    lines += [f"Left as they are, because fewer than two validation cases have them: {', '.join(left)}"] if left else []
    return "\n".join(lines)


def _line(name: str, offset: str, dice: Sequence[float]) -> str:
    before, cross_fitted, after = ("-" if value != value else f"{100 * value:.1f}" for value in dice)
    return f"{name}  {offset:>6}  {before:>6}  {cross_fitted:>17}  {after:>21}"
