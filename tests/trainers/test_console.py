# SPDX-License-Identifier: Apache-2.0
"""The whole way through nnU-Net's own commands, each in a fresh process: train, kill, continue, predict, find best."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from console import TRAIN, TRAINER, Running, configure, fold_folder, run
from tiny_data import TINY_PLANS, TinyDataset, make_scan, write_image

pytestmark = pytest.mark.slow
FOLDS = [
    {"train": ["case_0", "case_1"], "val": ["case_2"], "unlabeled": ["case_4"]},
    {"train": ["case_2", "case_3"], "val": ["case_0", "case_1"], "unlabeled": ["case_5"]},
]
MODEL = f"{TRAINER}__{TINY_PLANS}__3d_fullres"
SELECT = ("-d", "999", "-c", "3d_fullres", "-p", TINY_PLANS, "-tr", TRAINER, "-f", "0", "1")
SMALL_POOLS = ("-npp", "1", "-nps", "1", "-device", "cpu")


@pytest.fixture(scope="module")
def trained(tiny_dataset_template, tmp_path_factory) -> TinyDataset:
    """Two folds; the first was killed after its first epoch and went on."""
    dataset = tiny_dataset_template.copied_to(tmp_path_factory.mktemp("console") / "nnunet")
    dataset.write_split(FOLDS)
    configure(dataset, num_epochs=3, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1)
    for number in range(2):
        write_image(dataset.raw / "imagesTs" / f"new_{number}_0000.nii.gz", make_scan(900 + number)[0])

    killed = Running(dataset, TRAIN)
    killed.wait_for("Epoch 1")
    killed.kill()
    resumed = run(dataset, (*TRAIN, "--c"))
    assert resumed.code == 0, resumed.err[-3000:]
    second = run(dataset, (*TRAIN[:3], "1", *TRAIN[4:]))
    assert second.code == 0, second.err[-3000:]
    return dataset


def test_killed_training_went_on_to_the_end(trained):
    folder = fold_folder(trained)
    log = [json.loads(line) for line in (folder / "dhc_log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [0, 1, 2]
    text = "".join(path.read_text() for path in sorted(folder.glob("training_log_*.txt")))
    begun = [int(number) for number in re.findall(r"Epoch (\d+)", text)]
    assert begun in ([0, 1, 1, 2], [0, 1, 2])  # killed in epoch 1, which begins again, or after it
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    assert [Path(case["prediction_file"]).name for case in summary["metric_per_case"]] == ["case_2.nii.gz"]
    assert (folder / "checkpoint_final.pth").is_file() and not (folder / "checkpoint_latest.pth").exists()


def predicted(folder: Path) -> dict[str, np.ndarray]:
    import SimpleITK

    return {
        path.name: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) for path in folder.glob("*.nii.gz")
    }


def test_predicts_from_a_folder_moved_elsewhere(trained, tmp_path):
    """Two folds, with and without mirroring, with probabilities; nothing but the moved folder is there."""
    moved = TinyDataset(tmp_path / "other machine")
    (moved.root / "results").mkdir(parents=True)
    shutil.copytree(trained.results / MODEL, moved.root / "a model")
    command = (
        "nnUNetv2_predict_from_modelfolder", "-i", str(trained.raw / "imagesTs"), "-m", str(moved.root / "a model"),
        "-f", "0", "1", *SMALL_POOLS,
    )
    mirrored = run(moved, (*command, "-o", str(tmp_path / "mirrored"), "--save_probabilities"))
    assert mirrored.code == 0, mirrored.err[-3000:]
    segmentations = predicted(tmp_path / "mirrored")
    assert sorted(segmentations) == ["new_0.nii.gz", "new_1.nii.gz"]
    for name, segmentation in segmentations.items():
        probabilities = np.load(tmp_path / "mirrored" / name.replace(".nii.gz", ".npz"))["probabilities"]
        assert probabilities.shape == (4, *segmentation.shape)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-2)
        np.testing.assert_array_equal(probabilities.argmax(0), segmentation)


def test_predicts_by_names_without_mirroring(trained, tmp_path):
    outcome = run(
        trained,
        ("nnUNetv2_predict", *SELECT, "-i", str(trained.raw / "imagesTs"), "-o", str(tmp_path / "out"), *SMALL_POOLS,
         "--disable_tta"),
    )
    assert outcome.code == 0, outcome.err[-3000:]
    assert sorted(predicted(tmp_path / "out")) == ["new_0.nii.gz", "new_1.nii.gz"]


@pytest.mark.parametrize("mirroring", [True, False])
def test_prediction_is_what_both_networks_say_together(trained, mirroring):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(1)
    predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained.results / MODEL), (0,))
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    predictor.network.eval()
    patch = torch.from_numpy(make_scan(77, (16, 16, 16))[0][None, None].astype(np.float32)) / 100
    for predictor.network.votes in (torch.tensor([[0.5, 0.0, 0.5, 1.0], [0.5, 1.0, 0.5, 0.0]]), None):
        logits = {}
        for output in ("mean", "a", "b"):
            with predictor.network.giving(output), torch.no_grad():
                logits[output] = predictor._internal_maybe_mirror_and_predict(patch)
        assert (logits["a"] - logits["b"]).abs().mean() > 0.01
        together = predictor.network.combined(logits["a"], logits["b"])
        torch.testing.assert_close(logits["mean"], together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits["mean"], (logits["a"] + logits["b"]) / 2)


def test_finds_the_best_configuration(trained):
    command = ("nnUNetv2_find_best_configuration", "999", "-c", "3d_fullres", "-p", TINY_PLANS, "-tr", TRAINER, "-f")
    outcome = run(trained, (*command, "0", "1", "--disable_ensembling", "-np", "1"))
    assert outcome.code == 0, outcome.err[-3000:]
    best = json.loads((trained.results / "inference_information.json").read_text())["best_model_or_ensemble"]
    assert [model["trainer"] for model in best["selected_model_or_models"]] == [TRAINER]
    merged = trained.results / MODEL / "crossval_results_folds_0_1"
    assert sorted(path.name for path in merged.glob("*.nii.gz")) == [f"case_{number}.nii.gz" for number in range(3)]


def test_another_plans_identifier_just_works(trained):
    """Fewer features and a smaller patch under a new name, and a number of epochs in the trainer's name."""
    plans = trained.plans_content()
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = [8, 16, 8]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [2, 4, 4]
    plans["plans_name"] = "nnUNetPlansSmaller"
    plans["nnunet_dhc"] = {"num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
    (trained.preprocessed / "nnUNetPlansSmaller.json").write_text(json.dumps(plans))
    name = f"{TRAINER}_1epoch"
    outcome = run(
        trained,
        ("nnUNetv2_train", "999", "3d_fullres", "0", "-tr", name, "-p", "nnUNetPlansSmaller", "-device", "cpu"),
    )
    assert outcome.code == 0, outcome.err[-3000:]
    assert "Preprocessing" not in outcome.out  # the same preprocessed cases serve
    folder = trained.results / f"{name}__nnUNetPlansSmaller__3d_fullres" / "fold_0"
    assert (folder / "validation" / "summary.json").is_file()
    assert (folder / "dhc_run.json").is_file()
