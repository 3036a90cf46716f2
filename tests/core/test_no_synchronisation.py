# SPDX-License-Identifier: Apache-2.0
"""What the core does in a step never waits for a GPU: run on fake CUDA tensors, which have no values to wait for.

An operation that needs values on the host (``item``, ``nonzero``, ``bincount``) raises under `FakeTensorMode`; copies
between host and device are counted here. No GPU is needed, and autograd's engine can't run, so backward is called by
hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_dhc.core import CLD, CReST, DiffDW, DistDW, SimiS, Unweighted, label_spaces
from nnunet_dhc.core.class_counts import count_voxels
from nnunet_dhc.core.co_training import CoTrainingObjective, CoTrainingTerms, LossComposition, counts_of, overlaps_of
from nnunet_dhc.core.label_spaces import ClassLabels, LabelSpace, RegionLabels
from nnunet_dhc.core.loss_sums import _SoftmaxSums
from nnunet_dhc.core.term_sums import join_sums
from nnunet_dhc.core.voxel_pieces import SamplesRead

K = 4
_REAL = torch.zeros(1)


class Crossings(TorchDispatchMode):
    """Lists the operations that take or give tensors of both sides: each copies, and waits for the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        kinds = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        if len(kinds) > 1:
            self.found.append(str(function))
        return result


@pytest.fixture
def fake() -> Iterator[None]:
    label_spaces._nearest_positions.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            for tensor in (torch.zeros(1), _REAL, torch.randn(1, device="cuda")):
                tensor.to("cuda")
        except RuntimeError as error:  # torch 2.5
            pytest.skip(f"this torch can't fake CUDA tensors without a driver: {type(error).__name__}")
        yield
    label_spaces._nearest_positions.cache_clear()  # it holds fake tensors


def step(objective: CoTrainingObjective, outputs: list[list[Tensor]], targets: list[Tensor]) -> CoTrainingTerms:
    """All that `whole_step` asks of the core: both networks at once, and one after the other."""
    before = [weighting.snapshot() for weighting in objective.weightings]
    unlabeled_target = objective.labels.pseudo_label(outputs[0][0][2:])
    update = objective.update_weights_of(
        objective.weightings[0], objective.labels.pseudo_label(outputs[0][0]), targets[0]
    )
    objective.losses_of(objective.sums(outputs[0], targets, unlabeled_target), update.weights).total(0.3)
    pseudo = objective.pseudo_labels(outputs[0][0], outputs[1][0])
    updates = objective.update_weights(*pseudo, targets[0])
    terms = objective.terms(*outputs, targets, *pseudo, *(update.weights for update in updates))
    counts_of(updates), overlaps_of(updates)
    total = terms.total(0.3)
    for weighting, state in zip(objective.weightings, before, strict=True):
        weighting.revert_where(~torch.isfinite(total.detach()), state)
    return terms


LABELS = {
    "classes": ClassLabels(K),
    "ignored classes": ClassLabels(K, ignore_label=K),
    "an ignored class among them": ClassLabels(K, ignore_label=K - 1),
    "regions": RegionLabels(K - 1),
    "ignored regions": RegionLabels(K - 1, has_ignore_channel=True),
}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("threshold", [0.0, 0.6])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_losses_and_weights(labels: LabelSpace, threshold: float) -> None:
    composition = LossComposition(unsupervised_dice=1.0, confidence_threshold=threshold)
    check(CoTrainingObjective(labels, DiffDW(K), DistDW(K), composition, (0.7, 0.3)), labels)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("weighting", [
    DiffDW(K, mode="released"), DiffDW(K, accumulation="window", init="first_observation"), DistDW(K, mode="released"),
    CReST(K), SimiS(K), CLD(K), Unweighted(K),
], ids=lambda weighting: type(weighting).__name__)
def test_every_weighting(weighting) -> None:
    labels = ClassLabels(K)
    check(CoTrainingObjective(labels, weighting, DistDW(K), LossComposition(counts_from_labeled=True)), labels)


def check(objective: CoTrainingObjective, labels: LabelSpace) -> None:
    heads = K if isinstance(labels, ClassLabels) else K - 1
    channels = 1 if isinstance(labels, ClassLabels) else heads + labels.has_ignore_channel
    sizes = [8, 4][: len(objective.output_factors)]
    outputs = [[torch.zeros(4, heads, n, n, n, device="cuda").requires_grad_() for n in sizes] for _ in range(2)]
    targets = [torch.zeros(2, channels, n, n, n, device="cuda", dtype=torch.int16) for n in sizes]
    for weighting in objective.weightings:
        weighting.initialize(torch.ones(K, device="cuda"))
        weighting.to("cuda")
    step(objective, outputs, targets)  # caches what does not change from step to step
    objective.weight_exponents = 0.5, 1.0  # the background's and that of the others
    with Crossings() as crossings:
        terms = step(objective, outputs, targets)
    assert crossings.found == []
    assert terms.total(0.3).device.type == "cuda"


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("ignore", [-1, K])
@pytest.mark.parametrize("overlap", [False, True])
def test_backward_of_the_losses(ignore: int, overlap: bool) -> None:
    logits = torch.zeros(2, K, 64, device="cuda", dtype=torch.float16)
    target = torch.zeros(2, 64, device="cuda", dtype=torch.int16)
    context = SimpleNamespace(
        reads=[SamplesRead(0, 2, ignore, overlap), SamplesRead(1, 1, -1, False)],
        saved_tensors=(logits, torch.zeros(2, 64, device="cuda"), target, target[1:]),
    )
    gradients = [*torch.zeros(4, 2, K, device="cuda"), *torch.zeros(4, 1, K, device="cuda")]
    with Crossings() as crossings:
        found = _SoftmaxSums.backward(context, *gradients)[0]
    assert crossings.found == [] and found.shape == logits.shape and found.dtype == torch.float16


@pytest.mark.usefixtures("fake")
def test_sums_of_groups() -> None:
    objective = CoTrainingObjective(ClassLabels(K), DiffDW(K), DistDW(K), LossComposition())
    logits = torch.zeros(2, K, 8, 8, 8, device="cuda")
    with Crossings() as crossings:
        target = objective.peer_target(objective.labels.pseudo_label(logits), logits)
        sums = objective.sums([logits], [target], target)
        leaves = join_sums([sums, sums]).as_leaves()
        weights = torch.ones(K, device="cuda")
        objective.losses(leaves, leaves, weights, weights)
    assert crossings.found == []


@pytest.mark.usefixtures("fake")
def test_a_wait_would_be_found() -> None:
    value = torch.ones((), device="cuda")
    with pytest.raises(DataDependentOutputException):
        value.item()
    with Crossings() as crossings:
        value.cpu()
        torch.ones(2).to("cuda")
        assert count_voxels(torch.zeros(3, device="cuda", dtype=torch.uint8), 2).shape == (2,)
    assert len(crossings.found) == 2
