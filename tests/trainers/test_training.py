# SPDX-License-Identifier: Apache-2.0
"""What a training reads, what it learns from, and what it leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from shortcuts import predict_without_mirroring
from tiny_data import make_scan, write_image
from tiny_training import FOLD, assert_same, differs, log_lines, make_trainer, parameters

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host import installation
from nnunet_dhc.nnunet.network import cotrained_pair
from nnunet_dhc.nnunet.training import pair_trainer
from nnunet_dhc.nnunet.training.whole_step import as_list
from nnunet_dhc.nnunet.unlabeled.unlabeled_loader import HiddenLabelsDataset, UnlabeledDataLoader
from nnunet_dhc.reporting.run_files import read_run
from nnunet_dhc.reporting.training_curves import training_curves

FULL_RAMP = {"ramp_length": 0.0, "lambda_max": 1.0}


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    monkeypatch.setenv("nnUNet_dhc_seed", "7")


def train(dataset, name="nnUNetTrainerDHC", **settings):
    trainer = make_trainer(dataset, name, **settings)
    trainer.run_training()
    return trainer


def scramble_labels(dataset, identifiers) -> None:
    """Overwrite, after planning, all that is known of the labels of these cases: raw, preprocessed, and locations."""
    import blosc2
    from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle

    rng = np.random.default_rng(0)
    for case in identifiers:
        _, segmentation = make_scan(0)
        write_image(dataset.raw / "labelsTr" / f"{case}.nii.gz", rng.integers(0, 4, segmentation.shape, np.uint8))
        write_image(dataset.preprocessed / "gt_segmentations" / f"{case}.nii.gz", segmentation)
        for folder in dataset.preprocessed.glob("nnUNetPlans_*"):
            path = folder / f"{case}_seg.b2nd"
            if path.is_file():
                shape = blosc2.open(str(path)).shape
                path.unlink()
                blosc2.asarray(rng.integers(0, 4, shape).astype(np.int16), urlpath=str(path))
                properties = load_pickle(str(folder / f"{case}.pkl"))
                properties["class_locations"] = {c: rng.integers(0, 9, (5, 4)) for c in properties["class_locations"]}
                write_pickle(properties, str(folder / f"{case}.pkl"))


def test_labels_of_unlabeled_cases_are_never_read(tiny_dataset):
    before = train(tiny_dataset, **FULL_RAMP)
    weights = parameters(before), before.objective.weightings[1].weights.clone()
    scramble_labels(tiny_dataset, FOLD["unlabeled"])
    after = train(tiny_dataset, **FULL_RAMP)
    assert_same(weights[0], parameters(after))
    assert torch.equal(weights[1], after.objective.weightings[1].weights)


def test_a_split_that_is_edited_after_the_start_changes_neither_training_nor_validation(
    tiny_dataset, monkeypatch, no_process_pools
):
    """What was checked for leaks and stands in the record is what is trained on, however long preprocessing takes."""
    predict_without_mirroring(monkeypatch)
    stock = pair_trainer.prepare_training_data

    def prepare_while_somebody_edits(*arguments):
        data = stock(*arguments)
        tiny_dataset.write_split([{"train": ["case_2", "case_5"], "val": ["case_3"]}])
        return data

    monkeypatch.setattr(pair_trainer, "prepare_training_data", prepare_while_somebody_edits)
    seen = []
    trainer = make_trainer(tiny_dataset, num_epochs=1)
    step = trainer.train_step
    trainer.train_step = lambda batch: seen.extend(batch["keys"]) or step(batch)
    trainer.run_training()
    assert seen and set(seen) <= set(FOLD["train"])
    trainer.perform_actual_validation()
    validation = Path(trainer.output_folder, "validation")
    assert [path.name for path in validation.glob("*.nii.gz")] == ["case_2.nii.gz"]
    assert read_run(Path(trainer.output_folder)).counted_cases == (2, 1)


def test_labels_of_labeled_cases_are_read(tiny_dataset):
    """The scrambling of the test above does change a training where the labels count."""
    before = parameters(train(tiny_dataset))
    scramble_labels(tiny_dataset, FOLD["train"])
    assert differs(before, parameters(train(tiny_dataset)))


@pytest.mark.parametrize(("name", "matters"), [("nnUNetTrainerDHC", True), ("nnUNetTrainerPairSupervised", False),
                                              ("nnUNetTrainerPairMixed", False)])
def test_unlabeled_images_matter_to_dhc_alone(tiny_dataset, name, matters):
    first = parameters(train(tiny_dataset, name, **FULL_RAMP))
    for number, path in enumerate(sorted(tiny_dataset.images_un.iterdir())):
        write_image(path, make_scan(500 + number)[0])
    assert differs(first, parameters(train(tiny_dataset, name, **FULL_RAMP))) == matters


def test_control_opens_no_unlabeled_case(tiny_dataset):
    for path in tiny_dataset.images_un.iterdir():
        path.write_bytes(b"not an image")
    trainer = train(tiny_dataset, "nnUNetTrainerPairSupervised")
    assert trainer.data.pool is None
    line = log_lines(trainer)[-1]
    assert line["losses"]["unsupervised_a"] == line["steps_with_unlabeled"] == 0
    assert line["lambda"] == line["unlabeled_rate"] == 0


def test_pair_mixed_hides_the_labels_of_labeled_cases(tiny_dataset):
    for path in tiny_dataset.images_un.iterdir():
        path.write_bytes(b"not an image")
    trainer = train(tiny_dataset, "nnUNetTrainerPairMixed", **FULL_RAMP)
    assert trainer.data.pool is None and trainer.data.unlabeled == ()
    assert log_lines(trainer)[-1]["losses"]["unsupervised_a"] != 0
    batch = next(trainer.dataloader_train)
    assert set(batch["unlabeled_keys"]) <= set(FOLD["train"])
    dataset = trainer._unlabeled_dataset()
    image, hidden, _, properties = dataset.load_case("case_0")
    labeled = dataset.labeled.load_case("case_0")
    assert np.array_equal(image[:], labeled[0][:]) and labeled[1][:].max() > 0
    assert hidden.shape == labeled[1].shape and not hidden.any() and properties == {"class_locations": {}}
    samples = []
    whole, load = labeled[0].shape[1:], dataset.labeled.load_case

    def load_with_zeros_around(identifier):
        image, segmentation, *others = load(identifier)
        segmentation = np.array(segmentation[:])
        segmentation[:, 0] = -1
        return image, segmentation, *others

    dataset.labeled.load_case = load_with_zeros_around
    with_mask = HiddenLabelsDataset(dataset.labeled, with_nonzero_mask=True)
    UnlabeledDataLoader(
        with_mask, 1, whole, whole, trainer.label_manager, transforms=lambda **sample: samples.append(sample) or sample
    ).generate_train_batch()
    segmentation = samples[0]["segmentation"]
    assert (segmentation == -1).sum() == whole[1] * whole[2] and segmentation.max() == 0, "labels reach the transforms"


def test_log_shows_the_share_of_the_unsupervised_term(tiny_dataset):
    """Lambda starts at 0.7 % of its maximum: the share of the gradient starts near 0 and is large at the full ramp."""
    at_start = log_lines(train(tiny_dataset))[0]
    assert at_start["lambda"] == pytest.approx(np.exp(-5), rel=1e-4)
    assert 0 < at_start["unsupervised_gradient_share"] < 0.05
    full = log_lines(train(tiny_dataset, **FULL_RAMP, unsupervised_on="all"))[0]
    assert full["lambda"] == 1
    assert full["unsupervised_gradient_share"] > 0.2
    assert 0 < full["unlabeled_gradient_share"] < full["unsupervised_gradient_share"]


def test_files_of_a_run(tiny_dataset, curves):
    trainer = train(tiny_dataset)
    folder = Path(trainer.output_folder)
    lines = log_lines(trainer)
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        assert len(line["class_weights_a"]) == len(line["class_weights_b"]) == 4
        assert len(line["dice_a"]) == len(line["dice_b"]) == len(line["dice_mean"]) == 3
        assert sum(line["pseudo_label_share_b"]) == pytest.approx(1)
        assert line["seconds"]["forward"] > 0 and line["seconds"]["backward"] > 0
    run = json.loads((folder / "dhc_run.json").read_text())
    assert run["counts"] == {"labeled": 2, "validation": 1, "unlabeled": 5}
    assert run["excluded_cases"] == run["odd_cases"] == {}
    assert sorted(run["cases"]["unlabeled"]) == sorted(FOLD["unlabeled"] + tiny_dataset.unlabeled)
    assert run["seed"] == 7 and run["finished"] and run["recipe"]["lambda_max"] == 1
    assert (folder / "dhc_progress.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "progress.png").is_file() and (folder / "checkpoint_final.pth").is_file()
    assert not (folder / "checkpoint_latest.pth").exists()
    log = next(folder.glob("training_log_*.txt")).read_text()
    assert "2 labeled, 5 unlabeled, 1 validation cases" in log
    assert "This run will take about" in log


def test_sub_networks_differ_from_the_first_step_on(tiny_dataset):
    trainer = make_trainer(tiny_dataset)
    trainer.initialize()
    a, b = trainer.pair.sub_networks
    assert differs(a.state_dict(), b.state_dict())
    images = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    with torch.no_grad(), trainer.pair.giving("both"):
        logits_a, logits_b = trainer.pair(images)
    assert not torch.allclose(logits_a[0], logits_b[0])


def test_gradient_of_each_sub_network_is_clipped_by_itself(tiny_dataset):
    trainer = make_trainer(tiny_dataset)
    trainer.initialize()
    for factor, network in zip((1e6, 1e-3), trainer.pair.sub_networks, strict=True):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, factor)
    trainer.optimizer_step.clip_gradients()
    norms = [torch.cat([p.grad.flatten() for p in n.parameters()]).norm() for n in trainer.pair.sub_networks]
    count = sum(p.numel() for p in trainer.pair.sub_network_b.parameters())
    assert norms[0] == pytest.approx(12, rel=1e-3)
    assert norms[1] == pytest.approx(1e-3 * count**0.5, rel=1e-3)  # below the limit: untouched


def test_unlabeled_patches_as_often_as_lambda(tiny_dataset):
    """The schedule "ramp" draws them in every tenth step at first and in every step at the end."""
    trainer = train(tiny_dataset, unlabeled_schedule="ramp", num_epochs=4, num_iterations_per_epoch=10)
    lines = log_lines(trainer)
    assert lines[0]["steps_with_unlabeled"] == 1
    ramp = [np.exp(-5 * (1 - e / 4) ** 2) for e in range(4)]
    assert ramp == pytest.approx([0.007, 0.06, 0.287, 0.732], abs=1e-3)
    assert [line["steps_with_unlabeled"] for line in lines] == [1, 1, 3, 8]
    assert [line["unlabeled_rate"] for line in lines] == pytest.approx([0.1, 0.1, 0.3, 0.8])


def test_rare_unlabeled_patches_count_so_much_more(tiny_dataset):
    """Drawn in a quarter of the steps, they count four times as much there, so that an epoch has lambda of them."""
    trainer = make_trainer(tiny_dataset, num_epochs=1, num_iterations_per_epoch=4)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.loss_weight, trainer.unlabeled_rate = 0.5, 0.25
    seen, gradients = [], trainer.step_mode.gradients
    trainer.step_mode.gradients = lambda host, inputs: seen.append(inputs) or gradients(host, inputs)
    for draws in (True, False):
        trainer.dataloader_train.draw_unlabeled = draws
        trainer.train_step(next(trainer.dataloader_train))
    assert [(inputs.unsupervised, inputs.loss_weight) for inputs in seen] == [(True, 2.0), (False, 0.0)]


def test_unlabeled_patches_in_every_epoch(tiny_dataset):
    """However few steps an epoch has, its first one draws them, so that class counts never lack."""
    trainer = train(tiny_dataset, unlabeled_schedule="ramp", num_epochs=2, num_iterations_per_epoch=2)
    assert [line["steps_with_unlabeled"] for line in log_lines(trainer)] == [1, 1]
    assert all(line["pseudo_label_share_b"] is not None for line in log_lines(trainer))


def test_class_weights_become_equal_towards_the_end(tiny_dataset):
    lines = log_lines(train(tiny_dataset, weight_exponent_final=0.0, weight_minimum=0.02))
    for network in "ab":
        first, last = (np.array(line[f"class_weights_{network}"]) for line in (lines[0], lines[-1]))
        assert np.ptp(first) > 0.1 * first.max()
        assert last == pytest.approx(last.max())


def test_weight_of_the_background_becomes_the_largest(tiny_dataset):
    lines = log_lines(train(tiny_dataset, weight_exponent_final=1.0, background_exponent_final=0.0))
    of_b = [np.array(line["class_weights_b"]) for line in lines]
    assert of_b[0][0] < 0.5 * of_b[0].max()
    assert of_b[-1][0] == pytest.approx(of_b[-1].max())
    assert np.ptp(of_b[-1]) > 0.1 * of_b[-1].max()


# ---- alarms and non-finite losses ----


def freeze(trainer) -> None:
    trainer.initial_lr = 0.0
    trainer.initialize()


def test_alarm_when_a_class_collapses(tiny_dataset):
    trainer = make_trainer(tiny_dataset, num_epochs=3, collapse_patience=2)
    freeze(trainer)
    for network in trainer.pair.sub_networks:
        network.decoder.seg_layers[-1].bias.data[3] = -1e4
    trainer.run_training()
    lines = log_lines(trainer)
    assert not lines[0]["alarms"]
    assert any("small" in alarm for alarm in lines[1]["alarms"])
    assert "ALARM: " in next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()


def test_alarm_when_the_sub_networks_become_one(tiny_dataset):
    trainer = make_trainer(tiny_dataset, num_epochs=2, collapse_patience=2)
    freeze(trainer)
    trainer.pair.sub_network_b.load_state_dict(trainer.pair.sub_network_a.state_dict())
    trainer.run_training()
    lines = log_lines(trainer)
    assert lines[1]["relative_logit_gap"] == 0
    assert any("A and B" in alarm for alarm in lines[1]["alarms"])


def poison(trainer, from_step: int, num_steps: int) -> None:
    """Let some training steps see an image with a NaN."""
    stock, calls = trainer.train_step, []

    def train_step(batch):
        calls.append(0)
        if from_step <= len(calls) - 1 < from_step + num_steps:
            batch["data"][0, 0, 0, 0, 0] = float("nan")
        return stock(batch)

    trainer.train_step = train_step


def test_non_finite_step_is_skipped_whole_and_counted(tiny_dataset):
    trainer = make_trainer(tiny_dataset, num_epochs=1, num_iterations_per_epoch=3)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    before = parameters(trainer), [w.state_dict() for w in trainer.objective.weightings]
    trainer.dataloader_train.draw_unlabeled = trainer._shares_due = True
    batch = next(trainer.dataloader_train)
    batch["data"][0, 0, 0, 0, 0] = float("nan")
    trainer.train_step(batch)
    assert trainer._shares_due, "a step that was not finite has no shares"
    assert_same(before[0], parameters(trainer))
    for state, weighting in zip(before[1], trainer.objective.weightings, strict=True):
        after = weighting.state_dict()
        assert all(torch.equal(torch.as_tensor(after[name]), torch.as_tensor(state[name])) for name in state)
    trainer.train_step(next(trainer.dataloader_train))
    assert differs(before[0], parameters(trainer))
    assert trainer.statistics.read()["skipped_steps"] == 1


@pytest.mark.parametrize("what", ["images", "gradient"])
def test_a_skipped_step_moves_no_average_and_counts_no_class(tiny_dataset, what):
    trainer = make_trainer(tiny_dataset, num_epochs=1, num_iterations_per_epoch=3, unlabeled_schedule="always",
                           teacher="mean", teacher_momentum=0.9)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    average = {name: value.clone() for name, value in trainer.averaged_pair.state_dict().items()}
    shares = trainer.statistics.read()["pseudo_label_share_a"]
    batch = next(trainer.dataloader_train)
    if what == "images":
        batch["data"][:, 0, 0, 0, 0] = batch["unlabeled"][:, 0, 0, 0, 0] = float("nan")
    else:
        next(trainer.pair.sub_network_b.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    trainer.train_step(batch)
    assert trainer.statistics.read()["skipped_steps"] == 1
    assert_same(average, trainer.averaged_pair.state_dict())
    assert trainer.statistics.read()["pseudo_label_share_a"] == shares


def test_many_non_finite_steps_end_the_run_with_the_last_checkpoint(tiny_dataset):
    trainer = make_trainer(tiny_dataset, num_epochs=3, num_iterations_per_epoch=4, max_non_finite_steps=3)
    poison(trainer, from_step=5, num_steps=100)
    with pytest.raises(UserError, match="3 steps in a row"):
        trainer.run_training()
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=False)
    assert checkpoint["current_epoch"] == 1
    assert all(torch.isfinite(value).all() for value in checkpoint["network_weights"].values())


def test_an_epoch_of_skipped_steps_alone_has_no_loss(tiny_dataset, curves):
    """nnU-Net's curves and ours are drawn all the same, alone and beside another epoch."""
    for poisoned_epoch in (0, 1):
        trainer = make_trainer(tiny_dataset)
        poison(trainer, from_step=2 * poisoned_epoch, num_steps=2)
        trainer.run_training()
        losses = [line["losses"]["supervised_a"] for line in log_lines(trainer)]
        assert losses[poisoned_epoch] is None and losses[1 - poisoned_epoch] > 0
        assert np.isnan(trainer.logger.get_value("train_losses", poisoned_epoch))
        for name in ("progress.png", "dhc_progress.png"):
            assert (Path(trainer.output_folder) / name).read_bytes().startswith(b"\x89PNG")
        curve = training_curves(read_run(Path(trainer.output_folder)), "x", "0", 0)
        assert curve["epochs"] == [0, 1]


