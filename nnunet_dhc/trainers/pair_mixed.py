# SPDX-License-Identifier: Apache-2.0
"""The control for mixed patches: the recommended recipe on labeled scans alone, mixed with each other."""

from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer
from nnunet_dhc.trainers.dhc import nnUNetTrainerDHC


class nnUNetTrainerPairMixed(PairTrainer):
    """`nnUNetTrainerDHC` with patches of the labeled scans, their labels hidden, in place of unlabeled ones.

    Everything else is the same: mixed patches, pseudo labels of the plain ones, lambda and its ramp. So the difference
    to `nnUNetTrainerDHC` is what the unlabeled scans add, and that to `nnUNetTrainerPairSupervised` what mixing does.
    No unlabeled case is opened, and none is needed.
    """

    uses_unlabeled = False
    hides_labels = True
    recipe = nnUNetTrainerDHC.recipe
