# SPDX-License-Identifier: Apache-2.0
"""DHC with the equations as printed, on nnU-Net's optimiser, augmentation and sampling."""

from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer
from nnunet_dhc.nnunet.training.recipe import Recipe


class nnUNetTrainerDHCPaper(PairTrainer):
    """DHC as printed (Wang & Li, MICCAI 2023, Eq. 1-5).

    L = CE_w(A) + CE_w(B) + lambda * 1/2 (CE_w + Dice_w) of each network against the other's pseudo label;
    DistDW without a factor (Eq. 3-4), DiffDW with sums over a window of 50 steps (Eq. 5) and without a factor.

    Deviations: Eq. 5 is used in its population-stability form, with the change of Dice as a factor: as printed it has
    no real value as soon as a class gets worse. Where the paper is silent the robust policy holds (absent classes leave
    DiffDW's state alone, counts are at least one voxel). The training protocol is nnU-Net's.
    """

    recipe = Recipe(
        weighting_a="diffdw",
        weighting_b="distdw",
        weighting_a_options={"accumulation": "window", "scale": 1.0, "normalise": "none"},
        weighting_b_options={"scale": 1.0},
        supervised_ce=1.0,
        supervised_dice=0.0,
        unsupervised_ce=0.5,
        unsupervised_dice=0.5,
        lambda_max=0.1,
    )
