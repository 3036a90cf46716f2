# SPDX-License-Identifier: Apache-2.0
"""The control: the pair of the recommended recipe, trained on labels alone."""

from dataclasses import replace

from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer
from nnunet_dhc.trainers.dhc import nnUNetTrainerDHC


class nnUNetTrainerPairSupervised(PairTrainer):
    """`nnUNetTrainerDHC` on labels alone: the difference between the two is what unlabeled scans and mixed patches add.

    How much of that mixed patches give without any unlabeled scan, `nnUNetTrainerPairMixed` tells.

    Class weights come from the predictions on labeled patches. No unlabeled case is opened, and none is needed.
    """

    uses_unlabeled = False
    recipe = replace(nnUNetTrainerDHC.recipe, counts_from="labeled")
