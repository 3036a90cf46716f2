# SPDX-License-Identifier: Apache-2.0
"""DHC as recommended: A weighted by DiffDW, B by DistDW, on nnU-Net's losses; the weights fade out."""

from nnunet_dhc.nnunet.training.recipe import Recipe
from nnunet_dhc.trainers.pair_trainer import PairTrainer


class nnUNetTrainerDHC(PairTrainer):
    """Recommended recipe of DHC (Wang & Li, MICCAI 2023).

    Unlabeled patches come as often as lambda says, labeled ones lie around foreground, and the class weights, which
    find the rare structures early, become equal until the end.

    Deviations from the released code, with reasons and measurements: docs/explanation/recipes.md.
    """

    recipe = Recipe(
        unlabeled_schedule="ramp", oversample_foreground=1.0, weight_minimum=0.02, weight_exponent_final=0.0
    )
