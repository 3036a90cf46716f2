# SPDX-License-Identifier: Apache-2.0
"""The low-memory mode: the same steps as the normal mode, with less in memory, and chosen when memory runs out."""

from __future__ import annotations

import weakref

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_training import make_trainer
from torch import nn
from two_ranks import batches, start

from nnunet_dhc.nnunet.training import low_memory_step as module
from nnunet_dhc.nnunet.training import step_mode
from nnunet_dhc.nnunet.training.low_memory_step import PatchGroup, patch_groups
from nnunet_dhc.nnunet.training.recipe import Recipe
from nnunet_dhc.nnunet.training.step_mode import StepMode

FULL = {"lambda_max": 1.0, "ramp_length": 0.0}
SETTINGS = {
    "default": {},
    "pooled": {"dice_pooled_over_batch": True, "unsupervised_dice": 0.7},
    "per sample": {"dice_pooled_over_batch": False, "unsupervised_dice": 0.7},
    "on unlabeled": {"unsupervised_on": "unlabeled", "unsupervised_deep_supervision": False},
    "confident": {"confidence_threshold": 0.3, "unsupervised_dice": 0.7},
    "pasted": {"paste_side": 0.5, "unsupervised_dice": 0.7},
    "plain patches": {"paste_side": 0.0},
    "on all patches": {"unsupervised_on": "all"},
    "lambda 0": {"lambda_max": 0.0},
    "no unsupervised term": {"unsupervised_ce": 0.0, "unsupervised_dice": 0.0},
    "no supervised term": {"supervised_ce": 0.0, "supervised_dice": 0.0, "unlabeled_schedule": "always"},
    "all counts": {"weighting_a": "simis", "weighting_b": "crest", "counts_from": "labeled"},
}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "small": 3}
IGNORE = {"background": 0, "large": 1, "middle": 2, "small": 3, "ignore": 4}


@pytest.fixture(scope="module")
def dataset(tiny_dataset_template, tmp_path_factory):
    """A copy of the tiny dataset for this file; its tests write a split and results."""
    with pytest.MonkeyPatch.context() as patch:
        yield tiny_dataset_template.copied_to(tmp_path_factory.mktemp("low_memory") / "nnunet", patch)


@pytest.fixture
def labels(request, monkeypatch, dataset):
    """Other labels for the trainers of a test: a key of dataset.json, or None."""
    value = getattr(request, "param", None)
    if value is not None:
        content = {**dataset.dataset_json, "labels": value}
        if value is REGIONS:
            content["regions_class_order"] = [1, 2, 3]
        monkeypatch.setattr(type(dataset), "dataset_json", content)
    return value


def started(dataset, name: str = "nnUNetTrainerDHC", **settings):
    """A trainer in float64 before its first step; no case is loaded."""
    trainer = make_trainer(dataset, name, **{**FULL, **settings})
    trainer.print_to_log_file = lambda *texts, **_: trainer.printed.append(" ".join(map(str, texts)))
    trainer.printed = []
    start(trainer)
    trainer.printed.clear()
    return trainer


def some_batches(number: int, labels: dict | None) -> list[dict]:
    made = batches(number)
    generator = torch.Generator().manual_seed(2)
    for batch in made:
        if labels is REGIONS:
            batch["target"] = [torch.cat([t > 0, t > 1, t > 2], 1) for t in batch["target"]]
        elif labels is IGNORE:
            for target in batch["target"]:
                target[torch.rand(target.shape, generator=generator) < 0.3] = 4
    return made


