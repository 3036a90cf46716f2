# SPDX-License-Identifier: Apache-2.0
"""What this package relies on in nnU-Net: a version that breaks it must fail here, by name, and not in a training."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, label_or_region_to_key
from nnunetv2.inference.export_prediction import export_prediction_from_logits, resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run import run_training as run_module
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dhc.trainers.lookup import trainer_class
from nnunet_dhc.trainers.table import METHODS

CPU = torch.device("cpu")

# Every method of nnU-Net's trainer that this package overrides or calls, with its parameters.
METHODS_OF_TRAINER = {
    "__init__": ["plans", "configuration", "fold", "dataset_json", "device"],
    "initialize": [],
    "build_network_architecture": ["plans_manager", "configuration_manager", "num_input_channels",
                                   "num_output_channels", "enable_deep_supervision"],
    "set_deep_supervision_enabled": ["enabled"],
    "configure_rotation_dummyDA_mirroring_and_inital_patch_size": [],
    "get_training_transforms": ["patch_size", "rotation_for_DA", "deep_supervision_scales", "mirror_axes",
                                "do_dummy_2d_data_aug", "use_mask_for_norm", "is_cascaded", "foreground_labels",
                                "regions", "ignore_label"],
    "do_split": [],
    "get_tr_and_val_datasets": [],
    "get_dataloaders": [],
    "on_train_start": [],
    "on_train_end": [],
    "on_epoch_start": [],
    "on_epoch_end": [],
    "on_train_epoch_start": [],
    "on_train_epoch_end": ["train_outputs"],
    "train_step": ["batch"],
    "on_validation_epoch_start": [],
    "validation_step": ["batch"],
    "on_validation_epoch_end": ["val_outputs"],
    "run_training": [],
    "perform_actual_validation": ["save_probabilities"],
    "save_checkpoint": ["filename"],
    "load_checkpoint": ["filename_or_checkpoint"],
    "print_to_log_file": ["args", "also_print_to_console", "add_timestamp"],
    "_build_loss": [],
    "_set_batch_size_and_oversample": [],
    "_do_i_compile": [],
}
ATTRIBUTES = (
    "is_ddp", "local_rank", "device", "plans_manager", "configuration_manager", "configuration_name", "dataset_json",
    "fold", "output_folder", "output_folder_base", "preprocessed_dataset_folder", "preprocessed_dataset_folder_base",
    "is_cascaded", "folder_with_segs_from_previous_stage", "num_iterations_per_epoch", "num_val_iterations_per_epoch",
    "num_epochs", "current_epoch", "label_manager", "network", "optimizer", "lr_scheduler", "grad_scaler", "loss",
    "logger", "log_file", "inference_allowed_mirroring_axes", "save_every", "disable_checkpointing", "batch_size",
    "dataloader_train", "dataloader_val", "_best_ema", "my_init_kwargs", "num_input_channels", "dataset_class",
)
CHECKPOINT_KEYS = {
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch", "init_args",
    "trainer_name", "inference_allowed_mirroring_axes",
}


def parameters_of(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.fixture
def stock(tiny_dataset, monkeypatch):
    """A stock trainer of two epochs of one step."""
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
    plans = {**tiny_dataset.plans_content(), "continue_training": False}
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, tiny_dataset.dataset_json, CPU)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 1, 1
    return trainer


# ---- names ----


@pytest.mark.parametrize("name", METHODS_OF_TRAINER)
def test_method_of_the_trainer(name):
    assert parameters_of(getattr(nnUNetTrainer, name)) == METHODS_OF_TRAINER[name]


@pytest.mark.parametrize("name", METHODS)
def test_our_overrides_keep_the_parameters(name):
    overridden = []
    for cls in trainer_class(name).__mro__:
        if not cls.__module__.startswith("nnunet_dhc"):
            continue
        for method, function in vars(cls).items():
            if method.startswith("__") and method != "__init__":
                continue
            if callable(getattr(nnUNetTrainer, method, None)):
                overridden.append(method)
                assert parameters_of(getattr(cls, method)) == parameters_of(getattr(nnUNetTrainer, method)), method
                assert isinstance(function, staticmethod) == isinstance(
                    inspect.getattr_static(nnUNetTrainer, method), staticmethod
                ), method
    assert {"train_step", "save_checkpoint", "build_network_architecture"} <= set(overridden)
    assert set(overridden) <= set(METHODS_OF_TRAINER)  # add what is new to the table above


def test_init_reads_its_arguments_from_its_own_locals(stock):
    """So a subclass must spell out exactly these names; continue_training is taken out of the plans on the way."""
    assert list(stock.my_init_kwargs) == METHODS_OF_TRAINER["__init__"]
    assert "continue_training" not in stock.plans_manager.plans


def test_attributes_that_we_read(stock):
    stock.on_train_start()
    assert [name for name in ATTRIBUTES if not hasattr(stock, name)] == []
    for name in ("batch_size", "patch_size", "use_mask_for_norm", "batch_dice", "data_identifier", "spacing",
                 "previous_stage_name", "next_stage_names", "preprocessor_class", "pool_op_kernel_sizes",
                 "network_arch_class_name", "configuration"):
        assert hasattr(stock.configuration_manager, name), name
    for name in ("has_regions", "has_ignore_label", "ignore_label", "all_labels", "foreground_labels", "label_dict",
                 "num_segmentation_heads"):
        assert hasattr(stock.label_manager, name), name


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (load_pretrained_weights, ["network", "fname", "verbose"]),
        (run_module.maybe_load_checkpoint,
         ["nnunet_trainer", "continue_training", "validation_only", "pretrained_weights_file"]),
        (run_module.get_trainer_from_args,
         ["dataset_name_or_id", "configuration", "fold", "trainer_name", "plans_identifier", "continue_training",
          "device"]),
        (resample_and_save,
         ["predicted", "target_shape", "output_file", "plans_manager", "configuration_manager", "properties_dict",
          "dataset_json_dict_or_file", "num_threads_torch", "dataset_class"]),
        (export_prediction_from_logits,
         ["predicted_array_or_file", "properties_dict", "configuration_manager", "plans_manager",
          "dataset_json_dict_or_file", "output_file_truncated", "save_probabilities", "num_threads_torch"]),
        (compute_metrics,
         ["reference_file", "prediction_file", "image_reader_writer", "labels_or_regions", "ignore_label"]),
        (nnUNetPredictor.initialize_from_trained_model_folder,
         ["model_training_output_dir", "use_folds", "checkpoint_name"]),
        (nnUNetPredictor.manual_initialization,
         ["network", "plans_manager", "configuration_manager", "parameters", "dataset_json", "trainer_name",
          "inference_allowed_mirroring_axes"]),
        (nnUNetPredictor.predict_sliding_window_return_logits, ["input_image"]),
        (nnUNetPredictor.predict_logits_from_preprocessed_data, ["data"]),
        (nnUNetDataLoader.__init__,
         ["data", "batch_size", "patch_size", "final_patch_size", "label_manager", "oversample_foreground_percent",
          "sampling_probabilities", "pad_sides", "probabilistic_oversampling", "transforms"]),
        (nnUNetDataLoader.get_bbox, ["data_shape", "force_fg", "class_locations", "overwrite_class", "verbose"]),
        (nnUNetBaseDataset.__init__, ["folder", "identifiers", "folder_with_segs_from_previous_stage"]),
        (MetaLogger.get_value, ["key", "step"]),
        (NonDetMultiThreadedAugmenter.__init__,
         ["data_loader", "transform", "num_processes", "num_cached", "seeds", "pin_memory", "wait_time"]),
        (SingleThreadedAugmenter.__init__, ["data_loader", "transform"]),
    ],
)
def test_functions_that_we_call(function, expected):
    assert parameters_of(function) == expected


# ---- behavior of a training ----


def test_order_of_a_training(stock, monkeypatch):
    calls = []
    for name in METHODS_OF_TRAINER:
        if name.startswith("on_") or name.endswith("_step") or name == "save_checkpoint":
            method = getattr(stock, name)

            def recorded(*arguments, _name=name, _method=method):
                calls.append(_name if _name != "save_checkpoint" else Path(arguments[0]).name)
                if _name == "validation_step":
                    assert not torch.is_grad_enabled() and not stock.network.training
                if _name == "train_step":
                    assert stock.network.training and set(arguments[0]) == {"data", "target", "keys"}
                    assert len(arguments[0]["target"]) == len(stock.loss.weight_factors)
                return _method(*arguments)

            monkeypatch.setattr(stock, name, recorded)
    stock.run_training()
    epoch = ["on_epoch_start", "on_train_epoch_start", "train_step", "on_train_epoch_end",
             "on_validation_epoch_start", "validation_step", "on_validation_epoch_end", "on_epoch_end"]
    best = ["checkpoint_best.pth"]
    without_best = [name for name in calls if name not in best]
    assert without_best == ["on_train_start", *epoch, *epoch, "on_train_end", "checkpoint_final.pth"]
    assert calls[len(epoch) + 1] == "checkpoint_best.pth"  # the first epoch is the best so far


def test_checkpoint_holds_what_we_expect_and_counts_finished_epochs(stock, tmp_path):
    stock.initialize()
    stock.current_epoch = 4
    stock.save_checkpoint(str(tmp_path / "c.pth"))
    checkpoint = torch.load(tmp_path / "c.pth", weights_only=False)
    assert set(checkpoint) == CHECKPOINT_KEYS
    assert checkpoint["current_epoch"] == 5
    assert set(checkpoint["init_args"]) == set(METHODS_OF_TRAINER["__init__"])
    stock.disable_checkpointing = True
    stock.save_checkpoint(str(tmp_path / "none.pth"))
    assert not (tmp_path / "none.pth").exists()


@pytest.mark.parametrize(("save_every", "saved"), [(1, ["latest", "best"]), (sys.maxsize, ["best"])])
def test_periodic_checkpoint_is_written_before_the_best_is_known(stock, monkeypatch, save_every, saved):
    """Why we switch it off and write our own afterwards."""
    stock.on_train_start()
    written = []
    monkeypatch.setattr(stock, "save_checkpoint",
                        lambda name: written.append((Path(name).stem.removeprefix("checkpoint_"), stock._best_ema)))
    stock.save_every = save_every
    stock.on_epoch_start()
    for key in ("train_losses", "val_losses", "mean_fg_dice", "lrs"):
        stock.logger.log(key, 0.5, 0)
    stock.logger.log("dice_per_class_or_region", [0.5], 0)
    assert stock.logger.get_value("ema_fg_dice", step=-1) == 0.5
    stock.on_epoch_end()
    assert written == [(name, None if name == "latest" else 0.5) for name in saved]
    assert stock.current_epoch == 1


def test_end_of_training_removes_the_latest_checkpoint(stock):
    stock.on_train_start()
    latest = Path(stock.output_folder) / "checkpoint_latest.pth"
    latest.write_bytes(b"")
    stock.current_epoch = 2
    stock.on_train_end()
    assert not latest.exists()
    final = torch.load(latest.with_name("checkpoint_final.pth"), weights_only=False)
    assert final["current_epoch"] == stock.current_epoch == 2


def test_checkpoints_to_continue_from(stock, monkeypatch):
    """--c: final, latest, best, or a new training without a word from the trainer; --val: final."""
    loaded = []
    monkeypatch.setattr(stock, "load_checkpoint", lambda name: loaded.append(Path(name).name))
    run_module.maybe_load_checkpoint(stock, True, False)
    assert loaded == []
    for name in ("best", "latest", "final"):
        (Path(stock.output_folder) / f"checkpoint_{name}.pth").touch()
        run_module.maybe_load_checkpoint(stock, True, False)
    run_module.maybe_load_checkpoint(stock, False, True)
    assert loaded == [f"checkpoint_{name}.pth" for name in ("best", "latest", "final", "final")]


def test_deep_supervision_factors(stock):
    stock.initialize()
    assert isinstance(stock.loss, DeepSupervisionWrapper)
    factors = list(stock.loss.weight_factors)
    assert len(factors) == len(stock.configuration_manager.pool_op_kernel_sizes) - 1
    assert sum(factors) == pytest.approx(1) and factors[-1] == 0


def test_validation_step_asks_the_network_once_and_takes_its_first_output(stock):
    stock.on_train_start()
    batch = next(stock.dataloader_val)
    target = [part.clone() for part in batch["target"]]
    network, calls = stock.network, []

    def counted(images):
        calls.append(images.shape)
        return network(images)

    stock.network = counted
    with torch.no_grad():
        result = stock.validation_step(batch)
    assert len(calls) == 1 and set(result) == {"loss", "tp_hard", "fp_hard", "fn_hard"}
    assert len(result["tp_hard"]) == 3
    assert torch.equal(target[0], batch["target"][0])


def test_loaders_without_and_with_processes(stock, monkeypatch):
    stock.initialize()
    assert isinstance(stock.get_dataloaders()[0], SingleThreadedAugmenter)
    made = []

    class Recorded:
        def __init__(self, **arguments):
            made.append(arguments)

        def __next__(self):
            return {}

    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    monkeypatch.setattr(trainer_module, "NonDetMultiThreadedAugmenter", Recorded)
    stock.get_dataloaders()
    assert [arguments["seeds"] for arguments in made] == [None, None]
    assert [arguments["num_processes"] for arguments in made] == [2, 1]
    assert callable(NonDetMultiThreadedAugmenter._finish)
    loader = made[0]["data_loader"]
    for name in ("indices", "batch_size", "sampling_probabilities", "has_ignore", "annotated_classes_key", "transforms",
                 "patch_size_was_2d", "_data"):
        assert hasattr(loader, name), name


def test_predictor_reads_four_entries_of_a_checkpoint(stock, tmp_path, monkeypatch):
    """And builds the network by the trainer's static method, without deep supervision."""
    stock.initialize()
    stock.save_checkpoint(str(tmp_path / "all.pth"))
    checkpoint = torch.load(tmp_path / "all.pth", weights_only=False)
    needed = {"trainer_name", "network_weights", "inference_allowed_mirroring_axes"}
    few = {key: checkpoint[key] for key in needed} | {"init_args": {"configuration": "3d_fullres"}}
    (tmp_path / "fold_0").mkdir()
    torch.save(few, tmp_path / "fold_0" / "checkpoint_final.pth")
    for name, content in (("plans", stock.plans_manager.plans), ("dataset", stock.dataset_json)):
        trainer_module.save_json(content, str(tmp_path / f"{name}.json"))
    asked = []
    build = nnUNetTrainer.build_network_architecture

    def recorded(plans_manager, configuration_manager, num_input_channels, num_output_channels,
                 enable_deep_supervision=True):
        asked.append((num_input_channels, num_output_channels, enable_deep_supervision))
        return build(plans_manager, configuration_manager, num_input_channels, num_output_channels,
                     enable_deep_supervision)

    monkeypatch.setattr(nnUNetTrainer, "build_network_architecture", staticmethod(recorded))
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(tmp_path), None)
    assert asked == [(1, 4, False)] and len(predictor.list_of_parameters) == 1
    network = predictor.network
    predictor.manual_initialization(network, predictor.plans_manager, predictor.configuration_manager, None,
                                    stock.dataset_json, "any", (0,))
    logits = predictor.predict_sliding_window_return_logits(torch.zeros(1, 16, 16, 16))
    assert logits.shape == (4, 16, 16, 16) and not network.training


