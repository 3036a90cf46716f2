# SPDX-License-Identifier: Apache-2.0
"""CReST's class rates as loss weights of both sub-networks."""

from dataclasses import replace

from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer
from nnunet_dhc.trainers.cps import BASELINE


class nnUNetTrainerCReST(PairTrainer):
    """CReST (Wei et al., CVPR 2021) as adapted by DHC: rank-reversed class rates weight the losses of both networks.

    Deviations: counts are at least one voxel and equally frequent classes share a rank (see `CReST`).
    """

    recipe = replace(BASELINE, weighting_a="crest", weighting_b="crest")
