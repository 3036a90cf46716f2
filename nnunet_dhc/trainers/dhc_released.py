# SPDX-License-Identifier: Apache-2.0
"""What the released code of DHC computes, on nnU-Net's optimiser, augmentation and sampling."""

from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer
from nnunet_dhc.nnunet.training.recipe import Recipe


class nnUNetTrainerDHCReleased(PairTrainer):
    """DHC with the losses, weights, schedule and initialisation of the authors' code (xmed-lab/DHC@b3dee97).

    L = S_wdiff(A) + S_wdist(B) + lambda * (CE_wdiff(A, pseudo_B) + CE_wdist(B, pseudo_A)) on labeled and unlabeled
    patches; S = weighted cross entropy + weighted negative foreground Dice (smoothing 1, pooled over the batch). The
    weights are multiplied by the number of classes, lambda rises to 0.1 with the Gaussian ramp that lags by one epoch,
    pseudo labels supervise the full resolution only, both sub-networks start from Kaiming's scheme.

    Deviations: nnU-Net's optimiser, learning rate, gradient clipping, deep supervision of the supervised term,
    augmentation, foreground oversampling, and a cross entropy without any weighted voxel is 0 instead of NaN.
    """

    recipe = Recipe(
        weighting_a="diffdw",
        weighting_b="distdw",
        weighting_mode="released",
        unsupervised_deep_supervision=False,
        dice_smooth=1.0,
        dice_pooled_over_batch=True,
        lambda_max=0.1,
        ramp_lag_epochs=1,
        initialization_a="kaiming",
        initialization_b="kaiming",
    )
