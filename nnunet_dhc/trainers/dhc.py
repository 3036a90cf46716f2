# SPDX-License-Identifier: Apache-2.0
"""DHC as recommended: A weighted by DiffDW, B by DistDW, on nnU-Net's losses and schedule."""

from nnunet_dhc.nnunet.training.recipe import Recipe
from nnunet_dhc.trainers.pair_trainer import PairTrainer


class nnUNetTrainerDHC(PairTrainer):
    """Recommended recipe of DHC (Wang & Li, MICCAI 2023).

    Deviations from the released code, with reasons and measurements: docs/explanation/recipes.md.
    """

    recipe = Recipe(unlabeled_schedule="ramp", oversample_foreground=1.0)