def test_empty_mirroring_axes_are_not_understood(stock):
    """Why a recipe without mirroring stores None."""
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    stock.initialize()
    predictor.manual_initialization(stock.network, stock.plans_manager, stock.configuration_manager, None,
                                    stock.dataset_json, "any", ())
    with pytest.raises(ValueError, match="empty"):
        predictor._internal_maybe_mirror_and_predict(torch.zeros(1, 1, 16, 16, 16))


def test_pretrained_weights_need_every_key_but_the_heads(stock, tmp_path):
    stock.initialize()
    weights = {key: torch.ones_like(value) for key, value in stock.network.state_dict().items()}
    body = {key: value for key, value in weights.items() if ".seg_layers." not in key}
    assert len(body) < len(weights)
    torch.save({"network_weights": body}, tmp_path / "body.pth")
    heads = stock.network.decoder.seg_layers[-1].weight.clone()
    load_pretrained_weights(stock.network, str(tmp_path / "body.pth"), verbose=False)
    assert (stock.network.encoder.stages[0][0].convs[0].conv.weight == 1).all()
    assert torch.equal(stock.network.decoder.seg_layers[-1].weight, heads)
    first = next(iter(body))
    for broken in ({key: value for key, value in body.items() if key != first}, {**body, first: body[first][:1]}):
        torch.save({"network_weights": broken}, tmp_path / "broken.pth")
        with pytest.raises(AssertionError):
            load_pretrained_weights(stock.network, str(tmp_path / "broken.pth"), verbose=False)


