# SPDX-License-Identifier: Apache-2.0
"""Losses made group by group, and the gradients that go back into each group, against all patches at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnunet_dhc.core import CLD, CReST, DiffDW, DistDW, SimiS, Unweighted
from nnunet_dhc.core.class_weighting import ClassWeighting
from nnunet_dhc.core.co_training import CoTrainingObjective, CoTrainingTerms, LossComposition
from nnunet_dhc.core.label_spaces import ClassLabels, LabelSpace, RegionLabels
from nnunet_dhc.core.term_sums import backward_from_sums, gradients_by_group, join_sums

K, SIZE, NUM_LABELED, NUM_PATCHES = 4, 4, 3, 5
FACTORS = (0.6, 0.4, 0.0)
LABELS: dict[str, LabelSpace] = {
    "classes": ClassLabels(K),
    "ignored classes": ClassLabels(K, ignore_label=K),
    "regions": RegionLabels(K - 1),
    "ignored regions": RegionLabels(K - 1, has_ignore_channel=True),
}
COMPOSITIONS = {
    "default": {},
    "per sample": {"dice_pooled_over_batch": False},
    "unsupervised Dice": {"unsupervised_dice": 0.7},
    "unsupervised Dice per sample": {"unsupervised_dice": 0.7, "dice_pooled_over_batch": False},
    "on unlabeled": {"unsupervised_on_labeled": False, "unsupervised_dice": 0.7},
    "confident": {"confidence_threshold": 0.6, "unsupervised_dice": 0.7},
    "one resolution": {"unsupervised_deep_supervision": False},
    "Dice alone": {"supervised_ce": 0.0, "unsupervised_ce": 0.0, "unsupervised_dice": 1.0},
    "no supervised term": {"supervised_ce": 0.0, "supervised_dice": 0.0},
    "counts from labeled": {"counts_from_labeled": True},
}
GROUPS = {  # rows of each group, labeled patches (the first three) first; a group is labeled or unlabeled
    "two": [slice(0, 3), slice(3, 5)],
    "five": [slice(i, i + 1) for i in range(5)],
    "mixed": [slice(0, 4), slice(4, 5)],
}


def make_objective(labels: LabelSpace, composition: dict) -> CoTrainingObjective:
    objective = CoTrainingObjective(labels, DiffDW(K), DistDW(K), LossComposition(**composition), FACTORS)
    for weighting in objective.weightings:
        weighting.initialize(torch.tensor([100, 20, 3, 1]))
    return objective


def make_step(labels: LabelSpace, dtype: torch.dtype) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Logits of both networks (leaves) and the reference, by output."""
    generator = torch.Generator().manual_seed(1)
    heads = K if isinstance(labels, ClassLabels) else K - 1
    sizes = [SIZE // 2**i for i in range(len(FACTORS))]
    outputs = [
        [torch.randn(NUM_PATCHES, heads, *[n] * 3, generator=generator, dtype=dtype).requires_grad_() for n in sizes]
        for _ in range(2)
    ]
    if isinstance(labels, ClassLabels):
        highest = K + (labels.ignore_label is not None)
        targets = [torch.randint(0, highest, (NUM_LABELED, 1, *[n] * 3), generator=generator).short() for n in sizes]
    else:
        channels = K - 1 + labels.has_ignore_channel
        targets = [torch.rand(NUM_LABELED, channels, *[n] * 3, generator=generator) > 0.6 for n in sizes]
    return outputs, targets


def by_group(
    objective: CoTrainingObjective,
    outputs: list[list[Tensor]],
    targets: list[Tensor],
    groups: list[slice],
    loss_weight: float,
    unsupervised: bool,
) -> CoTrainingTerms:
    """As the low-memory step does it, with logits in place of networks; gradients go into `outputs`."""
    pseudo = objective.pseudo_labels(outputs[0][0], outputs[1][0])
    weights_a, weights_b = (update.weights for update in objective.update_weights(*pseudo, targets[0]))

    def sums_of(network: int, rows: slice):
        peer = 1 - network
        own_targets = [target[rows] for target in targets] if rows.start < NUM_LABELED else []
        target = objective.peer_target(pseudo[peer][rows], outputs[peer][0][rows]) if unsupervised else None
        return objective.sums([logits[rows] for logits in outputs[network]], own_targets, target)

    with torch.no_grad():
        sums = [[sums_of(network, rows) for rows in groups] for network in range(2)]
    leaves = [join_sums(of_network).as_leaves() for of_network in sums]
    terms = objective.losses(*leaves, weights_a, weights_b)
    gradients = gradients_by_group(terms.total(loss_weight), leaves, sums)
    for network in range(2):
        for rows, of_group in zip(groups, gradients[network], strict=True):
            backward_from_sums(sums_of(network, rows), of_group)
    return terms


def check(labels: LabelSpace, composition: dict, groups: list[slice], dtype: torch.dtype, loss_weight: float = 0.3,
          unsupervised: bool = True) -> None:
    objective = make_objective(labels, composition)
    outputs, targets = make_step(labels, dtype)
    pseudo = objective.pseudo_labels(outputs[0][0], outputs[1][0])
    weights_a, weights_b = (update.weights for update in objective.update_weights(*pseudo, targets[0]))
    expected = objective.terms(*outputs, targets, *pseudo, weights_a, weights_b, unsupervised)
    expected.total(loss_weight).backward()
    gradients = [logits.grad for network in outputs for logits in network]
    for network in outputs:
        for logits in network:
            logits.grad = None
    got = by_group(make_objective(labels, composition), outputs, targets, groups, loss_weight, unsupervised)
    tolerance = {"rtol": 1e-10, "atol": 1e-15} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 1e-9}
    for name in ("supervised_a", "supervised_b", "unsupervised_a", "unsupervised_b", "empty_cross_entropies"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), **tolerance)
    for logits, gradient in zip((z for network in outputs for z in network), gradients, strict=True):
        if gradient is None:
            assert logits.grad is None
        else:
            found = torch.zeros_like(gradient) if logits.grad is None else logits.grad
            torch.testing.assert_close(found, gradient, **tolerance)