def run(trainer, steps: list[dict], patches_at_once: int | None = None) -> list[dict]:
    """Losses, gradients and states after each step."""
    if patches_at_once is not None:
        trainer.step_mode.patches_at_once = patches_at_once
    result = []
    for batch in steps:
        loss = trainer.train_step(batch)["loss"]
        result.append({
            "loss": float(loss),
            "gradients": {n: p.grad.clone() for n, p in trainer.pair.named_parameters() if p.grad is not None},
            "parameters": {name: value.clone() for name, value in trainer.pair.state_dict().items()},
            "weightings": [weighting.state_dict() for weighting in trainer.objective.weightings],
        })
    log = trainer.statistics.read()
    names = ("losses", "pseudo_label_share_a", "pseudo_label_share_b", "empty_cross_entropies")
    shares = {name: torch.tensor(log[name]).float() for name in log if name.endswith("gradient_share")}  # measured so
    return [*result, {name: log[name] for name in names}, shares]


def assert_same(got: list[dict], expected: list[dict]) -> None:
    torch.testing.assert_close(got[:-1], expected[:-1], rtol=1e-9, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(got[-1], expected[-1], rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_steps_are_those_of_the_normal_mode(dataset, settings) -> None:
    steps = some_batches(2, None)
    expected = run(started(dataset, low_memory="off", **settings), steps)
    trainer = started(dataset, low_memory="on", **settings)
    assert trainer.step_mode.name == "low memory, 2 patches at once"
    assert_same(run(trainer, steps), expected)


def test_halves_of_the_batch_give_the_step_of_the_whole(dataset) -> None:
    steps = [*some_batches(1, None), {**some_batches(1, None)[0], "unlabeled": None}]
    results = []
    for in_halves in (False, True):
        trainer = started(dataset, low_memory="off")
        trainer.step_mode._in_halves = in_halves
        results.append(run(trainer, steps))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("labels", [REGIONS, IGNORE], indirect=True, ids=["regions", "ignore label"])
def test_other_labels(dataset, labels) -> None:
    steps = some_batches(1, labels)
    settings = {"unsupervised_dice": 0.7, "confidence_threshold": 0.3}
    expected = run(started(dataset, low_memory="off", **settings), steps)
    assert_same(run(started(dataset, low_memory="on", **settings), steps, patches_at_once=1), expected)


def test_without_unlabeled_patches(dataset) -> None:
    steps = [{**batch, "unlabeled": None} for batch in some_batches(1, None)]
    for name in ("nnUNetTrainerDHC", "nnUNetTrainerPairSupervised"):
        expected = run(started(dataset, name, low_memory="off"), steps)
        assert_same(run(started(dataset, name, low_memory="on"), steps), expected)


def test_without_deep_supervision(dataset) -> None:
    """The network gives a tensor then, not a list."""
    steps = [{**batch, "target": batch["target"][0]} for batch in some_batches(1, None)]
    results = []
    for mode in ("off", "on"):
        trainer = started(dataset, low_memory=mode)
        trainer.set_deep_supervision_enabled(False)
        trainer.objective.output_factors = (1.0,)
        results.append(run(trainer, steps))
    assert_same(results[1], results[0])


def test_non_finite_step_leaves_no_trace(dataset) -> None:
    batch, good = some_batches(2, None)
    batch["data"][0, 0, 0, 0, 0] = float("nan")
    trainer = started(dataset, low_memory="on")
    before = {name: value.clone() for name, value in trainer.pair.state_dict().items()}
    weightings = [weighting.state_dict() for weighting in trainer.objective.weightings]
    after = run(trainer, [batch])[0]
    assert trainer.statistics.non_finite_steps == 1
    torch.testing.assert_close(after["parameters"], before, rtol=0, atol=0)
    torch.testing.assert_close(after["weightings"], weightings, rtol=0, atol=0)
    run(trainer, [good])
    assert trainer.statistics.non_finite_steps == 1 and trainer.statistics.finite_steps == 1


# ---- what it costs ----


class GraphMemory:
    """Bytes that graphs keep for their backward pass, now and at most; a storage counts once."""

    def __init__(self) -> None:
        self.peak, self._alive = 0, {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)

    def __enter__(self) -> GraphMemory:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: torch.Tensor):
        held = _Held(tensor)
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            size, count = self._alive.get(key, (storage.nbytes(), 0))
            self._alive[key] = (size, count + 1)
            weakref.finalize(held, self._release, key)
            self.peak = max(self.peak, sum(size for size, _ in self._alive.values()))
        return held

    def _release(self, key: int) -> None:
        size, count = self._alive.pop(key)
        if count > 1:
            self._alive[key] = (size, count - 1)


class _Held:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def graph_memory(trainer, batch: dict) -> int:
    trainer.train_step(dict(batch))  # the first step measures gradient shares
    with GraphMemory() as memory:
        trainer.train_step(dict(batch))
    return memory.peak


def test_graphs_hold_no_more_than_a_stock_step(dataset) -> None:
    batch = some_batches(1, None)[0]
    batch["data"], batch["unlabeled"] = batch["data"][:2], batch["unlabeled"][:2]  # the plans' batch size
    batch["target"] = [target[:2] for target in batch["target"]]
    plans = {**dataset.plans_content(), "continue_training": False}
    stock = nnUNetTrainer(plans, "3d_fullres", 0, dataset.dataset_json, torch.device("cpu"))
    build = nnUNetTrainer.build_network_architecture
    stock.build_network_architecture = lambda plans_manager, *others: build(plans_manager, *others).double()
    stock.initialize()
    of_stock = graph_memory(stock, batch)
    both_at_once = started(dataset, low_memory="off", unsupervised_on="all")
    assert graph_memory(both_at_once, batch) > 3 * of_stock
    one_after_the_other = started(dataset, low_memory="off")
    assert graph_memory(one_after_the_other, batch) < 2 * of_stock
    of_low_memory = graph_memory(started(dataset, low_memory="on"), batch)
    assert of_low_memory <= 1.05 * of_stock
    one_by_one = started(dataset, low_memory="on")
    one_by_one.step_mode.patches_at_once = 1
    assert graph_memory(one_by_one, batch) < 0.6 * of_stock


@pytest.mark.parametrize(("paste_side", "for_mixing"), [(0.0, 0), (0.5, 2)])
def test_number_of_passes(dataset, paste_side, for_mixing) -> None:
    """Two looks at two groups, and a pass with a graph for each but the last look; mixing adds one of each network."""
    batch = some_batches(1, None)[0]
    trainer = started(dataset, low_memory="on", paste_side=paste_side)
    trainer.step_mode.patches_at_once = 3
    with_graph = []
    for network in trainer.pair.sub_networks:
        network.register_forward_hook(lambda *_: with_graph.append(torch.is_grad_enabled()))
    trainer.train_step(batch)
    assert with_graph.count(False) == 3 + for_mixing and with_graph.count(True) == 4


def test_groups() -> None:
    assert patch_groups(2, 4, 2) == [PatchGroup(slice(0, 2), True), PatchGroup(slice(2, 4), False)]
    assert patch_groups(3, 4, 2) == [
        PatchGroup(slice(0, 2), True), PatchGroup(slice(2, 3), True), PatchGroup(slice(3, 4), False)
    ]
    assert patch_groups(2, 2, 5) == [PatchGroup(slice(0, 2), True)]


# ---- layers that draw numbers or look at other patches ----


def test_second_pass_sees_the_dropout_of_the_first(dataset) -> None:
    trainer = started(dataset, low_memory="on")
    for network in trainer.pair.sub_networks:
        for stage in network.encoder.stages:
            stage.append(nn.Dropout3d(0.5))
    seen: dict[tuple, list] = {}
    stock = module._LowMemoryStep._outputs

    def outputs(self, network, number):
        result = stock(self, network, number)
        seen.setdefault((network, number), []).append(result[0].detach())
        return result

    after_first_passes = []
    update_weights = trainer.objective.update_weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._LowMemoryStep, "_outputs", outputs)
        patch.setattr(trainer.objective, "update_weights", lambda *arguments: (
            after_first_passes.append(torch.get_rng_state()) or update_weights(*arguments)))
        trainer.train_step(some_batches(1, None)[0])
    assert sorted(map(len, seen.values())) == [1, 2, 2, 2, 2, 2, 2, 2]
    for results in seen.values():
        assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(torch.get_rng_state(), after_first_passes[0]), "the next step would draw some numbers again"