def test_a_good_step_in_between_starts_the_count_anew(tiny_dataset):
    trainer = make_trainer(tiny_dataset, num_epochs=1, num_iterations_per_epoch=6, max_non_finite_steps=2)
    poison(trainer, from_step=1, num_steps=1)
    poison(trainer, from_step=3, num_steps=1)
    trainer.run_training()
    line = log_lines(trainer)[0]
    assert line["skipped_steps"] == 2
    labeled = (line["losses"]["supervised_a"] + line["losses"]["supervised_b"]) / 2
    assert trainer.logger.get_value("train_losses", 0) == pytest.approx(labeled)


def test_a_gradient_that_overflows_changes_no_weight(tiny_dataset):
    trainer = make_trainer(tiny_dataset, num_epochs=1, num_iterations_per_epoch=3)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    next(trainer.pair.sub_network_b.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    before = parameters(trainer)
    trainer.train_step(next(trainer.dataloader_train))
    assert_same(before, parameters(trainer))
    assert trainer.statistics.read()["skipped_steps"] == 1


def test_with_amp_a_loss_that_is_not_finite_changes_no_weight_though_its_gradient_is(tiny_dataset, monkeypatch):
    """One logit that overflows has a gradient of 0 or 1."""
    trainer = make_trainer(tiny_dataset, num_epochs=1, num_iterations_per_epoch=3)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    stock, before = trainer.step_mode.gradients, parameters(trainer)
    for non_finite, changes in ((1.0, False), (0.0, True)):
        monkeypatch.setattr(trainer.step_mode, "gradients", lambda *arguments, _value=non_finite: replace(
            stock(*arguments), non_finite=torch.tensor(_value)))
        trainer.train_step(next(trainer.dataloader_train))
        assert differs(before, parameters(trainer)) == changes
    assert trainer.statistics.read()["skipped_steps"] == 1


def test_many_non_finite_gradients_end_the_run_too(tiny_dataset, monkeypatch):
    trainer = make_trainer(tiny_dataset, num_epochs=1, num_iterations_per_epoch=9, max_non_finite_steps=3)
    monkeypatch.setattr(trainer.optimizer_step, "clip_gradients", lambda: torch.tensor([1.0, float("nan")]))
    with pytest.raises(UserError, match=r"gradient was not finite in 3 steps .*: case_\d, .* --c$"):
        trainer.run_training()
    assert trainer.statistics.read()["skipped_steps"] == 3
    assert trainer.statistics.read()["amp_overflow_steps"] == 0


# ---- validation ----


def test_validation_runs_each_sub_network_once_per_patch(tiny_dataset):
    trainer = make_trainer(tiny_dataset, num_epochs=1, num_iterations_per_epoch=1, num_val_iterations_per_epoch=3)
    trainer.initialize()
    passes = []
    for network in trainer.pair.sub_networks:
        network.register_forward_hook(lambda module, *_: None if module.training else passes.append(0))
    trainer.run_training()
    assert len(passes) == 2 * 3


def test_dice_of_a_is_not_that_of_b(tiny_dataset):
    trainer = make_trainer(tiny_dataset, num_epochs=1)
    trainer.on_train_start()
    trainer.on_epoch_start()
    with torch.no_grad():
        for network, favourite in zip(trainer.pair.sub_networks, (1, 0), strict=True):
            head = network.decoder.seg_layers[-1]
            head.weight.zero_()
            head.bias.copy_(torch.eye(4)[favourite])
    trainer.on_validation_epoch_start()
    batch = next(trainer.dataloader_val)
    as_list(batch["target"])[0][:] = 1
    trainer.validation_step(batch)
    values = trainer.validation_statistics.read(across_ranks=False)
    assert (round(values["dice_a"][0]), round(values["dice_b"][0])) == (1, 0)


def test_pair_gives_what_it_is_asked_for():
    class Constant(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, images):
            return [images * self.value, images[..., ::2] * self.value]

    pair = cotrained_pair.CoTrainedPair(Constant(1.0), Constant(3.0))
    images = torch.ones(1, 1, 4, 4)
    assert torch.equal(pair(images)[0], 2 * images)
    with pair.giving("both"):
        a, b = pair(images)
        assert torch.equal(a[0], images) and torch.equal(b[1], 3 * images[..., ::2])
        with pair.giving("b"):
            assert torch.equal(pair(images)[0], 3 * images)
    assert pair.output == "mean"


def test_labeled_patches_around_foreground(tiny_dataset):
    trainer = make_trainer(tiny_dataset, oversample_foreground=0.5)
    trainer.initialize()
    assert trainer.oversample_foreground_percent == 0.5 and trainer.probabilistic_oversampling
    assert make_trainer(tiny_dataset).oversample_foreground_percent == 0.33  # recommended
    ours = make_trainer(tiny_dataset, "nnUNetTrainerCPS")
    plans = {**ours.plans_manager.plans, "continue_training": False}
    stock = nnUNetTrainer(plans, "3d_fullres", 0, ours.dataset_json, torch.device("cpu"))
    assert ours.oversample_foreground_percent == stock.oversample_foreground_percent < 1
    assert ours.probabilistic_oversampling == stock.probabilistic_oversampling


def test_each_sub_network_starts_from_its_own_scheme(tiny_dataset):
    trainer = make_trainer(tiny_dataset, "nnUNetTrainerCPS")
    trainer.initialize()
    a, b = (network.encoder.stages[0][0].convs[0].conv.weight for network in trainer.pair.sub_networks)
    fan_in, fan_out = 27, 4 * 27
    assert a.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.25)  # kaiming
    assert b.std().item() == pytest.approx((2 / (fan_in + fan_out)) ** 0.5, rel=0.25)  # xavier


