# SPDX-License-Identifier: Apache-2.0
"""The control: the pair of the recommended recipe, trained on labels alone."""

from dataclasses import replace

from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer
from nnunet_dhc.trainers.dhc import nnUNetTrainerDHC


class nnUNetTrainerPairSupervised(PairTrainer):
    """`nnUNetTrainerDHC` without unlabeled data: the difference between the two is what the unlabeled scans add.

    Class weights come from the predictions on labeled patches. No unlabeled case is opened, and none is needed.
    """

    uses_unlabeled = False
    recipe = replace(nnUNetTrainerDHC.recipe, counts_from="labeled")
