# SPDX-License-Identifier: Apache-2.0
"""Ranking with a tiny trained pair: what is predicted and remembered, resuming, folders of scans, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from shortcuts import leave_out_curves
from tiny_data import TINY_PLANS, TinyDataset, make_scan, write_image
from tiny_training import make_trainer

from nnunet_dhc.core.annotation_value import count_pair
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.network.model_folder import find_model_folder
from nnunet_dhc.nnunet.ranking import rank_cases as rank_module
from nnunet_dhc.nnunet.ranking.rank_cases import (
    CASE_FOLDER,
    PairPredictor,
    RankRequest,
    mean_votes,
    order_records,
    rank_cases,
)
from nnunet_dhc.nnunet.ranking.rank_planes import disagreement_planes, oriented
from nnunet_dhc.nnunet.ranking.rank_sources import StoreCases

CPU = torch.device("cpu")
# case_5 is labeled in fold 1 only, case_4 has a hidden label in both.
FOLDS = [
    {"train": ["case_0", "case_1"], "val": ["case_2"], "unlabeled": ["case_4", "case_5"]},
    {"train": ["case_2", "case_5"], "val": ["case_0"], "unlabeled": ["case_4"]},
]
UNLABELED = ["case_4", "case_5", "scan_0", "scan_1", "scan_2"]


@pytest.fixture(scope="module")
def template(tiny_dataset_template, tmp_path_factory):
    """Two folds, trained for one epoch; nobody writes into it."""
    with pytest.MonkeyPatch.context() as patch:
        dataset = tiny_dataset_template.copied_to(tmp_path_factory.mktemp("rank") / "nnunet", patch)
        leave_out_curves(patch)
        dataset.write_split(FOLDS)
        for fold in range(len(FOLDS)):
            make_trainer(dataset, fold=fold, num_epochs=1, abstain_below=0).run_training()
    return dataset


@pytest.fixture
def trained(template, tmp_path, monkeypatch):
    return template.copied_to(tmp_path / "nnunet", monkeypatch)


def request(**changes) -> RankRequest:
    arguments = {"dataset": 999, "configuration": "3d_fullres", "folds": [0], "plans_identifier": TINY_PLANS,
                 "mirroring": False, **changes}
    return RankRequest(**arguments)


def rank(output: Path, **changes) -> dict:
    return rank_cases(request(**changes), output, CPU, show_progress=False, say=lambda _: None)


def model_folder(dataset: TinyDataset) -> Path:
    return dataset.results / f"nnUNetTrainerDHC__{TINY_PLANS}__3d_fullres"


@pytest.mark.slow
def test_own_unlabeled_cases_and_resuming(trained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predicted: list[tuple] = []
    original = PairPredictor.logits

    def dying(self, image):
        if len(predicted) == 2:
            raise KeyboardInterrupt
        predicted.append(image.shape)
        return original(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(PairPredictor, "logits", dying)
        with pytest.raises(KeyboardInterrupt):
            rank(out)
    kept = sorted(path.name for path in (out / CASE_FOLDER).glob("case_*"))
    assert kept == ["case_4.json", "case_4.npz", "case_5.json", "case_5.npz"]
    monkeypatch.setattr(PairPredictor, "logits", lambda self, image: predicted.append(1) or original(self, image))
    first = rank(out, budget=2)
    assert len(predicted) == 5
    assert sorted(first["cases"]) == UNLABELED
    assert [line["chosen"] for line in first["ranking"]] == [True, True, False, False, False]
    json.dumps(first, allow_nan=False)
    assert rank(out, budget=2) == first  # nothing is predicted again
    assert len(predicted) == 5
    assert rank(tmp_path / "fresh", budget=2)["ranking"] == first["ranking"]  # a resumed run is a whole one
    (out / CASE_FOLDER / "scan_1.json").write_text("{")
    assert rank(out, budget=2) == first
    assert len(predicted) == 11


@pytest.mark.slow
def test_what_is_remembered_is_of_the_weights_that_predicted_it(trained, tmp_path):
    first = rank(tmp_path / "out", budget=2)
    path = model_folder(trained) / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    bias, = (name for name in checkpoint["network_weights"] if name.endswith("a.decoder.seg_layers.1.bias"))
    checkpoint["network_weights"][bias][1] += 9.0  # A paints class 1 everywhere
    torch.save(checkpoint, path)
    second = rank(tmp_path / "out", budget=2)
    assert second["structures"][0]["disagreement"] != first["structures"][0]["disagreement"]


@pytest.mark.slow
def test_each_sub_network_alone_and_folds_averaged(trained):
    model = find_model_folder(999, "nnUNetTrainerDHC", TINY_PLANS, "3d_fullres")
    image = np.random.default_rng(0).normal(size=(1, 20, 18, 17)).astype(np.float32)
    a, b = PairPredictor(model, [0], "checkpoint_final.pth", CPU, mirroring=False).logits(image)
    assert a.shape == b.shape == (4, 20, 18, 17)
    assert not torch.equal(a, b)
    pair = PairPredictor(model, [0], "checkpoint_final.pth", CPU, mirroring=False)
    mean = pair.predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image))
    # nnU-Net sums up in half precision, which is coarse near the border, where the weights of a patch are tiny.
    inside = (slice(None), *[slice(4, -4)] * 3)
    together = pair.pair.combined(a.float()[None], b.float()[None])[0]
    torch.testing.assert_close(together[inside], mean.float()[inside], atol=3e-2, rtol=2e-2)
    other, _ = PairPredictor(model, [1], "checkpoint_final.pth", CPU, mirroring=False).logits(image)
    both, _ = PairPredictor(model, [0, 1], "checkpoint_final.pth", CPU, mirroring=False).logits(image)
    averaged = (a.float() + other.float()) / 2
    torch.testing.assert_close(both.float()[inside], averaged[inside], atol=2e-2, rtol=2e-2)


@pytest.mark.slow
def test_a_case_labeled_in_one_of_the_folds_is_not_ranked(trained, tmp_path):
    assert sorted(rank(tmp_path / "out", folds=[0, 1])["cases"]) == [case for case in UNLABELED if case != "case_5"]


def test_a_case_that_a_model_has_trained_on_is_not_ranked_though_the_split_has_changed(trained):
    model = find_model_folder(999, "nnUNetTrainerDHC", TINY_PLANS, "3d_fullres")
    trained.write_split([{"train": ["case_3"], "val": ["case_2"], "unlabeled": ["case_0", "case_4"]}])
    source = StoreCases(model, [0], 0, print)
    assert source.identifiers == ["case_4", *trained.unlabeled]
    assert source.left_out == {"case_0": "had a label when this model was trained"}


@pytest.mark.slow
def test_same_sub_networks_do_not_disagree(trained, tmp_path):
    for path in model_folder(trained).glob("fold_*/checkpoint_final.pth"):
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        weights = checkpoint["network_weights"]
        for key in [key for key in weights if key.startswith("sub_network_a.")]:
            weights[key.replace("sub_network_a.", "sub_network_b.")] = weights[key]
        torch.save(checkpoint, path)
    ranking = rank(tmp_path / "out")
    values = [item["disagreement"] for line in ranking["ranking"] for item in line["structures"].values()]
    assert set(values) <= {0.0, None}


@pytest.mark.slow
def test_folder_of_scans(trained, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for seed in (50, 51):
        write_image(scans / f"new_{seed}_0000.nii.gz", make_scan(seed)[0])
    (scans / "broken_0000.nii.gz").write_bytes(b"no image")
    ranking = rank(tmp_path / "out", images=scans)
    assert sorted(ranking["cases"]) == ["new_50", "new_51"]
    assert [item["case"] for item in ranking["left_out"]] == ["broken"]
    # The unlabeled store has scan_0 ... preprocessed in advance: the same voxels give the same sums.
    same = tmp_path / "same"
    same.mkdir()
    shutil.copy(trained.images_un / "scan_0_0000.nii.gz", same / "scan_0_0000.nii.gz")
    rank(tmp_path / "one", images=same)
    rank(tmp_path / "own")
    sums = [json.loads((tmp_path / name / CASE_FOLDER / "scan_0.json").read_text()) for name in ("one", "own")]
    for name in ("predicted_a", "predicted_b", "overlap", "entropy", "voxel_ml"):
        assert sums[0][name] == sums[1][name]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "message"), [
    ({"folds": []}, "name each fold once"),
    ({"budget": 0}, "--budget 0"),
    ({"diversity": 2.0}, "--diversity 2.0"),
    ({"folds": [4]}, "no checkpoint_final.pth of fold 4"),
    ({"trainer": "nnUNetTrainerCPS"}, "trained: nnUNetTrainerDHC__"),
    ({"images": Path("nowhere")}, "is not a folder"),
])
def test_refusals_are_one_line(trained, tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        rank(tmp_path / "out", **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_damaged_checkpoint_and_empty_folder(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no scan named"):
        rank(tmp_path / "out", images=tmp_path / "empty")
    path = model_folder(trained) / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="can't be loaded"):
        rank(tmp_path / "out")


def test_two_rankings_into_one_folder_are_refused(trained, tmp_path):
    """One would remove what the other is writing."""
    with rank_module._only_ranking(tmp_path / "out" / CASE_FOLDER):
        with pytest.raises(UserError, match="another ranking is writing to"):
            rank(tmp_path / "out")


def test_scans_that_go_away_are_no_full_disk(trained, tmp_path, monkeypatch):
    def gone(*_):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(StoreCases, "load", gone)
    with pytest.raises(UserError, match=r"can't be read \(Transport endpoint is not connected\)"):
        rank(tmp_path / "out")


def test_preprocessed_data_that_are_gone_are_named(trained, tmp_path):
    for path in (trained.preprocessed / "nnUNetPlans_3d_fullres").glob("*.b2nd"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no preprocessed cases, .*rank a folder of scans with -i"):
        rank(tmp_path / "out")


def test_plans_made_anew_since_are_refused(trained, tmp_path):
    """The unlabeled cases of the dataset would be preprocessed anew, perhaps under a training that reads them."""
    path = trained.preprocessed / f"{TINY_PLANS}.json"
    before = path.read_text()
    plans = json.loads(before)
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["NoNormalization"]
    path.write_text(json.dumps(plans))
    try:
        with pytest.raises(UserError, match=f"{TINY_PLANS} in .* preprocesses otherwise than when"):
            rank(tmp_path / "out")
    finally:
        path.write_text(before)


def record_of(counts, voxel_ml=0.001) -> dict:
    return {**{item.name: getattr(counts, item.name).tolist() for item in fields(counts)}, "voxel_ml": voxel_ml}


def test_order_of_records():
    """Three scans: one that both find easy, two that are copies of each other and hard."""
    torch.manual_seed(0)
    a = torch.randn(3, 8, 8, 8)
    easy, hard = count_pair(a, a), count_pair(a, torch.randn(3, 8, 8, 8))

    structures = [{"key": "1", "name": "one", "labels": [1]}, {"key": "2", "name": "two", "labels": [2]}]
    records = {"easy": record_of(easy), "hard": record_of(hard), "copy": record_of(hard)}
    assert order_records(records, structures, 0.0, 1)["cases"] == ["hard", "copy", "easy"]
    diverse = order_records(records, structures, 0.6, 1)
    assert diverse["cases"] == ["hard", "easy", "copy"]
    assert diverse["ranking"][1]["rank_by_score"] == 3
    assert diverse["structures"][0]["found_in"] == 3


def test_planes_go_through_the_disagreement():
    a, b = np.zeros((2, 6, 7, 8), np.uint16)
    a[2, 3, 4] = 2
    facts, arrays = disagreement_planes(np.where(a == 2, 5.0, 0.0), a, b, (1.0, 1.0, 1.0))
    assert [(fact["slice"], fact["slices"], fact["subject"]) for fact in facts] == [(3, 6, 2), (4, 7, 2), (5, 8, 2)]
    assert arrays["0_a"][3, 4] == 2 and arrays["0_image"][3, 4] == 255 and not arrays["0_b"].any()


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1),
                                       (0, 0, 1, 1, 0, 0, 0, 1, 0)])
@pytest.mark.parametrize("backward", [(0, 1, 2), (2, 0, 1)])
def test_volumes_are_turned_to_the_patient(direction, backward):
    """The voxel at a place of the patient is at the same place of the turned volume, whatever the file's axes."""
    stored = np.zeros((3, 4, 5), np.uint8)
    stored[0, 1, 3] = 1  # (z, y, x) of the file
    spacing = (3.0, 2.0, 1.0)
    forward = np.argsort(backward)
    transposed, spacing_of_plans = stored.transpose(forward), [spacing[axis] for axis in forward]
    properties = {"sitk_stuff": {"direction": direction, "origin": (0.0, 0.0, 0.0)}}
    (turned,), turned_spacing = oriented([transposed], spacing_of_plans, backward, properties)
    picture = sitk.GetImageFromArray(stored)
    picture.SetSpacing(spacing[::-1])
    picture.SetDirection(direction)
    expected = sitk.DICOMOrient(picture, "LPS")
    assert np.array_equal(turned, sitk.GetArrayFromImage(expected))
    assert turned_spacing == expected.GetSpacing()[::-1]


