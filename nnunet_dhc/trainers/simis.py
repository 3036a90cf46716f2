# SPDX-License-Identifier: Apache-2.0
"""SimiS's class gaps as loss weights of both sub-networks."""

from dataclasses import replace

from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer
from nnunet_dhc.trainers.cps import BASELINE


class nnUNetTrainerSimiS(PairTrainer):
    """SimiS (Chen et al., 2022) as adapted by DHC: the gap to the largest class share weights both networks' losses."""

    recipe = replace(BASELINE, weighting_a="simis", weighting_b="simis")
