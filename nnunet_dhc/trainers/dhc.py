# SPDX-License-Identifier: Apache-2.0
"""DHC as recommended: A weighted by DiffDW, B by DistDW, on nnU-Net's losses; the weights differ less and less."""

from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer
from nnunet_dhc.nnunet.training.recipe import Recipe


class nnUNetTrainerDHC(PairTrainer):
    """Recommended recipe of DHC (Wang & Li, MICCAI 2023).

    The unsupervised term is that of mixed patches: a box of a labeled patch is pasted into an unlabeled one, or what
    lies around the box (after Bai et al., CVPR 2023), and each sub-network learns the mixture from the reference in the
    labeled part and from the other's pseudo label of the whole unlabeled patch elsewhere. Such patches come as often as
    lambda says. The class weights, which find the rare structures early, differ less and less: their exponent falls
    from 1 to 0.5, or to 0 where no structure is rare among the labels. Dice is pooled over the batch, so that a
    structure painted in a patch without it costs Dice too, if another patch has it.

    Deviations from the released code, with reasons and measurements: docs/explanation/recipes.md.
    """

    recipe = Recipe(
        unlabeled_schedule="ramp",
        paste_side=0.67,
        lambda_max=1.0,
        unsupervised_dice=1.0,
        unsupervised_on="unlabeled",
        dice_pooled_over_batch=True,
        oversample_foreground=0.33,
        weight_minimum=0.02,
        weight_exponent_final="auto",
    )
