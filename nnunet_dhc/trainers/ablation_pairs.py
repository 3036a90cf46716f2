# SPDX-License-Identifier: Apache-2.0
"""The other pairs of DHC's Table 3 (ablation of which weighting goes to which sub-network).

They differ in two words each, so they stand together: the table of the paper is one thing.
"""

from dataclasses import replace

from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer
from nnunet_dhc.trainers.cps import BASELINE


class nnUNetTrainerPairDistDWDistDW(PairTrainer):
    """A weighted by DistDW, B by DistDW, each from its own predictions."""

    recipe = replace(BASELINE, weighting_a="distdw", weighting_b="distdw")


class nnUNetTrainerPairDiffDWDiffDW(PairTrainer):
    """A weighted by DiffDW, B by DiffDW, each from its own predictions."""

    recipe = replace(BASELINE, weighting_a="diffdw", weighting_b="diffdw")


class nnUNetTrainerPairDistDWCReST(PairTrainer):
    """A weighted by DistDW, B by CReST, each from its own predictions."""

    recipe = replace(BASELINE, weighting_a="distdw", weighting_b="crest")


class nnUNetTrainerPairDistDWSimiS(PairTrainer):
    """A weighted by DistDW, B by SimiS, each from its own predictions."""

    recipe = replace(BASELINE, weighting_a="distdw", weighting_b="simis")


class nnUNetTrainerPairDiffDWCReST(PairTrainer):
    """A weighted by DiffDW, B by CReST, each from its own predictions."""

    recipe = replace(BASELINE, weighting_a="diffdw", weighting_b="crest")


class nnUNetTrainerPairDiffDWSimiS(PairTrainer):
    """A weighted by DiffDW, B by SimiS, each from its own predictions."""

    recipe = replace(BASELINE, weighting_a="diffdw", weighting_b="simis")
