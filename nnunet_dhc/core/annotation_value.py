# SPDX-License-Identifier: Apache-2.0
"""What labeling a scan would teach: disagreement of A and B, their uncertainty, each class counting the same.

With hard predictions ``A_c`` and ``B_c`` (voxel sets) of structure c, and the mean ``p`` of both softmax outputs,

    D_ic = 1 - 2 |A_c n B_c| / (|A_c| + |B_c|)                          disagreement, 0 to 1
    E_ic = sum over v in (A_c u B_c) of H(p_v) / ln k, / |A_c u B_c|    entropy where the class is predicted, 0 to 1
    U_ic = (D_ic + E_ic) / 2
    S_i  = mean over c of U_ic                                           score of scan i

The mean over c runs over the structures that A or B finds in at least one scan of the pool. A scan in which neither
finds structure c says nothing about it: there D_ic and E_ic are NaN, and U_ic is the mean over the scans that have it,
so that a missing structure makes a scan neither more nor less worth labeling. Regions (sigmoid outputs) use the binary
entropy of their own channel, over ln 2.

A network that abstains from structure c (`nnunet_dhc.core.votes`) hasn't learned it, and would disagree everywhere. So
A_c, B_c and p are those of the other network for this c, D_ic is NaN and U_ic = E_ic.

Source: class-stratified entropy follows the idea of ClaSP PE in nnActive (MIC-DKFZ); disagreement of co-trained
networks is query by committee.
Deviations: whole scans instead of patches, a committee of two, no noise on the scores, Dice instead of vote entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

_VOXELS_AT_ONCE = 1 << 21
_MOST_DEVIATIONS = 3.0


@dataclass(frozen=True)
class PairCounts:
    """Sums over the voxels of one scan, one entry per structure (foreground classes, or regions).

    Attributes:
        predicted_a: Voxels that A predicts, shape (c,), int64.
        predicted_b: Voxels that B predicts, shape (c,), int64.
        overlap: Voxels that both predict, shape (c,), int64.
        entropy: Sum of the normalized entropy over the voxels that A or B predicts, shape (c,), float64.
        of_one_network: Where one network abstains and all the above is the other one's, shape (c,), bool.
    """

    predicted_a: NDArray[np.int64]
    predicted_b: NDArray[np.int64]
    overlap: NDArray[np.int64]
    entropy: Array
    of_one_network: NDArray[np.bool_]

    @property
    def union(self) -> NDArray[np.int64]:
        """Voxels that A or B predicts."""
        both: NDArray[np.int64] = self.predicted_a + self.predicted_b - self.overlap
        return both

    def disagreement(self) -> Array:
        """1 - Dice of A and B, shape (c,); NaN where neither predicts the structure or one abstains from it."""
        total = (self.predicted_a + self.predicted_b).astype(np.float64)
        with np.errstate(invalid="ignore"):
            result: Array = np.where(self.of_one_network, np.nan, 1.0 - 2.0 * self.overlap / total)
        return result

    def mean_entropy(self) -> Array:
        """Mean normalized entropy where A or B predicts the structure, shape (c,); NaN where neither does."""
        with np.errstate(invalid="ignore"):
            result: Array = self.entropy / self.union
        return result


def count_pair(
    logits_a: Tensor, logits_b: Tensor, regions: bool = False, votes: Tensor | None = None
) -> PairCounts:
    """Sum up one scan, a slab of voxels at a time so that memory stays that of the logits.

    Args:
        logits_a: Logits of A, shape (k, *spatial), any floating type; channel 0 is the background unless ``regions``.
        logits_b: Logits of B, likewise.
        regions: Channels are independent regions (sigmoid, 0.5) instead of classes (softmax, argmax).
        votes: From `votes_of`, (2, classes), background included; None where nobody abstains.

    Returns:
        Sums for k - 1 foreground classes, or for k regions.

    Raises:
        ValueError: The shapes differ.
    """
    if logits_a.shape != logits_b.shape:
        raise ValueError(f"logits of A have shape {tuple(logits_a.shape)}, those of B {tuple(logits_b.shape)}")
    k = logits_a.shape[0]
    flat_a, flat_b = logits_a.reshape(k, -1), logits_b.reshape(k, -1)
    first = 0 if regions else 1
    sole = torch.zeros((2, k), dtype=torch.bool)
    if votes is not None:
        sole[:, first:] = votes[:, 1:].cpu() == 1
    integers = torch.zeros((3, k), dtype=torch.int64)
    entropy = torch.zeros(k, dtype=torch.float64)
    count = _count_regions if regions else _count_classes
    step = max(1, _VOXELS_AT_ONCE // k)
    for start in range(0, flat_a.shape[1], step):
        slab_a, slab_b = (flat[:, start : start + step].float() for flat in (flat_a, flat_b))
        found, uncertain = (sums.cpu() for sums in count(slab_a, slab_b))
        for slab, decides in zip((slab_a, slab_b), sole, strict=True):
            if decides.any():
                of_one, uncertain_one = (sums.cpu() for sums in count(slab, slab))
                found, uncertain = of_one.where(decides, found), uncertain_one.where(decides, uncertain)
        integers += found
        entropy += uncertain
    a, b, overlap = (row[first:].numpy() for row in integers)
    return PairCounts(a, b, overlap, entropy[first:].numpy(), sole.any(0)[first:].numpy())


def class_values(disagreement: Array, entropy: Array) -> tuple[Array, NDArray[np.bool_]]:
    """``U_ic`` of a pool of scans, with the rule for structures that a scan lacks.

    Args:
        disagreement: ``D_ic``, shape (n, c), NaN where neither network predicts c or one abstains.
        entropy: ``E_ic``, shape (n, c), NaN where no network predicts c.

    Returns:
        ``U_ic``, shape (n, c'), for the c' structures that are found at all, and which those are, shape (c,).
    """
    found: NDArray[np.bool_] = np.asarray(~np.isnan(entropy).all(axis=0))
    values = entropy[:, found]
    values = np.where(np.isnan(disagreement[:, found]), values, (disagreement[:, found] + values) / 2)
    absent = np.isnan(values)
    means = np.where(absent, 0.0, values).sum(axis=0) / np.maximum((~absent).sum(axis=0), 1)
    return np.where(absent, means, values), found


def case_scores(values: Array) -> Array:
    """``S_i``: the mean of ``U_ic`` over structures.

    Args:
        values: ``U_ic`` from `class_values`, shape (n, c').

    Returns:
        Shape (n,), in [0, 1]; 0 for all where no structure is found.
    """
    if values.shape[1] == 0:
        return np.zeros(len(values))
    scores: Array = values.mean(axis=1)
    return scores


def feature_vectors(counts: Array, disagreement: Array, entropy: Array) -> Array:
    """What a scan looks like to the pair, for the diversity term.

    Three blocks: the log of each structure's volume, its disagreement, its entropy. Each column is standardized over
    the pool (columns that don't vary are 0), so that small structures count like large ones; NaN becomes the mean. Then
    it is limited to 3 standard deviations: one scan of n with a structure of its own would have sqrt(n - 1), be the
    farthest from all, and be chosen for that, though it often is a bad scan.

    Args:
        counts: Mean volume that A and B predict, shape (n, c), voxels (any unit that is the same for all scans).
        disagreement: ``D_ic``, shape (n, c).
        entropy: ``E_ic``, shape (n, c).

    Returns:
        Shape (n, 3 c), in [-3, 3].
    """
    blocks = np.concatenate([np.log1p(counts), disagreement, entropy], axis=1).astype(np.float64)
    known = ~np.isnan(blocks)
    number = np.maximum(known.sum(axis=0), 1)
    centered = np.where(known, blocks - np.where(known, blocks, 0.0).sum(axis=0) / number, 0.0)
    spread = np.sqrt((centered**2).sum(axis=0) / number)
    result: Array = centered / np.where(spread > 1e-12, spread, 1.0)
    result[:, spread <= 1e-12] = 0.0
    return result.clip(-_MOST_DEVIATIONS, _MOST_DEVIATIONS)


def annotation_order(scores: Array, features: Array, diversity: float = 0.5) -> tuple[list[int], list[float]]:
    """Order scans so that each next one is valuable and unlike those before (greedy farthest point with a score).

    The first scan has the largest score. Then, with ``s`` the score scaled to 0 ... 1 over the pool and ``d`` the
    distance to the nearest scan already taken over the largest distance from the first,

        next = argmax (1 - diversity) s_i + diversity d_i

    ``diversity`` 0 is the order of the scores, 1 is farthest-point sampling (core-set). Ties: the earlier scan.

    Args:
        scores: ``S_i``, shape (n,).
        features: Shape (n, f).
        diversity: 0 to 1.

    Returns:
        Positions in order, and for each the ``d`` that it had when it was taken (1 for the first).

    Raises:
        ValueError: ``diversity`` is outside 0 ... 1.
    """
    if not 0.0 <= diversity <= 1.0:
        raise ValueError(f"diversity is {diversity}, not between 0 and 1")
    if len(scores) == 0:
        return [], []
    spread = float(scores.max() - scores.min())
    scaled = (scores - scores.min()) / spread if spread > 0 else np.zeros(len(scores))
    first = int(scores.argmax())
    distance = np.linalg.norm(features - features[first], axis=1)
    scale = float(distance.max()) or 1.0
    left = np.ones(len(scores), dtype=bool)
    left[first] = False
    order, novelty = [first], [1.0]
    while left.any():
        gain = (1.0 - diversity) * scaled + diversity * distance / scale
        taken = int(np.where(left, gain, -np.inf).argmax())
        order.append(taken)
        novelty.append(float(distance[taken] / scale))
        left[taken] = False
        distance = np.minimum(distance, np.linalg.norm(features - features[taken], axis=1))
    return order, novelty


def _count_classes(logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor]:
    k = logits_a.shape[0]
    a, b = logits_a.argmax(0), logits_b.argmax(0)
    p = (logits_a.softmax(0) + logits_b.softmax(0)) / 2
    entropy = torch.special.entr(p).sum(0).double() / math.log(k)
    same = a == b
    found = torch.stack([torch.bincount(labels, minlength=k) for labels in (a, b, a[same])])
    sums = torch.bincount(a, weights=entropy, minlength=k)
    sums += torch.bincount(b[~same], weights=entropy[~same], minlength=k)
    return found, sums


def _count_regions(logits_a: Tensor, logits_b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = logits_a > 0, logits_b > 0
    p = ((logits_a.sigmoid() + logits_b.sigmoid()) / 2).clamp(0, 1)
    entropy = (torch.special.entr(p) + torch.special.entr(1 - p)).double() / math.log(2)
    found = torch.stack([a.sum(1), b.sum(1), (a & b).sum(1)])
    return found, (entropy * (a | b)).sum(1)
