# SPDX-License-Identifier: Apache-2.0
"""A sub-network as a stock model: the same voxels, in a process that has no nnunet_dhc; and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from shortcuts import leave_out_curves
from tiny_data import TINY_PLANS, TinyDataset, make_scan
from tiny_training import files_up_to, make_trainer, resumed

from nnunet_dhc.cli.main import main
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.models import export_model as export_module
from nnunet_dhc.nnunet.models import sub_network_dice
from nnunet_dhc.nnunet.models.export_model import ExportRequest, export_model
from nnunet_dhc.nnunet.models.sub_network_dice import SubNetworkDice, mean_foreground_dice

FOLDS = [
    {"train": ["case_0", "case_1"], "val": ["case_2", "case_3"]},
    {"train": ["case_2", "case_3"], "val": ["case_0"]},
]
CPU = torch.device("cpu")
RUN_OF_STOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nnunet_dhc":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import json, numpy as np, torch
from pathlib import Path
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
torch.set_num_threads(1)
work = Path(sys.argv[1])
image = np.load(work / "image.npy")
for name in ("A", "B"):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(work / name), None)
    assert len(predictor.list_of_parameters) == 2
    segmentation, probabilities = predictor.predict_single_npy_array(
        image, {"spacing": [1.0, 1.0, 1.0]}, None, None, True
    )
    np.savez(work / f"{name}.npz", segmentation=segmentation, probabilities=probabilities)
    checkpoint = torch.load(work / name / "fold_0" / "checkpoint_final.pth", weights_only=True)
    plans = json.loads((work / name / "plans.json").read_text())
    assert checkpoint["init_args"]["plans"] == plans and "nnunet_dhc" not in plans
    trainer = nnUNetTrainer({**plans, "continue_training": True}, "3d_fullres", 0,
                            json.loads((work / name / "dataset.json").read_text()), torch.device("cpu"))
    trainer.load_checkpoint(str(work / name / "fold_0" / "checkpoint_final.pth"))
assert not any(module.split(".")[0] == "nnunet_dhc" for module in sys.modules)
"""


@pytest.fixture(scope="module")
def trained_template(tiny_dataset_template, tmp_path_factory):
    """Two folds of a pair, trained for one epoch; nobody writes into it."""
    with pytest.MonkeyPatch.context() as patch:
        dataset = tiny_dataset_template.copied_to(tmp_path_factory.mktemp("trained") / "nnunet", patch)
        leave_out_curves(patch)
        dataset.write_split(FOLDS)
        for fold in range(len(FOLDS)):
            make_trainer(dataset, fold=fold, num_epochs=1).run_training()
    return dataset


@pytest.fixture
def trained(trained_template, tmp_path, monkeypatch):
    return trained_template.copied_to(tmp_path / "nnunet", monkeypatch)


def request(network: str = "A", folds=(0, 1), **changes) -> ExportRequest:
    arguments = {"dataset": 999, "configuration": "3d_fullres", "plans_identifier": TINY_PLANS}
    return ExportRequest(folds=list(folds), network=network, **{**arguments, **changes})


def model_path(dataset: TinyDataset) -> Path:
    return dataset.results / f"nnUNetTrainerDHC__{TINY_PLANS}__3d_fullres"


def sub_network_prediction(dataset: TinyDataset, image: np.ndarray, output: str) -> tuple[np.ndarray, np.ndarray]:
    """The prediction of one sub-network inside the pair."""
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model_path(dataset)), (0, 1))
    predictor.network.output = output
    return predictor.predict_single_npy_array(image, {"spacing": [1.0, 1.0, 1.0]}, None, None, True)


@pytest.mark.slow
def test_predicts_the_same_voxels_without_this_package(trained, tmp_path):
    image = make_scan(77, (20, 18, 17))[0][None].astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    for network in ("A", "B"):
        export_model(request(network), tmp_path / network, CPU)
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1",
                   "nnUNet_results": str(tmp_path / "elsewhere")}
    environment.pop("nnUNet_extTrainer", None)
    subprocess.run([sys.executable, "-c", RUN_OF_STOCK, str(tmp_path)], env=environment, check=True, timeout=300)
    predictions = {}
    for network in ("A", "B"):
        segmentation, probabilities = sub_network_prediction(trained, image, network.lower())
        with np.load(tmp_path / f"{network}.npz") as stock:
            np.testing.assert_array_equal(stock["segmentation"], segmentation)
            np.testing.assert_array_equal(stock["probabilities"], probabilities)
        predictions[network] = probabilities
    assert not np.array_equal(predictions["A"], predictions["B"])


