# SPDX-License-Identifier: Apache-2.0
"""The second stage of a cascade: what it needs, what it makes of unlabeled cases, and that it trains."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from shortcuts import leave_out_curves, predict_without_mirroring, threads_for_processes
from tiny_data import TINY_PLANS, TinyDataset
from tiny_training import log_lines, make_trainer
from variants import make_variant

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.network.predictor import new_predictor
from nnunet_dhc.nnunet.training import cascade
from nnunet_dhc.nnunet.training.cascade import predict_for_next_stage

SECOND = "3d_cascade_fullres"
ONE_EPOCH = {"num_epochs": 1, "lambda_max": 1.0, "ramp_length": 0.0}
FOLDS = [{"train": ["case_0", "case_1"], "val": ["case_2", "case_3"]},
         {"train": ["case_2", "case_3"], "val": ["case_0", "case_1"]}]


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A dataset with a low-resolution configuration whose two folds are trained and validated."""
    with pytest.MonkeyPatch.context() as patch:
        dataset = make_variant(tmp_path_factory.mktemp("cascade") / "nnunet", patch)
        dataset.write_split(FOLDS)
        add_cascade(dataset)
        threads_for_processes(patch)
        predict_without_mirroring(patch)
        leave_out_curves(patch)
        for fold in range(2):
            trainer = make_trainer(dataset, configuration="3d_lowres", fold=fold, **ONE_EPOCH)
            trainer.run_training()
            trainer.perform_actual_validation()
    return dataset


def add_cascade(dataset: TinyDataset) -> None:
    plans = dataset.plans_content()
    configurations = plans["configurations"]
    lowres = {"inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_3d_lowres", "spacing": [1.4, 1.4, 1.4]}
    configurations["3d_lowres"] = {**lowres, "next_stage": SECOND}
    configurations[SECOND] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (dataset.preprocessed / f"{TINY_PLANS}.json").write_text(json.dumps(plans))
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_lowres")
    folder = dataset.preprocessed / configuration.data_identifier
    folder.mkdir()
    for label in sorted((dataset.raw / "labelsTr").iterdir()):
        case = label.name.removesuffix(".nii.gz")
        configuration.preprocessor_class(verbose=False).run_case_save(
            str(folder / case), [str(dataset.raw / "imagesTr" / f"{case}_0000.nii.gz")], str(label), manager,
            configuration, dataset.dataset_json,
        )


@pytest.fixture
def cascade_dataset(first_stage, tmp_path, monkeypatch):
    threads_for_processes(monkeypatch)
    predict_without_mirroring(monkeypatch)
    return first_stage.copied_to(tmp_path / "nnunet", monkeypatch)


def model_folder(dataset: TinyDataset) -> Path:
    return dataset.results / f"nnUNetTrainerDHC__{TINY_PLANS}__3d_lowres"


def predictions_folder(dataset: TinyDataset) -> Path:
    return model_folder(dataset) / "fold_0" / "unlabeled_next_stage" / SECOND


def second_stage(dataset: TinyDataset, **arguments):
    return make_trainer(dataset, configuration=SECOND, **{**ONE_EPOCH, **arguments})


def started(dataset: TinyDataset):
    trainer = second_stage(dataset)
    trainer.on_train_start()
    return trainer


def test_trains_and_validates(cascade_dataset):
    trainer = second_stage(cascade_dataset)
    trainer.run_training()
    assert trainer.num_input_channels == 1 + 3
    assert log_lines(trainer)[0]["losses"]["unsupervised_a"] > 0
    batch = next(trainer.dataloader_train)
    for images in (batch["data"], batch["unlabeled"]):
        assert images.shape[1] == 4
        assert set(images[:, 1:].unique().tolist()) <= {0.0, 1.0}
    assert sorted(path.name for path in predictions_folder(cascade_dataset).glob("*.b2nd")) == [
        "scan_0.b2nd", "scan_1.b2nd",
    ]
    trainer.perform_actual_validation()
    assert (Path(trainer.output_folder) / "validation" / "summary.json").is_file()