class WithBatchNorm:
    """The little that StepMode asks of a trainer."""

    pair, is_ddp, batch_size, device = nn.Sequential(nn.BatchNorm3d(2)), False, 2, torch.device("cpu")


def test_batch_normalization_is_refused_and_never_chosen() -> None:
    with pytest.raises(NotImplementedError, match="batch normalization"):
        StepMode("on", WithBatchNorm())
    mode = StepMode("auto", WithBatchNorm())
    assert not mode._adapts and not mode._in_halves


# ---- memory that runs out ----


def fails_at(monkeypatch, name: str, times: int, error: Exception) -> None:
    """Let a kind of step raise after its backward pass, the worst moment."""
    stock, left = getattr(step_mode, name), [times]

    def step(*arguments):
        outcome = stock(*arguments)
        if left[0]:
            left[0] -= 1
            raise error
        return outcome

    monkeypatch.setattr(step_mode, name, step)


def test_falls_back_when_memory_runs_out(dataset, monkeypatch) -> None:
    steps = some_batches(2, None)
    expected = run(started(dataset, low_memory="off"), steps)
    trainer = started(dataset)
    assert Recipe().low_memory == "auto" and trainer.step_mode.name == "normal"
    fails_at(monkeypatch, "whole_step", 1, torch.OutOfMemoryError("CUDA out of memory."))
    fails_at(monkeypatch, "low_memory_step", 1, RuntimeError("MPS backend out of memory"))
    assert_same(run(trainer, steps), expected)
    assert trainer.step_mode.name == "low memory, 1 patch at once"
    assert len(trainer.printed) == 2 and "(normal) does not fit" in trainer.printed[0]
    assert "low memory, 1 patch at once" in trainer.printed[1]


