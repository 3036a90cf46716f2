# SPDX-License-Identifier: Apache-2.0
"""Whatever stock nnU-Net can train, a pair can: configurations, labels, architectures, switches."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from shortcuts import predict_without_mirroring
from tiny_data import TINY_PLANS
from tiny_training import SHORT, log_lines, make_trainer, parameters, resumed
from variants import IGNORED_SLICES, REGIONS, SHAPE, edit_plans, make_variant, residual_encoder

from nnunet_dhc.nnunet.training.configure_plans import configure_plans
from nnunet_dhc.trainers.lookup import trainer_class

ONE_EPOCH = {"num_epochs": 1, "lambda_max": 1.0, "ramp_length": 0.0}
FOLD = {"train": ["case_0", "case_1", "case_2"], "val": ["case_3"]}


def train(dataset, **arguments):
    """One epoch of the recommended recipe at full lambda, and a look at what it left."""
    trainer = make_trainer(dataset, **{**ONE_EPOCH, **arguments})
    trainer.run_training()
    line = log_lines(trainer)[-1]
    assert line["steps_with_unlabeled"] == 2 and line["skipped_steps"] == 0
    assert all(value is not None for value in line["losses"].values())
    assert line["losses"]["unsupervised_a"] != 0
    k = trainer.objective.labels.num_classes
    assert len(line["class_weights_a"]) == len(line["class_weights_b"]) == len(trainer.class_names) == k
    assert len(line["pseudo_label_share_a"]) == k
    assert torch.isfinite(torch.cat([value.flatten() for value in parameters(trainer).values()])).all()
    return trainer


def predictor_of(trainer) -> nnUNetPredictor:
    """nnU-Net's predictor from the files that the training left."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (trainer.fold,))
    return predictor


def prepared_step(trainer, ignored=None) -> tuple[dict, tuple]:
    """A batch and the outputs of both networks on it, with the pseudo labels, as train_step makes them.

    ``ignored`` gives the ignored voxels of a batch; then the first batch is taken that has such voxels and others.
    """
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batches = (next(trainer.dataloader_train) for _ in range(200))
    batch = next(b for b in batches if ignored is None or (ignored(b).any() and not ignored(b).all()))
    images = torch.cat((batch["data"], batch["unlabeled"]))
    with trainer.pair.giving("both"):
        outputs_a, outputs_b = trainer.network(images)
    return batch, (outputs_a, outputs_b, *trainer.objective.pseudo_labels(outputs_a[0], outputs_b[0]))


# ---- configurations and architectures ----


def test_2d(tiny_dataset):
    trainer = train(tiny_dataset, configuration="2d")
    assert isinstance(trainer.pair.sub_network_a.encoder.stages[0][0].convs[0].conv, torch.nn.Conv2d)
    assert resumed_prediction_shape(trainer, (1, 5, 20, 18)) == (4, 5, 20, 18)


def resumed_prediction_shape(trainer, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(predictor_of(trainer).predict_logits_from_preprocessed_data(torch.randn(shape)).shape)


def test_anisotropic_patches_with_dummy_2d_augmentation(tiny_dataset):
    edit_plans(tiny_dataset, patch_size=[4, 16, 16], architecture=flat)
    trainer = train(tiny_dataset)
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[1] is True
    assert next(trainer.dataloader_train.unlabeled)["data"].shape == (2, 1, 4, 16, 16)


def flat(architecture: dict) -> dict:
    architecture["arch_kwargs"]["strides"] = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    architecture["arch_kwargs"]["kernel_sizes"] = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    return architecture


def test_residual_encoder_plans(tiny_dataset):
    edit_plans(tiny_dataset, architecture=residual_encoder)
    trainer = train(tiny_dataset)
    assert type(trainer.pair.sub_network_b).__name__ == "ResidualEncoderUNet"


def test_plans_of_a_residual_encoder_planner(tiny_dataset, monkeypatch):
    """One of nnU-Net's three presets, which share the preprocessed data with its default plans."""
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # planning can't do with 0
    residual_encoder_unet_planners.nnUNetPlannerResEncM(tiny_dataset.name).plan_experiment()
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    plans = tiny_dataset.plans_content("nnUNetResEncUNetMPlans")
    assert plans["plans_name"] == "nnUNetResEncUNetMPlans"
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 16, 16]  # for speed
    plans |= {"continue_training": False, "nnunet_dhc": {**SHORT, **ONE_EPOCH, "num_iterations_per_epoch": 1}}
    tiny_dataset.write_split([{**FOLD, "unlabeled": ["case_4"]}])
    trainer = trainer_class("nnUNetTrainerDHC")(plans, "3d_fullres", 0, tiny_dataset.dataset_json, torch.device("cpu"))
    trainer.run_training()
    assert {type(network).__name__ for network in trainer.pair.sub_networks} == {"ResidualEncoderUNet"}
    assert Path(trainer.data.pool.folder).name == "nnUNetPlans_3d_fullres_unlabeled"
    assert log_lines(trainer)[-1]["skipped_steps"] == 0


