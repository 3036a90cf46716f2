# SPDX-License-Identifier: Apache-2.0
"""The mathematics of DHC and its relatives: pure torch, no nnU-Net."""

from nnunet_dhc.core.class_weighting import ClassWeighting, Unweighted
from nnunet_dhc.core.cld_weights import CLD
from nnunet_dhc.core.crest_weights import CReST
from nnunet_dhc.core.diff_weights import DiffDW
from nnunet_dhc.core.dist_weights import DistDW
from nnunet_dhc.core.simis_weights import SimiS

__all__ = ["CLD", "CReST", "ClassWeighting", "DiffDW", "DistDW", "SimiS", "Unweighted"]