def test_files_of_an_export(trained, tmp_path, capsys):
    options = ["-d", "999", "-c", "3d_fullres", "-p", TINY_PLANS, "-f", "0", "1", "-net", "B"]
    assert main(["export", *options, "-o", str(tmp_path / "deep" / "model")]) == 0
    assert "nnUNetv2_predict_from_modelfolder" in capsys.readouterr().out
    folder = tmp_path / "deep" / "model"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "dataset.json", "dataset_fingerprint.json", "exported_by_nnunet_dhc.json", "fold_0/checkpoint_final.pth",
        "fold_1/checkpoint_final.pth", "plans.json",
    ]
    assert os.listdir(folder.parent) == ["model"]
    sidecar = json.loads((folder / "exported_by_nnunet_dhc.json").read_text())
    assert (sidecar["network"], sidecar["trainer"], sidecar["validation_dice"]) == ("B", "nnUNetTrainerDHC", None)
    assert [fold["epochs"] for fold in sidecar["folds"]] == [1, 1]
    assert str(trained.root) not in (folder / "exported_by_nnunet_dhc.json").read_text()
    stock = torch.load(folder / "fold_1" / "checkpoint_final.pth", weights_only=True)
    ours = torch.load(model_path(trained) / "fold_1" / "checkpoint_final.pth", weights_only=False)
    nnUNetTrainer.save_checkpoint(resumed(trained, make_trainer(trained), "checkpoint_final.pth"), tmp_path / "all.pth")
    assert stock.keys() == torch.load(tmp_path / "all.pth", weights_only=False).keys()
    assert stock["trainer_name"] == "nnUNetTrainer"
    for key in ("inference_allowed_mirroring_axes", "current_epoch", "logging", "_best_ema"):
        assert stock[key] == ours[key], key
    for key, value in stock["network_weights"].items():
        assert torch.equal(value, ours["network_weights"][f"sub_network_b.{key}"])
    size = (model_path(trained) / "fold_1" / "checkpoint_final.pth").stat().st_size
    assert (folder / "fold_1" / "checkpoint_final.pth").stat().st_size < 0.5 * size  # nothing of A in it


def test_dice_of_a_sub_network_is_nnunets(trained, no_process_pools):
    model = export_module.find_model_folder(999, "nnUNetTrainerDHC", TINY_PLANS, "3d_fullres")
    measured = SubNetworkDice(model, 1, "checkpoint_final.pth").measure(CPU)
    trainer = make_trainer(trained, continues=True, fold=1)
    trainer.load_checkpoint(str(model.checkpoint(1, "checkpoint_final.pth")))
    for network in ("A", "B"):
        trainer.pair.output = network.lower()
        trainer.perform_actual_validation()
        summary = json.loads((model_path(trained) / "fold_1" / "validation" / "summary.json").read_text())
        for case in summary["metric_per_case"]:
            name = Path(case["reference_file"]).name.removesuffix(".nii.gz")
            expected = {label: values["Dice"] for label, values in case["metrics"].items()}
            assert measured[network][name] == pytest.approx(expected)
        mean = summary["foreground_mean"]["Dice"]
        assert mean_foreground_dice(list(measured[network].values())) == pytest.approx(mean)


def test_what_the_exported_network_has_not_learned_is_named(trained, tmp_path, capsys):
    for fold in (0, 1):
        path = model_path(trained) / f"fold_{fold}" / "checkpoint_final.pth"
        checkpoint = torch.load(path, weights_only=False)
        names = checkpoint["nnunet_dhc"]["class_names"]
        checkpoint["network_weights"].pop("votes", None)  # after one epoch, one network may have learned more or not
        if fold == 1:
            votes = torch.full((2, len(names)), 0.5)
            votes[:, 2] = torch.tensor([0.0, 1.0])  # A abstains
            checkpoint["network_weights"]["votes"] = votes
        torch.save(checkpoint, path)
    for network, missing in (("A", [names[2]]), ("B", [])):
        export_model(request(network), tmp_path / network, CPU)
        sources = json.loads((tmp_path / network / export_module.SIDECAR).read_text())["folds"]
        assert [source["no_say_in"] for source in sources] == [[], missing]
        assert (f"fold 1: {network} hasn't learned {names[2]}" in capsys.readouterr().out) == bool(missing)