def test_what_is_chosen_and_how_large_it_is():
    logits = 40 * torch.nn.functional.one_hot(torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]), 2).movedim(-1, 1).float()
    counts = count_pair(*logits)  # A finds three voxels, B one
    records = {case: record_of(counts, voxel_ml=0.5) for case in "abc"}
    ranking = order_records(records, [{"key": "1", "name": "one", "labels": [1]}], 0.0, 2)["ranking"]
    assert [line["chosen"] for line in ranking] == [True, True, False]
    assert ranking[0]["structures"]["1"]["volume_ml"] == 1.0


def test_a_structure_that_no_scan_has_takes_no_value_of_another():
    logits = 40 * torch.nn.functional.one_hot(torch.tensor([[2, 2, 0], [2, 0, 0]]), 3).movedim(-1, 1).float()
    counts = count_pair(*logits)
    structures = [{"key": key, "name": key, "labels": [int(key)]} for key in "12"]
    found = order_records({"a": record_of(counts)}, structures, 0.0, 1)["ranking"][0]["structures"]
    assert found["1"]["value"] is None
    # 1 - 2 / 3, and one of two voxels with p = 1/2 for two of three classes
    assert found["2"]["value"] == pytest.approx((1 / 3 + 0.5 * np.log(2) / np.log(3)) / 2)