def test_datasets_can_be_told_not_to_map_files(stock):
    stock.initialize()
    for dataset in stock.get_tr_and_val_datasets():
        assert set(dataset.mmap_kwargs) <= {"mmap_mode"}
        dataset.mmap_kwargs = {}
        assert dataset.load_case(dataset.identifiers[0])[0][:].ndim == 4


def test_ddp_is_wrapped_by_a_name_of_the_module_with_the_global_rank(stock, monkeypatch):
    """Why `torchrun.py` replaces that name."""
    wrapped = []
    monkeypatch.setattr(trainer_module, "DDP", lambda network, device_ids: wrapped.append(device_ids) or network)
    stock.is_ddp, stock.local_rank = True, 5
    monkeypatch.setattr(stock, "_set_batch_size_and_oversample", lambda: None)
    monkeypatch.setattr(stock, "_build_loss", lambda: None)
    stock.initialize()
    assert wrapped == [[5]]


def test_compile_wraps_network_and_dice_loss(stock, monkeypatch):
    """Both have to be taken back where torch.compile fails; nnUNet_compile=f then keeps them so."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(type(module).__name__) or module)
    monkeypatch.setattr(stock, "_do_i_compile", lambda: True)
    stock.initialize()
    assert len(compiled) == 2 and compiled[0] == type(stock.network).__name__ and "Dice" in compiled[1]
    stock.device = torch.device("cuda")
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_compile", "f")
    assert not stock._do_i_compile()


def test_deep_supervision_is_a_switch_of_the_decoder(stock):
    stock.initialize()
    stock.set_deep_supervision_enabled(False)
    assert stock.network.decoder.deep_supervision is False


def test_unknown_keys_in_plans_are_left_alone(stock):
    plans = {**stock.plans_manager.plans, "nnunet_dhc": {"lambda_max": 0.2}}
    manager = PlansManager(plans)
    assert manager.plans["nnunet_dhc"] == {"lambda_max": 0.2}
    plans["configurations"]["x"] = {"inherits_from": "3d_fullres", "batch_size": 7}
    assert PlansManager(plans).get_configuration("x").batch_size == 7


def test_our_trainers_are_found_by_name():
    for name in ("nnUNetTrainerDHC", "nnUNetTrainerDHC_3epochs"):
        assert recursive_find_trainer_class_by_name(name) is trainer_class(name)


def test_files_of_a_preprocessed_case(tiny_dataset):
    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"
    assert sorted(path.name for path in folder.glob("case_0*")) == ["case_0.b2nd", "case_0.pkl", "case_0_seg.b2nd"]
    dataset = nnUNetDatasetBlosc2(str(folder), ["case_0"])
    image, segmentation, previous, properties = dataset.load_case("case_0")
    assert image.dtype == np.float32 and image.shape[1:] == segmentation.shape[1:] and previous is None
    assert {"spacing", "shape_before_cropping", "bbox_used_for_cropping", "class_locations",
            "shape_after_cropping_and_before_resampling"} <= set(properties)
    assert nnUNetDatasetBlosc2.get_identifiers(str(folder)) and label_or_region_to_key((1, 2)) == "(1, 2)"