def test_mean_leaves_out_what_is_in_neither():
    cases = [{"1": 0.5, "2": None}, {"1": 0.7, "2": 0.2}, {"1": None, "2": None}]
    assert mean_foreground_dice(cases) == pytest.approx((0.6 + 0.2) / 2)
    assert mean_foreground_dice([{"1": None}]) is None


def test_best_is_decided_over_all_folds_and_remembered(trained, tmp_path, monkeypatch, capsys):
    dice = {  # A wins fold 0, B wins over both
        0: {"A": {"case_2": {"1": 0.6}, "case_3": {"1": 0.6}}, "B": {"case_2": {"1": 0.5}, "case_3": {"1": 0.6}}},
        1: {"A": {"case_0": {"1": 0.1}}, "B": {"case_0": {"1": 0.9}}},
    }
    predicted = []
    monkeypatch.setattr(sub_network_dice, "_predictors", lambda *_: {"A": "A", "B": "B"})

    def known_dice(cases, predictor, case):
        predicted.append((cases.fold, predictor, case))
        return dice[cases.fold][predictor][case]

    monkeypatch.setattr(sub_network_dice, "_dice", known_dice)
    export_model(request("best", [0]), tmp_path / "one fold", CPU)
    assert len(predicted) == 4
    export_model(request("best"), tmp_path / "both folds", CPU)
    assert len(predicted) == 6  # only what was not known
    export_model(request("A"), tmp_path / "a", CPU)
    assert len(predicted) == 6
    sidecars = [json.loads((tmp_path / name / export_module.SIDECAR).read_text()) for name in
                ("one fold", "both folds", "a")]
    assert [sidecar["network"] for sidecar in sidecars] == ["A", "B", "A"]
    assert sidecars[1]["asked_for"] == "best"
    assert sidecars[2]["validation_dice"] == pytest.approx({"A": 1.3 / 3, "B": 2 / 3})
    # a reference that was corrected since is compared again, and nothing old is stated
    reference = trained.preprocessed / "gt_segmentations" / "case_0.nii.gz"
    os.utime(reference, ns=(0, 0))
    export_model(request("A"), tmp_path / "a corrected", CPU)
    assert json.loads((tmp_path / "a corrected" / export_module.SIDECAR).read_text())["validation_dice"] is None
    export_model(request("best"), tmp_path / "corrected", CPU)
    assert predicted[6:] == [(1, "A", "case_0"), (1, "B", "case_0")]
    # another checkpoint under the same name is predicted again
    checkpoint = model_path(trained) / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(checkpoint, weights_only=False), "current_epoch": 7}, checkpoint)
    export_model(request("best"), tmp_path / "again", CPU)
    assert len(predicted) == 12