def test_labels_of_other_folds_are_told(cascade_dataset):
    fold = {"train": ["case_0"], "unlabeled": ["case_1"], "val": ["case_2", "case_3"]}
    cascade_dataset.write_split([fold, FOLDS[1]])
    trainer = started(cascade_dataset)
    assert sorted(trainer.data.unlabeled) == ["case_1", "scan_0", "scan_1"]
    assert any("which may have learned from labels of cases that are unlabeled here" in warning
               for warning in trainer.data.warnings)


def test_control_trains_too(cascade_dataset):
    shutil.copytree(model_folder(cascade_dataset),
                    cascade_dataset.results / f"nnUNetTrainerPairSupervised__{TINY_PLANS}__3d_lowres")
    trainer = second_stage(cascade_dataset, name="nnUNetTrainerPairSupervised")
    trainer.run_training()
    assert trainer.data.previous_stage_folder is None


def test_prediction_is_what_nnunet_stores_for_a_labeled_case(cascade_dataset, tmp_path):
    """The same case through our code and through the final validation of the first stage."""
    predictor = new_predictor(torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(model_folder(cascade_dataset)), (0,), "checkpoint_final.pth")
    trainer = make_trainer(cascade_dataset, configuration="3d_lowres", **ONE_EPOCH)
    trainer.initialize()
    image, _, _, properties = trainer.dataset_class(trainer.preprocessed_dataset_folder, ["case_2"]).load_case("case_2")
    stock = blosc2.open(str(model_folder(cascade_dataset) / "predicted_next_stage" / SECOND / "case_2.b2nd"))
    predict_for_next_stage(predictor, image[:], properties, stock.shape, tmp_path / "case.b2nd")
    ours = blosc2.open(str(tmp_path / "case.b2nd"))
    assert (ours.dtype, ours.chunks, ours.blocks) == (stock.dtype, stock.chunks, stock.blocks)
    assert stock.shape != image.shape[1:] and np.unique(stock[:]).size > 1
    np.testing.assert_array_equal(ours[:], stock[:])


def test_stopped_prediction_goes_on_and_nothing_is_done_twice(cascade_dataset, monkeypatch):
    calls = []
    stock = cascade.predict_for_next_stage

    def counted(predictor, image, properties, target_shape, output):
        calls.append(output)
        if len(calls) == 2:
            output.write_bytes(b"half")
            raise KeyboardInterrupt
        stock(predictor, image, properties, target_shape, output)

    monkeypatch.setattr(cascade, "predict_for_next_stage", counted)
    with pytest.raises(KeyboardInterrupt):
        started(cascade_dataset)
    folder = predictions_folder(cascade_dataset)
    assert [path.name for path in folder.glob("[!.]*.b2nd")] == ["scan_0.b2nd"]
    started(cascade_dataset)
    assert len(calls) == 3 and not list(folder.glob(".writing-*"))
    started(cascade_dataset)
    assert len(calls) == 3
    # another first stage predicts all cases again
    checkpoint = model_folder(cascade_dataset) / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(checkpoint, weights_only=False), "current_epoch": 7}, checkpoint)
    started(cascade_dataset)
    assert len(calls) == 5
    with open(folder / "manifest.jsonl", "a") as file:
        file.write('["scan_0", "torn')
    (folder / "scan_1.b2nd").unlink()
    for _ in range(2):  # the second time nothing is left to do
        started(cascade_dataset)
        assert len(calls) == 6


def test_refused_without_predictions_of_labeled_cases(cascade_dataset):
    folder = model_folder(cascade_dataset) / "predicted_next_stage" / SECOND
    (folder / "case_0.b2nd").unlink()
    with pytest.raises(UserError, match=r"of 3d_lowres for 1 of 4 labeled cases \(case_0\).*train 3d_lowres in fold 1 "
                                        r"first, with its final validation"):
        started(cascade_dataset)
    cascade_dataset.write_split([FOLDS[0]])
    with pytest.raises(UserError, match=r"no fold of splits_final.json validates case_0, so the folds must be made"):
        started(cascade_dataset)
    with pytest.raises(UserError, match="train 3d_lowres with fold all first"):
        second_stage(cascade_dataset, fold="all").on_train_start()


def test_refused_without_the_first_stage_of_the_fold(cascade_dataset):
    os.remove(model_folder(cascade_dataset) / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(UserError, match=r"second stage needs 3d_lowres of fold 0, .*; train it first"):
        started(cascade_dataset)