def test_each_epoch_and_each_rank_draws_anew_from_the_seed(tiny_dataset):
    trainer = make_trainer(tiny_dataset)
    draws = []
    for epoch, rank in ((0, 0), (1, 0), (1, 1)):
        trainer.current_epoch, trainer.local_rank = epoch, rank
        trainer.on_epoch_start()
        draws.append((np.random.rand(), float(torch.rand(()))))
    assert len({value for draw in draws for value in draw}) == 6


def test_no_alarm_for_a_class_that_nobody_labeled(tiny_dataset, monkeypatch):
    stock = pair_trainer.prepare_training_data

    def without_small(*arguments):
        data = stock(*arguments)
        return replace(data, labeled_counts=data.labeled_counts * np.array([1, 1, 1, 0]))

    monkeypatch.setattr(pair_trainer, "prepare_training_data", without_small)
    trainer = make_trainer(tiny_dataset, num_epochs=1, collapse_patience=1)
    freeze(trainer)
    for network in trainer.pair.sub_networks:
        network.decoder.seg_layers[-1].bias.data[2:] = -1e4
    trainer.run_training()
    alarms = " ".join(log_lines(trainer)[0]["alarms"])
    assert "'middle'" in alarms and "'small'" not in alarms


def test_another_nnunet_is_refused_before_anything_is_written(tiny_dataset, monkeypatch):
    monkeypatch.setattr(installation, "supported_range", lambda _: "<0.1")
    with pytest.raises(UserError, match=r'nnunetv2 .* is not supported: pip install "nnunetv2<0.1"'):
        make_trainer(tiny_dataset)
    assert not list(tiny_dataset.results.glob("*"))