def test_stopped_measurement_goes_on(trained, monkeypatch):
    model = export_module.find_model_folder(999, "nnUNetTrainerDHC", TINY_PLANS, "3d_fullres")
    calls = []

    def stop_at_third(cases, predictor, case):
        calls.append(case)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"1": 0.5}

    monkeypatch.setattr(sub_network_dice, "_dice", stop_at_third)
    fold = SubNetworkDice(model, 0, "checkpoint_final.pth")
    with pytest.raises(KeyboardInterrupt):
        fold.measure(CPU)
    assert fold.remembered() is None
    fold.measure(CPU)
    assert len(calls) == 5  # two of four were known
    assert fold.remembered() == {"A": {"case_2": {"1": 0.5}, "case_3": {"1": 0.5}}} | {
        "B": {"case_2": {"1": 0.5}, "case_3": {"1": 0.5}}
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoint_latest.pth", "the training is not finished: continue it with --c, or give -chk checkpoint_latest"),
        ("checkpoint_final.pth.before", "an earlier training is checkpoint_final.pth.before; finish the new one"),
    ],
)
def test_a_final_checkpoint_that_is_not_there_yet_or_was_set_aside(tmp_path, name, message):
    model = export_module.ModelFolder(tmp_path, "Dataset999_Tiny", "nnUNetTrainerDHC", TINY_PLANS, "3d_fullres")
    for fold in (0, 1):
        model.fold_folder(fold).mkdir()
        model.checkpoint(fold, name).touch()
    with pytest.raises(UserError, match=message):
        model.require_checkpoints([0, 1], "checkpoint_final.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": [0, 1, 2]}, r"no checkpoint_final.pth of fold 2: train them, or use -f 0 1"),
        ({"folds": [0, 0]}, "name each fold once"),
        ({"checkpoint_name": "other.pth"}, "no other.pth of fold 0, 1: train first, or give another -chk"),
        ({"trainer": "nnUNetTrainerCPS"}, r"does not exist: correct -tr, -p or -c \(trained: nnUNetTrainerDHC__"),
        ({"dataset": 998}, "no trained model of dataset 998"),
    ],
)
def test_refused(trained, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        export_model(request(**changes), tmp_path / "model", CPU)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plans.json", "[]", "plans.json holds no JSON object: train again, or copy the file back"),
        ("plans.json", "{}", 'plans.json is no plans file, it has no "configurations": train again, or copy'),
        (
            "plans.json",
            '{"configurations": {}, "plans_name": "", "image_reader_writer": ""}',
            "plans.json has no configuration 3d_fullres: train again, or copy",
        ),
        ("dataset.json", "{}", "dataset.json has no labels, file_ending, channel_names: "),
    ],
)
def test_damaged_files_of_the_model_are_named(trained, tmp_path, name, content, message):
    (model_path(trained) / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        export_model(request("A"), tmp_path / "model", CPU)


def test_data_that_are_gone_are_named(trained, tmp_path):
    """The folder with what nnU-Net keeps beside the images is still there."""
    for path in (trained.preprocessed / "nnUNetPlans_3d_fullres").glob("*.b2nd"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no preprocessed cases, .*bring the preprocessed data back"):
        export_model(request("best"), tmp_path / "model", CPU)


def test_the_command_it_prints_can_be_run(trained, tmp_path, capsys):
    """Without references, too: network A was asked for."""
    (trained.preprocessed / "gt_segmentations" / "case_2.nii.gz").unlink()
    export_model(request(), tmp_path / "my model", CPU)
    assert f"-m '{tmp_path}/my model' -f 0 1 -device cpu\n" in capsys.readouterr().out


def test_never_over_an_existing_folder(trained, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("kept")
    with pytest.raises(UserError, match="exists; an exported model never replaces a folder"):
        export_model(request(), tmp_path / "model", CPU)
    assert os.listdir(tmp_path / "model") == ["mine"]


@pytest.mark.parametrize(
    ("trainer_name", "message"),
    [
        ("nnUNetTrainer", "was written by nnUNetTrainer and holds no state"),
        ("nnUNetTrainerDHC", "was written by nnUNetTrainerDHC, which trains no pair of networks"),  # as -tr says
    ],
)
@pytest.mark.parametrize("network", ["best", "A"])
def test_stock_checkpoint_is_refused(trained, tmp_path, trainer_name, message, network):
    path = model_path(trained) / "fold_1" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["nnunet_dhc"]
    torch.save({**checkpoint, "trainer_name": trainer_name}, path)
    with pytest.raises(UserError, match=message):
        export_model(request(network=network), tmp_path / "model", CPU)
    assert not list(tmp_path.glob(".writing-*")) and not (tmp_path / "model").exists()


def test_network_of_another_architecture_is_refused_before_anything_is_predicted(trained, tmp_path, monkeypatch):
    path = model_path(trained) / "plans.json"
    plans = json.loads(path.read_text())
    architecture = json.loads(json.dumps(plans["configurations"]["3d_fullres"]["architecture"]))
    architecture["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
    plans["nnunet_dhc"]["architecture_b"] = {"3d_fullres": architecture}
    path.write_text(json.dumps(plans))
    monkeypatch.setattr(SubNetworkDice, "measure", None)
    for network in ("B", "best"):
        with pytest.raises(UserError, match=r"sub-network B of .* has an architecture of its own"):
            export_model(request(network), tmp_path / "b", CPU)
    export_model(request("A"), tmp_path / "a", CPU)
    plans["configurations"]["3d_fullres"]["architecture"] = architecture
    path.write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"stages.2.* has shape \(8, 8, 3, 3, 3\) instead of \(16, 8, 3, 3, 3\)"):
        export_model(request("A"), tmp_path / "c", CPU)


def test_full_disk_leaves_nothing(trained, tmp_path):
    with files_up_to(20_000), pytest.raises(UserError, match=r"model can't be written .*free space"):
        export_model(request(), tmp_path / "model", CPU)
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".writing-*"))
