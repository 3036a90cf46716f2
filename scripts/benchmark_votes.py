# SPDX-License-Identifier: Apache-2.0
"""What it gives that a sub-network abstains from classes that it hasn't learned, on a model that is there already.

    python scripts/benchmark_votes.py $nnUNet_results/Dataset501_X/nnUNetTrainerDHC__nnUNetPlans__3d_fullres

Predicts A and B of the fold's labeled, validation and unlabeled cases in the preprocessed space; of unlabeled cases
those of the split file, which have references. The Dice on the labeled scans decides who abstains
(docs/explanation/dhc.md); a training takes that of the labeled patches of its last epoch instead. Prints the Dice [%]
of A, of B, of the mean of their logits, and of what they say together, as Markdown. Needs nnU-Net's three folders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_dhc.core.class_counts import hard_dice
from nnunet_dhc.core.label_spaces import ClassLabels
from nnunet_dhc.core.votes import combined_logits, votes_of
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.network.predictor import pair_of, trained_predictor
from nnunet_dhc.nnunet.splits.fold_cases import read_fold_cases
from nnunet_dhc.nnunet.splits.preprocessed_cases import dataset_class_of
from nnunet_dhc.reporting.statistics import class_mean_intervals

PREPROCESS = "preprocess it with the plans of the model"


class Model:
    """A trained pair with the preprocessed cases of its dataset."""

    def __init__(self, folder: Path, fold: int, preprocessed: Path, device: torch.device) -> None:
        self.predictor = trained_predictor(folder, (fold,), "checkpoint_final.pth", device)
        self.pair = pair_of(self.predictor, folder)
        if self.predictor.label_manager.has_regions:
            raise UserError(f"{folder}: labels that are regions aren't counted here")
        if self.predictor.configuration_manager.previous_stage_name is not None:
            raise UserError(f"{folder}: a second stage of a cascade isn't counted here")
        labels = self.predictor.label_manager
        self.labels = ClassLabels(labels.num_segmentation_heads, labels.ignore_label)
        dataset = preprocessed / folder.parent.name
        folder_of_cases = dataset / self.predictor.configuration_manager.data_identifier
        self.dataset = dataset_class_of(folder_of_cases, PREPROCESS)(str(folder_of_cases))
        self.cases = read_fold_cases(dataset, self.dataset.identifiers, fold)

    def logits(self, kind: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Reference (1, 1, *spatial) and logits of A and of B (1, k, *spatial) of each case of a kind."""
        for case in tqdm(getattr(self.cases, kind), desc=kind):
            image, reference, _, _ = self.dataset.load_case(case)
            images = torch.from_numpy(np.ascontiguousarray(image[:]))
            of_networks = []
            for network in ("a", "b"):
                with self.pair.giving(network):
                    logits = self.predictor.predict_sliding_window_return_logits(images)
                of_networks.append(logits.float().cpu()[None])
            yield torch.from_numpy(np.asarray(reference[:])).clamp_min(0)[None].long(), *of_networks


def training_dice(model: Model) -> tuple[Tensor, Tensor]:
    """Hard Dice of A and of B over all labeled scans, (k,) each."""
    overlaps: list[Tensor | int] = [0, 0]
    for reference, *of_networks in model.logits("labeled"):
        for number, logits in enumerate(of_networks):
            overlap = model.labels.overlap(model.labels.pseudo_label(logits), reference)
            overlaps[number] = overlaps[number] + torch.stack(tuple(overlap))
    return hard_dice(*overlaps[0]), hard_dice(*overlaps[1])


def case_dice(model: Model, logits: Tensor, reference: Tensor) -> np.ndarray:
    """Dice of a case by foreground class; NaN where the reference lacks it."""
    overlap = model.labels.overlap(model.labels.pseudo_label(logits), reference)
    return hard_dice(*overlap).where(overlap.labeled > 0, torch.nan)[1:].numpy().astype(float)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder with plans.json and the folds")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--preprocessed", type=Path, help="instead of nnUNet_preprocessed")
    parser.add_argument("--abstain-below", type=float, default=0.25)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    from nnunetv2.paths import nnUNet_preprocessed

    model = Model(args.model, args.fold, args.preprocessed or Path(nnUNet_preprocessed), torch.device(args.device))
    of_a, of_b = training_dice(model)
    votes = votes_of(of_a, of_b, args.abstain_below)
    pairs = [f"{100 * a:.0f} / {100 * b:.0f}" for a, b in zip(of_a.tolist(), of_b.tolist(), strict=True)]
    print("Dice [%] of A / B on labeled scans, by class:", *pairs, sep="  ")
    print("Nobody abstains." if votes is None else f"part of A in each class: {votes[0].tolist()}")
    print("| cases | A | B | mean | together | together - mean (95 % interval over cases) |\n|---|---|---|---|---|---|")
    for kind in ("validation", "unlabeled"):
        found: dict[str, list[np.ndarray]] = {"A": [], "B": [], "mean": [], "together": []}
        for reference, a, b in model.logits(kind):
            mean = (a + b) / 2
            together = combined_logits(a, b, votes)
            outputs = {"A": a, "B": b, "mean": mean, "together": together}
            for name, logits in outputs.items():
                found[name].append(case_dice(model, logits, reference))
        if not found["A"]:
            continue
        dice = {name: np.array(values) for name, values in found.items()}
        means = [f"{100 * np.nanmean(np.nanmean(values, 0)):.1f}" for values in dice.values()]
        change = class_mean_intervals(dice["together"] - dice["mean"], [range(dice["mean"].shape[1])])[0]
        interval = "" if change.low is None else f" ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
        print(f"| {len(found['A'])} {kind} | {' | '.join(means)} | {100 * change.mean:+.1f}{interval} |")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
