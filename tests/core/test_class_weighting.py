# SPDX-License-Identifier: Apache-2.0
"""What holds for every class weighting."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnunet_dhc.core import CLD, ClassWeighting, CReST, DiffDW, DistDW, SimiS, Unweighted
from nnunet_dhc.core.class_counts import hard_dice
from nnunet_dhc.core.class_weighting import tempered
from nnunet_dhc.core.label_spaces import ClassLabels, LabelSpace, RegionLabels

K = 4
LABELED = torch.tensor([100_000, 5_000, 700, 30])
Factory = Callable[[], ClassWeighting]


def _makers() -> dict[str, Factory]:
    makers: dict[str, Factory] = {}
    for cls, mode in itertools.product((DistDW, DiffDW, CReST, SimiS, CLD, Unweighted), ("robust", "released")):
        makers[f"{cls.__name__}-{mode}"] = lambda cls=cls, mode=mode: cls(K, mode=mode)
    makers["DiffDW-window"] = lambda: DiffDW(K, tau=5, accumulation="window", init="first_observation")
    return makers


MAKERS = _makers()
ROBUST = [name for name in MAKERS if "released" not in name]
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
every_robust = pytest.mark.parametrize("make", [MAKERS[name] for name in ROBUST], ids=ROBUST)


def statistic(weighting: ClassWeighting, counts: Tensor, seed: int = 0) -> Tensor | None:
    """Counts, or a Dice that is NaN for the classes without voxels."""
    if weighting.reads == "nothing":
        return None
    if weighting.reads != "labeled_dice":
        return counts
    dice = torch.rand(len(counts), generator=torch.Generator().manual_seed(seed))
    return torch.where(counts > 0, dice, torch.full_like(dice, float("nan")))


@every_robust
@pytest.mark.parametrize(
    "counts",
    [(5000, 0, 0, 0), (0, 0, 0, 777), (1000, 100, 0, 10), (0, 10, 0, 10), (250, 250, 250, 250), (0, 0, 0, 0)],
    ids=["all background", "single class", "absent class", "absent background", "equal", "nothing"],
)
@pytest.mark.parametrize("initial", [(100_000, 5_000, 700, 30), (10, 10, 10, 10), (10, 0, 0, 0), (0, 0, 0, 0)])
def test_degenerate_batches(make: Factory, counts: tuple[int, ...], initial: tuple[int, ...]) -> None:
    weighting = make()
    weighting.initialize(torch.tensor(initial))
    for seed in range(3):
        weights = weighting.update(statistic(weighting, torch.tensor(counts), seed))
        assert weights.shape == (K,) and weights.dtype == torch.float32
        assert weights.isfinite().all() and (weights >= 0).all() and weights.max() > 0
    weights = weighting.update(statistic(weighting, LABELED))
    assert weights.isfinite().all()


@every
def test_resume_continues_as_if_nothing_had_happened(make: Factory, tmp_path) -> None:
    counts = [torch.tensor([9000, 40 * i, 7, max(0, 3 - i)]) for i in range(1, 6)]
    straight, stopped = make(), make()
    for weighting in (straight, stopped):
        weighting.initialize(LABELED)
        for i, c in enumerate(counts[:3]):
            weighting.update(statistic(weighting, c, i))
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed = make()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for i, c in enumerate(counts[3:]):
        expected = straight.update(statistic(straight, c, 10 + i))
        torch.testing.assert_close(
            resumed.update(statistic(resumed, c, 10 + i)), expected, rtol=0, atol=0, equal_nan=True
        )


@every
def test_state_is_a_copy(make: Factory) -> None:
    weighting = make()
    weighting.initialize(LABELED)
    state = weighting.state_dict()
    kept = {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
    weighting.update(statistic(weighting, torch.tensor([900, 50, 20, 3])))
    for name, value in kept.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    weights = weighting.weights.clone()
    weighting.state_dict()["weights"].zero_()
    assert torch.equal(weighting.weights, weights)


@every
def test_revert_where(make: Factory) -> None:
    weighting = make()
    weighting.initialize(LABELED)
    before = weighting.state_dict()
    weighting.update(statistic(weighting, torch.tensor([900, 50, 20, 3])))
    after = weighting.state_dict()
    weighting.revert_where(torch.tensor(False), before)
    _assert_same(weighting.state_dict(), after)
    weighting.revert_where(torch.tensor(True), before)
    _assert_same(weighting.state_dict(), before)


def _assert_same(a: dict[str, object], b: dict[str, object]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


@every
def test_saved_state_of_another_kind_is_refused(make: Factory) -> None:
    weighting = make()
    state = weighting.state_dict()
    with pytest.raises(ValueError, match="no state of"):
        weighting.load_state_dict({"num_classes": K, "something": torch.ones(K)})
    with pytest.raises(ValueError, match="shape"):
        weighting.load_state_dict({**state, "weights": torch.ones(K + 1)})
    if weighting.mode == "robust":
        with pytest.raises(ValueError, match="not finite"):
            weighting.load_state_dict({**state, "weights": torch.full((K,), float("nan"))})


@every
def test_wrong_arguments(make: Factory) -> None:
    weighting = make()
    with pytest.raises(ValueError, match="shape"):
        weighting.initialize(torch.ones(K + 1))
    if weighting.reads != "nothing":
        with pytest.raises(ValueError, match="shape"):
            weighting.update(torch.ones(K + 1))
        with pytest.raises(ValueError, match="needs its statistic"):
            weighting.update()
    with pytest.raises(ValueError, match="mode"):
        type(weighting)(K, mode="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_classes"):
        type(weighting)(1)


@every
def test_statistic_in_any_dtype_gives_the_same_weights(make: Factory) -> None:
    counts = torch.tensor([1024, 256, 32, 8])  # exact in float16
    results = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32):
        weighting = make()
        weighting.initialize(counts.to(dtype))
        given_ = counts.to(dtype)
        if weighting.reads == "labeled_dice":
            given_ = torch.tensor([0.5, 0.25, 0.125, 1.0]).to(dtype if dtype.is_floating_point else torch.float32)
        results.append(weighting.update(given_))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@every
@pytest.mark.parametrize("labels", [ClassLabels(K, ignore_label=K), RegionLabels(K - 1)], ids=["classes", "regions"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_under_autocast_give_the_same_weights(
    make: Factory, labels: LabelSpace, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, K if isinstance(labels, ClassLabels) else K - 1, 6, 5, 4).to(dtype)  # exact in both
    target = labels.pseudo_label(torch.randn(logits.shape))
    results = []
    for case in (logits, logits.float()):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.dtype != torch.float32):
            weighting = make()
            weighting.initialize(LABELED)
            prediction = labels.pseudo_label(case)
            given_: Tensor | None = labels.count(prediction)
            if weighting.reads == "labeled_dice":
                given_ = hard_dice(*labels.overlap(prediction, target))
            elif weighting.reads == "nothing":
                given_ = None
            results.append(weighting.update(given_))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@every_robust
def test_a_thousand_random_steps(make: Factory) -> None:
    generator = torch.Generator().manual_seed(1)
    weighting = make()
    weighting.initialize(LABELED)
    for step in range(1000):
        counts = (torch.rand(K, generator=generator) ** 8 * 1e6).long()  # often 0
        given_ = statistic(weighting, counts, step)
        if given_ is not None and weighting.reads == "labeled_dice":
            given_ = given_.requires_grad_()
        weights = weighting.update(given_)
    assert weights.isfinite().all()
    assert not weights.requires_grad
    assert not any(value.requires_grad for value in weighting.state_dict().values() if isinstance(value, Tensor))


counts_strategy = st.lists(st.integers(0, 2**40), min_size=K, max_size=K).map(torch.tensor)


@every_robust
@settings(max_examples=25, deadline=None)
@given(data=st.data(), order=st.permutations(range(K)))
def test_renaming_the_classes_renames_the_weights(make: Factory, data: st.DataObject, order: list[int]) -> None:
    initial, counts = data.draw(counts_strategy), data.draw(counts_strategy)
    plain, renamed = make(), make()
    plain.initialize(initial)
    renamed.initialize(initial[order])
    given_ = statistic(plain, counts)
    expected = plain.update(given_)[order]
    actual = renamed.update(None if given_ is None else given_[order])
    assert expected.isfinite().all()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("cls", [DistDW, CReST, SimiS, DiffDW])
@settings(max_examples=20, deadline=None)
@given(counts=counts_strategy, scale=st.floats(0.1, 100))
def test_weights_are_linear_in_the_scale(cls: type, counts: Tensor, scale: float) -> None:
    one, scaled = cls(K, scale=1.0), cls(K, scale=scale)
    for weighting in (one, scaled):
        weighting.initialize(LABELED)
        weighting.update(statistic(weighting, counts))
    torch.testing.assert_close(scaled.weights, scale * one.weights)


@pytest.mark.parametrize("cls", [DistDW, CReST, SimiS])
def test_momentum_outside_its_range(cls: type) -> None:
    for momentum in (-0.1, 1.0):
        with pytest.raises(ValueError, match="momentum"):
            cls(K, momentum=momentum)


def test_unweighted() -> None:
    weighting = Unweighted(K)
    torch.testing.assert_close(weighting.initialize(LABELED), torch.ones(K))
    torch.testing.assert_close(weighting.update(), torch.ones(K))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every
def test_no_host_synchronization_and_same_weights_on_cuda(make: Factory) -> None:
    on_cpu, on_gpu = make(), make()
    on_gpu.to("cuda")
    given_ = statistic(on_cpu, torch.tensor([900, 50, 0, 3]))
    on_cpu.initialize(LABELED)
    labeled, moved = LABELED.cuda(), None if given_ is None else given_.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu.initialize(labeled)
        state = on_gpu.state_dict()
        on_gpu.update(moved)
        on_gpu.revert_where(on_gpu.weights.sum() < 0, state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(on_gpu.weights.cpu(), on_cpu.update(given_), equal_nan=True)


def test_tempered_weights():
    weights = torch.tensor([0.0, 1.0, 4.0, 16.0])
    assert tempered(weights, 1.0, False) is weights
    torch.testing.assert_close(tempered(weights, 0.5, False), torch.tensor([0.0, 4.0, 8.0, 16.0]))
    torch.testing.assert_close(tempered(weights, 0.5, True), torch.tensor([0.0, 4.0, 8.0, 16.0]) / 7.0)
    torch.testing.assert_close(tempered(weights, 0.0, True), torch.ones(4))
    assert torch.equal(tempered(torch.zeros(4), 0.5, True), torch.zeros(4))
    torch.testing.assert_close(tempered(weights, 0.5, False, 0.16), torch.tensor([6.4, 6.4, 8.0, 16.0]))
    assert torch.equal(tempered(torch.zeros(4), 1.0, False, 0.3), torch.zeros(4))
    each = torch.tensor([0.0, 1.0, 0.5, 1.0])
    torch.testing.assert_close(tempered(weights, each, False), torch.tensor([16.0, 1.0, 8.0, 16.0]))


def test_background_of_a_given_weight():
    weights = torch.tensor([20.0, 1.0, 4.0, 16.0])
    torch.testing.assert_close(tempered(weights, 1.0, False, 0.1, 0.25), torch.tensor([4.0, 1.6, 4.0, 16.0]))
    torch.testing.assert_close(tempered(weights, 0.5, False, 0.0, 0.25), torch.tensor([8.0, 4.0, 8.0, 16.0]))
    torch.testing.assert_close(tempered(weights, 1.0, False, 0.1, 0.0), torch.tensor([1.6, 1.6, 4.0, 16.0]))
    assert torch.equal(tempered(torch.zeros(4), 0.5, True, 0.02, 0.02), torch.zeros(4))
    assert weights[0] == 20, "the weights of the weighting itself are no others"


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20), st.floats(0, 1))
def test_tempering_keeps_the_order_and_the_largest(values, exponent):
    weights = torch.tensor(values)
    after = tempered(weights, exponent, False)
    torch.testing.assert_close(after.max(), weights.max())
    order = torch.argsort(weights)
    assert (after[order].diff() >= -1e-4).all()
    assert torch.isfinite(after).all()
