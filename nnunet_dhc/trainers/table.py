# SPDX-License-Identifier: Apache-2.0
"""Every trainer of this package, one row each. Standard library only: it is read without torch.

The lookup, ``nnunet_dhc methods``, the method page of the docs and the parametrised tests all come from this table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One trainer: where its class lives and what it is."""

    name: str
    module: str
    summary: str
    paper: str
    networks: str
    weighting_a: str
    weighting_b: str
    uses_unlabeled: bool = True


_DHC = "Wang & Li, MICCAI 2023"
_TABLE_3 = "nnunet_dhc.trainers.ablation_pairs"

_ROWS = (
    Method(
        "nnUNetTrainerDHC",
        "nnunet_dhc.trainers.dhc",
        "recommended recipe: DHC's weights, mixed patches after Bai et al.",
        _DHC,
        "pair",
        "diffdw",
        "distdw",
    ),
    Method(
        "nnUNetTrainerDHCPaper",
        "nnunet_dhc.trainers.dhc_paper",
        "the equations as printed",
        _DHC,
        "pair",
        "diffdw",
        "distdw",
    ),
    Method(
        "nnUNetTrainerDHCReleased",
        "nnunet_dhc.trainers.dhc_released",
        "what the released code computes",
        _DHC,
        "pair",
        "diffdw",
        "distdw",
    ),
    Method(
        "nnUNetTrainerCPS",
        "nnunet_dhc.trainers.cps",
        "cross pseudo supervision without weights",
        "Chen et al., CVPR 2021",
        "pair",
        "none",
        "none",
    ),
    Method(
        "nnUNetTrainerCReST",
        "nnunet_dhc.trainers.crest",
        "CReST class weights on both",
        "Wei et al., CVPR 2021; adapted in DHC",
        "pair",
        "crest",
        "crest",
    ),
    Method(
        "nnUNetTrainerSimiS",
        "nnunet_dhc.trainers.simis",
        "SimiS class weights on both",
        "Chen et al., 2022; adapted in DHC",
        "pair",
        "simis",
        "simis",
    ),
    Method("nnUNetTrainerPairDistDWDistDW", _TABLE_3, "Table 3 ablation", _DHC, "pair", "distdw", "distdw"),
    Method("nnUNetTrainerPairDiffDWDiffDW", _TABLE_3, "Table 3 ablation", _DHC, "pair", "diffdw", "diffdw"),
    Method("nnUNetTrainerPairDistDWCReST", _TABLE_3, "Table 3 ablation", _DHC, "pair", "distdw", "crest"),
    Method("nnUNetTrainerPairDistDWSimiS", _TABLE_3, "Table 3 ablation", _DHC, "pair", "distdw", "simis"),
    Method("nnUNetTrainerPairDiffDWCReST", _TABLE_3, "Table 3 ablation", _DHC, "pair", "diffdw", "crest"),
    Method("nnUNetTrainerPairDiffDWSimiS", _TABLE_3, "Table 3 ablation", _DHC, "pair", "diffdw", "simis"),
    Method(
        "nnUNetTrainerPairSupervised",
        "nnunet_dhc.trainers.pair_supervised",
        "control: the pair on labels alone",
        _DHC,
        "pair",
        "diffdw",
        "distdw",
        uses_unlabeled=False,
    ),
    Method(
        "nnUNetTrainerPairMixed",
        "nnunet_dhc.trainers.pair_mixed",
        "control: the recommended recipe on labeled scans alone, mixed with each other",
        _DHC,
        "pair",
        "diffdw",
        "distdw",
        uses_unlabeled=False,
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
if len(METHODS) != len(_ROWS):
    raise RuntimeError("two rows of the method table have the same name")
