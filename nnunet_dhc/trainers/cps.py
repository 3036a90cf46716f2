# SPDX-License-Identifier: Apache-2.0
"""Cross pseudo supervision without class weights: the baseline of DHC's ablation ("Org-Org")."""

from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer
from nnunet_dhc.nnunet.training.recipe import Recipe

# What the systems of DHC's tables share in the released code: losses, ramp and initialisation of the pair.
BASELINE = Recipe(
    weighting_a="none",
    weighting_b="none",
    unsupervised_deep_supervision=False,
    dice_smooth=1.0,
    dice_pooled_over_batch=True,
    lambda_max=0.1,
    ramp_lag_epochs=1,
    initialization_a="kaiming",
    initialization_b="xavier",
)


class nnUNetTrainerCPS(PairTrainer):
    """CPS (Chen et al., CVPR 2021) as DHC's released code runs it.

    L = S(A) + S(B) + lambda * (CE(A, pseudo_B) + CE(B, pseudo_A)), without class weights.

    Deviations: nnU-Net's training protocol, as for `nnUNetTrainerDHCReleased`.
    """

    recipe = BASELINE