@pytest.mark.parametrize("composition", COMPOSITIONS.values(), ids=COMPOSITIONS)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_gradients_are_those_of_the_joined_batch(labels: LabelSpace, composition: dict) -> None:
    check(labels, composition, GROUPS["five"], torch.float64)
    check(labels, composition, GROUPS["two"], torch.float32)


def test_a_group_may_hold_labeled_and_unlabeled_patches() -> None:
    check(LABELS["classes"], {"unsupervised_dice": 1.0}, GROUPS["mixed"], torch.float64)


@pytest.mark.parametrize(("loss_weight", "unsupervised"), [(0.0, True), (0.0, False)])
def test_patches_that_nothing_depends_on_get_no_gradient(loss_weight: float, unsupervised: bool) -> None:
    check(LABELS["classes"], {}, GROUPS["two"], torch.float64, loss_weight, unsupervised)


def test_sums_of_groups_are_those_of_the_batch() -> None:
    """Bit by bit: every sample is summed by itself, in the same order."""
    objective = make_objective(LABELS["classes"], {"unsupervised_dice": 1.0})
    outputs, targets = make_step(LABELS["classes"], torch.float32)
    pseudo, _ = objective.pseudo_labels(outputs[1][0], outputs[0][0])
    whole = objective.sums(outputs[0], targets, pseudo).tensors()
    parts = []
    for rows in GROUPS["five"]:
        own_targets = [target[rows] for target in targets] if rows.start < NUM_LABELED else []
        parts.append(objective.sums([logits[rows] for logits in outputs[0]], own_targets, pseudo[rows]))
    joined = join_sums(parts).tensors()
    assert joined.keys() == whole.keys() and len(whole) == 2 * 2 * 3  # terms, outputs that count, sums
    for key, value in whole.items():
        assert torch.equal(joined[key], value), key


@pytest.mark.parametrize("make", [
    lambda: DiffDW(K), lambda: DiffDW(K, accumulation="window"), lambda: DistDW(K), lambda: CReST(K), lambda: SimiS(K),
    lambda: CLD(K), lambda: Unweighted(K),
])
def test_snapshot_is_not_written_into(make) -> None:
    weighting: ClassWeighting = make()
    weighting.initialize(torch.tensor([100, 20, 3, 1]))
    snapshot, copies = weighting.snapshot(), weighting.state_dict()
    for statistic in ([0.5, 0.2, 0.9, 0.1], [0.1, 0.8, 0.3, 0.2]):
        weighting.update(torch.tensor(statistic))
    assert snapshot.keys() == copies.keys()
    for name, value in copies.items():
        assert torch.equal(torch.as_tensor(snapshot[name]), torch.as_tensor(value)), name
    weighting.revert_where(torch.tensor(True), snapshot)
    for name, value in weighting.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(copies[name])), name