def test_another_architecture_for_b(tiny_dataset):
    plans = tiny_dataset.plans_content()
    configuration = plans["configurations"]["3d_fullres"]
    configuration["architecture"] = residual_encoder(configuration["architecture"])
    (tiny_dataset.preprocessed / "nnUNetResEnc.json").write_text(json.dumps(plans))
    new = configure_plans(tiny_dataset.name, TINY_PLANS, "nnUNetPlansBoth", ONE_EPOCH, "nnUNetResEnc", ["3d_fullres"])
    content = {**json.loads(new.read_text()), "continue_training": False}
    content["nnunet_dhc"] |= {"num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
    tiny_dataset.write_split([{**FOLD, "unlabeled": ["case_4", "case_5"]}])
    trainer = trainer_class("nnUNetTrainerDHC")(content, "3d_fullres", 0, tiny_dataset.dataset_json,
                                                torch.device("cpu"))
    trainer.run_training()
    names = [type(network).__name__ for network in trainer.pair.sub_networks]
    assert names == ["PlainConvUNet", "ResidualEncoderUNet"]
    assert [type(network).__name__ for network in predictor_of(trainer).network.sub_networks] == names
    # a configuration without one of its own keeps the plans' network for both
    plans = PlansManager(json.loads(new.read_text()))
    pair = type(trainer).build_network_architecture(plans, plans.get_configuration("2d"), 1, 4)
    assert type(pair.sub_network_a) is type(pair.sub_network_b)


def test_configuration_that_inherits(tiny_dataset):
    plans = tiny_dataset.plans_content()
    plans["configurations"]["3d_bs3"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    (tiny_dataset.preprocessed / f"{TINY_PLANS}.json").write_text(json.dumps(plans))
    trainer = train(tiny_dataset, configuration="3d_bs3")
    batch = next(trainer.dataloader_train)
    assert len(batch["data"]) == len(batch["unlabeled"]) == 3
    assert Path(trainer.data.pool.folder).name == "nnUNetPlans_3d_fullres_unlabeled"


# ---- labels and channels ----


def test_channels_with_mask_normalization(tmp_path, monkeypatch):
    dataset = make_variant(tmp_path / "nnunet", monkeypatch, channels=2, masked=True)
    dataset.write_split([FOLD])
    trainer = train(dataset)
    assert trainer.configuration_manager.use_mask_for_norm == [True, True]
    batches = [next(trainer.dataloader_train) for _ in range(10)]  # a magnified batch can lie within the mask
    for name in ("data", "unlabeled"):
        images = torch.cat([batch[name] for batch in batches])
        assert images.shape[1] == 2
        assert (images == 0).float().mean() > 0.02  # zeros outside of the mask survive the augmentation
    assert resumed_prediction_shape(trainer, (2, 17, 16, 16)) == (4, 17, 16, 16)


def test_ignored_voxels_of_labeled_cases_learn_from_pseudo_labels_alone(tmp_path, monkeypatch):
    dataset = make_variant(tmp_path / "nnunet", monkeypatch, ignore=True)
    dataset.write_split([FOLD])
    trainer = train(dataset)
    assert trainer.objective.labels.ignore_label == 4 and len(trainer.class_names) == 4
    slices, rows, columns = SHAPE
    assert sum(trainer.data.labeled_counts) == len(FOLD["train"]) * (slices - IGNORED_SLICES) * rows * columns
    trainer = make_trainer(dataset, **ONE_EPOCH, unsupervised_on="all", paste_side=0)
    batch, (outputs_a, outputs_b, pseudo_a, pseudo_b) = prepared_step(trainer, lambda b: b["target"][0] == 4)
    mask = batch["target"][0] == 4
    check_gradients(trainer, batch, outputs_a, outputs_b, pseudo_a, pseudo_b, mask)


def check_gradients(trainer, batch, outputs_a, outputs_b, pseudo_a, pseudo_b, mask):
    """At the full-resolution logits of labeled patches: supervised outside of the mask, unsupervised everywhere."""
    weights = torch.ones(trainer.objective.labels.num_classes)
    terms = trainer.objective.terms(outputs_a, outputs_b, batch["target"], pseudo_a, pseudo_b, weights, weights)
    for network, supervised, unsupervised in ((outputs_a, terms.supervised_a, terms.unsupervised_a),
                                              (outputs_b, terms.supervised_b, terms.unsupervised_b)):
        from_labels = torch.autograd.grad(supervised, network[0], retain_graph=True)[0][: len(mask)]
        from_pseudo = torch.autograd.grad(unsupervised, network[0], retain_graph=True)[0][: len(mask)]
        hidden = mask.expand_as(from_labels)
        assert (from_labels[hidden] == 0).all() and (from_labels[~hidden] != 0).any()
        assert (from_pseudo[hidden] != 0).float().mean() > 0.9
    overlap = trainer.objective.labels.overlap(pseudo_a[: len(mask)], batch["target"][0])
    if trainer.label_manager.has_regions:
        hidden = mask & torch.ones_like(pseudo_a[: len(mask)])
        assert torch.equal(overlap.predicted[1:], (pseudo_a[: len(mask)] & ~hidden).sum((0, 2, 3, 4)))
    else:
        assert overlap.predicted.sum() == overlap.labeled.sum() == (~mask).sum()


@pytest.mark.parametrize("ignore", [False, True])
def test_regions(tmp_path, monkeypatch, ignore, no_process_pools, capsys):
    dataset = make_variant(tmp_path / "nnunet", monkeypatch, REGIONS, ignore=ignore)
    dataset.write_split([FOLD])
    trainer = train(dataset, background_weight=0.02)
    assert "background_exponent_final do nothing here: regions have no background" in capsys.readouterr().out
    assert trainer.class_names == ["no region", "whole", "core", "small"]
    counts = trainer.data.labeled_counts
    assert counts[1] > counts[2] > counts[3] > 0
    line = log_lines(trainer)[-1]
    assert len(line["dice_mean"]) == 3
    trainer = make_trainer(dataset, **ONE_EPOCH, unsupervised_on="all", paste_side=0)
    batch, (outputs_a, outputs_b, pseudo_a, pseudo_b) = prepared_step(
        trainer, (lambda b: b["target"][0][:, 3:] != 0) if ignore else None)
    assert pseudo_a.dtype == torch.bool and pseudo_a.shape[1] == 3
    if ignore:
        assert batch["target"][0].shape[1] == 4
        mask = batch["target"][0][:, 3:] != 0
        check_gradients(trainer, batch, outputs_a, outputs_b, pseudo_a, pseudo_b, mask)
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    assert sorted(summary["mean"]) == ["(1, 2, 3)", "(2, 3)", "3"]


def test_more_than_127_classes(tmp_path, monkeypatch):
    dataset = make_variant(tmp_path / "nnunet", monkeypatch, many_classes=130)
    dataset.write_split([FOLD])
    trainer = train(dataset, num_iterations_per_epoch=2)
    assert len(trainer.class_names) == 131 and min(trainer.data.labeled_counts) > 0
    assert max(int(target.max()) for target in next(trainer.dataloader_train)["target"]) > 127


def test_labels_written_as_lists_and_texts(tiny_dataset, monkeypatch):
    """To nnU-Net they are plain labels, not regions."""
    labels = {"background": 0, "large": [1], "middle": "2", "small": 3}
    monkeypatch.setattr(type(tiny_dataset), "dataset_json", {**tiny_dataset.dataset_json, "labels": labels})
    trainer = train(tiny_dataset)
    assert trainer.class_names == list(labels) and min(trainer.data.labeled_counts) > 0


# ---- switches of a run ----


def test_fold_all(tiny_dataset, no_process_pools, monkeypatch):
    predict_without_mirroring(monkeypatch)
    trainer = train(tiny_dataset, fold="all")
    assert len(trainer.data.cases.labeled) == 6 and sorted(trainer.data.unlabeled) == tiny_dataset.unlabeled
    assert trainer.output_folder.endswith("fold_all")
    trainer.perform_actual_validation()
    summary = json.loads(Path(trainer.output_folder, "validation", "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 6


def test_disabled_checkpointing_writes_none(tiny_dataset):
    trainer = make_trainer(tiny_dataset)
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert [name for name in os.listdir(trainer.output_folder) if name.endswith((".pth", ".tmp"))] == []
    assert len(log_lines(trainer)) == 2


def test_loggers_of_nnunet_get_their_values(tiny_dataset, monkeypatch):
    """nnUNet_wandb_enabled adds a logger beside nnU-Net's own; it must see every epoch."""
    class Logger:
        def __init__(self):
            self.values = []

        def log(self, key, value, step):
            self.values.append((key, step))

        def update_config(self, config):
            pass

    monkeypatch.delenv("nnUNet_wandb_enabled", raising=False)
    trainer = make_trainer(tiny_dataset)
    assert trainer.logger.loggers == []
    trainer.logger.loggers.append(logger := Logger())
    trainer.run_training()
    for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs", "dice_per_class_or_region/class_1"):
        assert [step for name, step in logger.values if name == key] == [0, 1], key


@pytest.mark.slow
def test_many_more_workers_than_cases(tiny_dataset, monkeypatch):
    """nnUNet_n_proc_DA=12: thirty forked workers, and none of them is left."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "12")
    before = multiprocessing.active_children()
    trainer = make_trainer(tiny_dataset, num_epochs=1)
    trainer.run_training()
    assert log_lines(trainer)[0]["skipped_steps"] == 0
    assert set(multiprocessing.active_children()) <= set(before)


class FakeWandb:
    """What nnU-Net's logger asks of wandb, which need not be installed."""

    def __init__(self):
        self.logged, self.config, self.summary, self.step = [], {}, {}, 0

    def init(self, **arguments):
        self.arguments = arguments
        return self

    def log(self, values, step):
        self.logged += [(key, step) for key in values]


def test_wandb_switch(tiny_dataset, monkeypatch):
    """nnUNet_wandb_enabled, with nnU-Net's own WandbLogger."""
    from nnunetv2.training.logging import nnunet_logger

    monkeypatch.setattr(nnunet_logger, "wandb", fake := FakeWandb())
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    trainer = make_trainer(tiny_dataset)
    trainer.run_training()
    assert fake.arguments["mode"] == "offline" and fake.arguments["dir"] == trainer.output_folder
    assert [step for key, step in fake.logged if key == "mean_fg_dice"] == [0, 1]
    assert fake.config["plans"]["plans_name"] == TINY_PLANS and fake.config["hparas"]["num_epochs"] == 2


def test_wandb_that_is_not_installed_is_one_line(tiny_dataset, monkeypatch):
    from nnunetv2.training.logging import nnunet_logger

    monkeypatch.setattr(nnunet_logger, "wandb", None)
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    with pytest.raises(RuntimeError, match="pip install wandb"):  # nnU-Net's line, before anything else happens
        make_trainer(tiny_dataset)


def test_no_mirroring(tiny_dataset):
    trainer = train(tiny_dataset, mirror_axes=[])
    predictor = predictor_of(trainer)
    predictor.use_mirroring = True
    assert predictor.allowed_mirroring_axes is None
    predictor.predict_logits_from_preprocessed_data(torch.randn(1, 16, 16, 16))


@pytest.mark.parametrize(("mirror_axes", "expected"), [([], ()), ([1], (1,))])
def test_unlabeled_patches_are_mirrored_as_labeled_ones(tiny_dataset, monkeypatch, mirror_axes, expected):
    trainer = make_trainer(tiny_dataset, mirror_axes=mirror_axes)
    asked, plain = [], nnUNetTrainer.get_training_transforms
    names = list(inspect.signature(plain).parameters)

    def asks(*args, **kwargs):
        asked.append(dict(zip(names, args, strict=False), **kwargs)["mirror_axes"])
        return plain(*args, **kwargs)

    monkeypatch.setattr(nnUNetTrainer, "get_training_transforms", staticmethod(asks))
    trainer.on_train_start()
    assert [tuple(axes) for axes in asked] == [expected] * 2  # labeled, unlabeled


def test_labels_of_two_sides_are_not_mirrored(tiny_dataset, monkeypatch):
    content = {**tiny_dataset.dataset_json, "labels": {"background": 0, "kidney": 1, "left lung": 2, "right lung": 3}}
    monkeypatch.setattr(type(tiny_dataset), "dataset_json", content)
    trainer = train(tiny_dataset)
    assert predictor_of(trainer).allowed_mirroring_axes is None
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    assert log.count("Labels left lung and right lung differ in their side: no mirroring") == 1
    as_nnunet = make_trainer(tiny_dataset, mirror_axes=None)
    assert as_nnunet.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == (0, 1, 2)
    some = make_trainer(tiny_dataset, mirror_axes=[0, 1])
    assert some.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == (0, 1)


def test_validation_of_a_finished_run_needs_no_unlabeled_case(tiny_dataset, no_process_pools):
    """--val: nnU-Net loads checkpoint_final and predicts, without on_train_start."""
    first = train(tiny_dataset)
    for path in tiny_dataset.images_un.iterdir():
        path.unlink()
    again = make_trainer(tiny_dataset, **ONE_EPOCH)
    again.load_checkpoint(str(Path(first.output_folder) / "checkpoint_final.pth"))
    again.perform_actual_validation(save_probabilities=True)
    assert sorted(os.listdir(Path(first.output_folder) / "validation")) == [
        "case_2.nii.gz", "case_2.npz", "case_2.pkl", "summary.json",
    ]
    assert resumed(tiny_dataset, first, "checkpoint_final.pth").current_epoch == 1


SPAWNED_RUN = """
import json, multiprocessing, sys
import torch
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    torch.set_num_threads(1)
    from nnunetv2.run.run_training import run_training
    run_training("999", "3d_fullres", 0, "nnUNetTrainerDHC", sys.argv[2], device=torch.device("cpu"),
                 disable_checkpointing=True)
    assert not multiprocessing.active_children()
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])  # fork is in tests/cli/test_messages.py
def test_worker_processes(tiny_dataset, tmp_path, method):
    plans = tiny_dataset.plans_content()
    plans["nnunet_dhc"] = {**ONE_EPOCH, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
    (tiny_dataset.preprocessed / f"{TINY_PLANS}.json").write_text(json.dumps(plans))
    script = tmp_path / "run.py"
    script.write_text(SPAWNED_RUN)
    environment = {**os.environ, "nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), method, TINY_PLANS], env=environment, check=True, timeout=400)
    folder = tiny_dataset.results / f"nnUNetTrainerDHC__{TINY_PLANS}__3d_fullres" / "fold_0"
    assert (folder / "validation" / "summary.json").is_file()