def test_a_structure_that_one_network_has_not_learned_in_any_fold_is_ranked_by_the_other():
    abstains, votes_on_all = torch.tensor([[0.5, 0.0], [0.5, 1.0]]), torch.full((2, 2), 0.5)
    assert mean_votes([{"votes": abstains}, {"votes": abstains}]).tolist() == abstains.tolist()
    assert mean_votes([{"votes": abstains}, {}]).tolist() == ((abstains + votes_on_all) / 2).tolist()
    assert mean_votes([{}, {}]) is None
    logits = torch.randn(2, 2, 50)
    found = [order_records({"a": record_of(count_pair(*logits, votes=votes))},
                           [{"key": "1", "name": "one", "labels": [1]}], 0.0, 1)
             for votes in (abstains, (abstains + votes_on_all) / 2)]
    assert [ranking["structures"][0]["of_one_network"] for ranking in found] == [True, False]
    of_one, of_both = (ranking["ranking"][0] for ranking in found)
    assert of_one["disagreement"] is None and of_one["score"] == of_one["entropy"] > 0
    assert of_both["disagreement"] > 0


@pytest.mark.parametrize("regions", [False, True])
def test_pictures_show_no_disagreement_where_one_network_decides(regions):
    """A abstains from the second structure; its own labels of the first one stay."""
    predictor = PairPredictor.__new__(PairPredictor)
    predictor.votes = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 1.0]])
    dataset = {"background": 0, "one": 1, "two": 2}
    if regions:
        predictor.label_manager = LabelManager({"background": 0, "one": (1, 2), "two": (2,)}, (1, 2))
        a, b = torch.tensor([[[9.0, 9.0, -9.0, 9.0]], [[-9.0, 9.0, -9.0, -9.0]]]), torch.tensor(
            [[[9.0, 9.0, -9.0, 9.0]], [[-9.0, -9.0, -9.0, 9.0]]])
        expected = [[1, 1, 0, 2], [1, 1, 0, 2]]
    else:
        predictor.label_manager = LabelManager(dataset, None)
        a, b = (9.0 * torch.nn.functional.one_hot(torch.tensor([labels]), 3).movedim(-1, 0)
                for labels in ([1, 2, 0, 1], [0, 0, 2, 2]))
        expected = [[1, 0, 2, 2], [0, 0, 2, 2]]
    maps = predictor.label_maps((a.float(), b.float()))
    assert [found[0].tolist() for found in maps] == expected
