# SPDX-License-Identifier: Apache-2.0
"""What nnU-Net does with trained models: its commands, in this process, on five folds of a pair and of stock."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from console import configure
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from shortcuts import leave_out_curves, predict_without_mirroring, threads_for_processes
from tiny_data import TINY_PLANS, TinyDataset, make_scan, write_image

from nnunet_dhc.trainers.lookup import trainer_class

pytestmark = pytest.mark.slow
PAIR, STOCK = "nnUNetTrainerDHC", "nnUNetTrainer"
FOLDS = 5
MODEL = ("-c", "3d_fullres", "-p", TINY_PLANS)


@pytest.fixture(scope="module")
def models(tiny_dataset_template, tmp_path_factory):
    """A dataset with five folds of both trainers, one epoch each, with probabilities of the validation cases."""
    dataset = tiny_dataset_template.copied_to(tmp_path_factory.mktemp("models") / "nnunet")
    configure(dataset, num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1)
    for number in range(2):
        write_image(dataset.raw / "imagesTs" / f"new_{number}_0000.nii.gz", make_scan(900 + number)[0])
    with pytest.MonkeyPatch.context() as patch:
        dataset.point_nnunet_here(patch)
        leave_out_curves(patch)
        threads_for_processes(patch)
        predict_without_mirroring(patch)
        for name in (PAIR, STOCK):
            for fold in range(FOLDS):
                train(dataset, name, fold)
        yield dataset


def train(dataset: TinyDataset, name: str, fold: int) -> None:
    plans = {**dataset.plans_content(), "continue_training": False}
    cls = nnUNetTrainer if name == STOCK else trainer_class(name)
    trainer = cls(plans, "3d_fullres", fold, dataset.dataset_json, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()
    trainer.perform_actual_validation(save_probabilities=True)


def command(monkeypatch, entry_point: str, *arguments: str) -> None:
    """One of nnU-Net's console commands, in this process."""
    module, function = entry_point.split(":")
    monkeypatch.setattr(sys, "argv", [function, *arguments])
    getattr(import_module(f"nnunetv2.{module}"), function)()


def folder_of(dataset: TinyDataset, name: str = PAIR) -> Path:
    return dataset.results / f"{name}__{TINY_PLANS}__3d_fullres"


def segmentation(path: Path) -> np.ndarray:
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def test_five_folds_validate_every_case_once(models):
    for name in (PAIR, STOCK):
        cases = [path.name for fold in range(FOLDS)
                 for path in (folder_of(models, name) / f"fold_{fold}" / "validation").glob("*.nii.gz")]
        assert sorted(cases) == [f"{case}.nii.gz" for case in models.labeled]


def test_accumulates_crossval_results(models, monkeypatch, tmp_path):
    command(monkeypatch, "evaluation.find_best_configuration:accumulate_crossval_results_entry_point", "999", *MODEL,
            "-tr", PAIR, "-o", str(tmp_path / "all"))
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == len(models.labeled)


@pytest.fixture(scope="module")
def best(models) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        command(patch, "evaluation.find_best_configuration:find_best_configuration_entry_point", "999", *MODEL,
                "-tr", PAIR, STOCK, "-np", "1")
    return json.loads((models.results / "inference_information.json").read_text())


def test_finds_the_best_of_a_pair_stock_and_their_ensemble(models, best):
    members = [folder_of(models, name).name for name in (PAIR, STOCK)]
    ensemble = next(name for name in best["all_results"] if name.startswith("ensemble___"))
    assert sorted(best["all_results"]) == sorted([*members, ensemble])
    assert all(member in ensemble for member in members)
    joined = models.results / "ensembles" / ensemble
    assert sorted(path.name for path in joined.glob("*.nii.gz")) == [f"{case}.nii.gz" for case in models.labeled]
    averaged = sum(np.load(path)["probabilities"] for path in models.results.glob("*/fold_*/validation/case_0.npz"))
    np.testing.assert_array_equal(segmentation(joined / "case_0.nii.gz"), averaged.argmax(0))


def test_predicts_in_parts_and_goes_on(models, best, monkeypatch, tmp_path):
    """-num_parts, --continue_prediction, then the postprocessing that was found for the best model."""
    out = tmp_path / "out"
    arguments = ("-d", "999", *MODEL, "-tr", PAIR, "-f", "0", "1", "-i", str(models.raw / "imagesTs"), "-o", str(out),
                 "-npp", "1", "-nps", "1", "-device", "cpu")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    predict = "inference.predict_from_raw_data:predict_entry_point"
    command(monkeypatch, predict, *arguments, "-num_parts", "2", "-part_id", "0")
    assert [path.name for path in out.glob("*.nii.gz")] == ["new_0.nii.gz"]
    written = (out / "new_0.nii.gz").stat().st_mtime_ns
    command(monkeypatch, predict, *arguments, "--continue_prediction")
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["new_0.nii.gz", "new_1.nii.gz"]
    assert (out / "new_0.nii.gz").stat().st_mtime_ns == written  # not predicted again
    chosen = best["best_model_or_ensemble"]
    command(monkeypatch, "postprocessing.remove_connected_components:entry_point_apply_postprocessing", "-i", str(out),
            "-o", str(tmp_path / "pp"), "-pp_pkl_file", chosen["postprocessing_file"], "-np", "1",
            "-plans_json", chosen["some_plans_file"])
    assert sorted(path.name for path in (tmp_path / "pp").glob("*.nii.gz")) == ["new_0.nii.gz", "new_1.nii.gz"]


def test_zip_installs_elsewhere_and_predicts_from_arrays(models, best, monkeypatch, tmp_path):
    file = tmp_path / "model.zip"
    command(monkeypatch, "model_sharing.entry_points:export_pretrained_model_entry", "-d", "999", *MODEL, "-tr", PAIR,
            "-o", str(file))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    command(monkeypatch, "model_sharing.entry_points:install_from_zip_entry_point", str(file))
    installed = tmp_path / "elsewhere" / models.name / folder_of(models).name
    image = make_scan(77)[0][None].astype(np.float32)
    results = [predicted(folder, image) for folder in (folder_of(models), installed)]
    np.testing.assert_array_equal(*results)
    assert results[0].shape == image.shape[1:]


def predicted(folder: Path, image: np.ndarray) -> np.ndarray:
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0, 1, 2, 3, 4))
    return predictor.predict_single_npy_array(image, {"spacing": [1.0, 1.0, 1.0]})


def test_validates_again_with_the_best_checkpoint(models, monkeypatch):
    """--val --val_best, last because it replaces the validation of a fold."""
    loaded = []
    cls = trainer_class(PAIR)
    load = cls.load_checkpoint
    monkeypatch.setattr(cls, "load_checkpoint", lambda self, file: (loaded.append(os.path.basename(file)),
                                                                    load(self, file))[1])
    fold = folder_of(models) / "fold_0"
    before = {path.name: path.read_bytes() for path in fold.glob("*.pth")}
    shutil.rmtree(fold / "validation")
    run_training("999", "3d_fullres", 0, PAIR, TINY_PLANS, only_run_validation=True, val_with_best=True,
                 device=torch.device("cpu"))
    assert loaded == ["checkpoint_final.pth", "checkpoint_best.pth"]
    assert (fold / "validation" / "summary.json").is_file()
    assert before == {path.name: path.read_bytes() for path in fold.glob("*.pth")}