def test_falls_back_when_memory_runs_out_between_the_networks(dataset) -> None:
    steps = some_batches(2, None)
    expected = run(started(dataset, low_memory="off"), steps)
    trainer = started(dataset)
    left = [1]

    def fail(network, arguments) -> None:
        a_is_trained = any(parameter.grad is not None for parameter in trainer.pair.sub_network_a.parameters())
        if a_is_trained and left[0]:
            left[0] = 0
            raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.pair.sub_network_b.register_forward_pre_hook(fail)
    assert_same(run(trainer, steps), expected)
    assert left == [0] and trainer.step_mode.name.startswith("low memory")


@pytest.mark.parametrize(("setting", "name", "times", "error"), [
    ("off", "whole_step", 1, torch.OutOfMemoryError("out of memory")),
    ("auto", "whole_step", 1, RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
])
def test_error_is_passed_on(dataset, monkeypatch, setting, name, times, error) -> None:
    trainer = started(dataset, low_memory=setting)
    fails_at(monkeypatch, name, times, error)
    with pytest.raises(RuntimeError) as caught:
        trainer.train_step(some_batches(1, None)[0])
    assert caught.value is error


def test_goes_on_with_fewer_patches(dataset, monkeypatch) -> None:
    trainer = started(dataset, low_memory="on")
    fails_at(monkeypatch, "low_memory_step", 1, torch.OutOfMemoryError("out of memory"))
    trainer.train_step(some_batches(1, None)[0])
    assert trainer.step_mode.patches_at_once == 1 and len(trainer.printed) == 1


def test_gives_up_at_one_patch(dataset, monkeypatch) -> None:
    trainer = started(dataset)
    for name in ("whole_step", "low_memory_step"):
        fails_at(monkeypatch, name, 9, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train_step(some_batches(1, None)[0])
    assert trainer.step_mode.patches_at_once == 1
