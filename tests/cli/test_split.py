# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc split`` through its command: what is written, kept, refused and printed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_dhc.cli.main import main
from nnunet_dhc.nnunet.splits.split_protocols import PROTOCOLS

DATA = os.environ.get("NNUNET_DHC_DATA")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ten small labeled cases; class "rare" in case_3 and case_7 only, "never" in none. Not planned yet."""
    raw = tmp_path / "raw" / "Dataset701_Split"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    labels = {"background": 0, "common": 1, "rare": 2, "never": 3, "ignore": 4}
    for number in range(10):
        segmentation = np.zeros((4, 4, 4), np.uint8)
        segmentation[0] = 1
        segmentation[1, 0] = 4
        if number in (3, 7):
            segmentation[2, 2] = 2
        name = f"case_{number}"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(segmentation), str(raw / "labelsTr" / f"{name}.nii.gz"))
        image = SimpleITK.GetImageFromArray(segmentation.astype(np.int16) * (10 + number) + 5)
        SimpleITK.WriteImage(image, str(raw / "imagesTr" / f"{name}_0000.nii.gz"))
    (raw / "dataset.json").write_text(json.dumps(
        {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 10, "file_ending": ".nii.gz"}))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "res"))
    (tmp_path / "pre").mkdir()
    return tmp_path


def _file(dataset: Path) -> Path:
    return dataset / "pre" / "Dataset701_Split" / "splits_final.json"


def _split(*options: str) -> int:
    return main(["split", "-d", "701", *options])


def test_a_fold_without_unlabeled_cases_is_said_where_there_are_no_others(dataset, capsys):
    options = ("--labeled", "8", "--folds", "5", "--dry-run")
    assert _split(*options) == 0
    assert "needs scans in imagesUn" in capsys.readouterr().out
    folder = dataset / "raw" / "Dataset701_Split" / "imagesUn"
    folder.mkdir()
    (folder / "a_0000.nii.gz").touch()
    assert _split(*options) == 0
    assert "needs scans in imagesUn" not in capsys.readouterr().out


def test_writes_folds_with_all_classes_labeled(dataset, capsys):
    assert _split("--labeled", "2", "--folds", "2", "--seed", "5") == 0
    folds = json.loads(_file(dataset).read_text())
    assert len(folds) == 2
    for fold in folds:
        assert set(fold) == {"train", "val", "unlabeled"}
        assert len(fold["train"]) == 2
        assert sorted(fold["train"] + fold["val"] + fold["unlabeled"]) == [f"case_{n}" for n in range(10)]
        assert {"case_3", "case_7"} & set(fold["train"])
    assert not set(folds[0]["val"]) & set(folds[1]["val"])
    printed = capsys.readouterr().out
    assert "no case of the dataset contains never" in printed
    assert f"wrote {_file(dataset)}" in printed


def test_says_which_class_is_missing(dataset, capsys):
    groups = dataset / "groups.csv"
    groups.write_text("identifier,group\ncase_3,p\ncase_7,p\ncase_1,\ncase_2,\n")  # an empty group is no group
    assert _split("--labeled", "2", "--folds", "2", "--groups", str(groups)) == 0
    folds = json.loads(_file(dataset).read_text())
    assert [{"case_3", "case_7"} <= set(fold["val"]) for fold in folds].count(True) == 1
    assert "no labeled case contains rare (only validation cases have rare)" in capsys.readouterr().out


def test_old_file_is_kept_and_raw_copy_updated(dataset, capsys):
    raw_copy = dataset / "raw" / "Dataset701_Split" / "splits_final.json"
    raw_copy.write_text("[1]")
    _file(dataset).parent.mkdir()
    _file(dataset).write_text("[2]")
    assert _split("--labeled", "0.5", "--folds", "1", "--val", "3") == 0
    assert raw_copy.read_text() == _file(dataset).read_text()
    backups = sorted(dataset.rglob("splits_final.json.*.bak"))
    assert sorted(path.read_text() for path in backups) == ["[1]", "[2]"]
    printed = capsys.readouterr().out
    assert all(str(path) in printed for path in backups)
    fold, = json.loads(_file(dataset).read_text())
    assert [len(fold[key]) for key in ("train", "val", "unlabeled")] == [4, 3, 3]
    # Again: nothing changes, nothing is backed up.
    assert _split("--labeled", "0.5", "--folds", "1", "--val", "3") == 0
    assert len(list(dataset.rglob("*.bak"))) == 2


def test_two_changes_within_a_second_keep_both_files(dataset):
    for seed in ("0", "1", "2", "3"):
        assert _split("--labeled", "2", "--folds", "2", "--seed", seed) == 0
    assert len(list(dataset.rglob("*.bak"))) == 3


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that this user can't write")
def test_read_only_raw_folder_with_a_split_is_refused(dataset, capsys):
    raw_copy = dataset / "raw" / "Dataset701_Split" / "splits_final.json"
    raw_copy.write_text("[1]")
    raw_copy.parent.chmod(0o500)
    try:
        assert _split("--labeled", "2") == 2
    finally:
        raw_copy.parent.chmod(0o700)
    assert not _file(dataset).exists()
    assert "can't be written" in capsys.readouterr().err


def test_unwritable_raw_split_is_refused_before_anything_changes(dataset, capsys, monkeypatch):
    raw_copy = dataset / "raw" / "Dataset701_Split" / "splits_final.json"
    raw_copy.write_text("[1]")
    real = os.access
    monkeypatch.setattr("nnunet_dhc.nnunet.splits.split_writer.os.access",
                        lambda path, mode: Path(path) != raw_copy.parent and real(path, mode))
    assert _split("--labeled", "2") == 2
    assert not _file(dataset).exists()
    assert raw_copy.read_text() == "[1]"
    assert "nothing was changed" in capsys.readouterr().err


def test_dry_run_writes_nothing(dataset, capsys):
    assert _split("--labeled", "2", "--dry-run") == 0
    assert not _file(dataset).exists()
    assert "dry run" in capsys.readouterr().out


def test_several_seeds_share_validation_cases(dataset):
    assert _split("--labeled", "3", "--folds", "1", "--val", "2", "--seed", "0", "1", "2") == 0
    folds = json.loads(_file(dataset).read_text())
    assert len(folds) == 3
    assert len({tuple(fold["val"]) for fold in folds}) == 1
    assert len({tuple(fold["train"]) for fold in folds}) > 1


def test_nested_over_fractions(dataset):
    labeled = []
    for part in ("0.25", "0.5", "1.0"):
        assert _split("--labeled", part, "--folds", "2") == 0
        labeled.append([set(fold["train"]) for fold in json.loads(_file(dataset).read_text())])
    for small, medium, large in zip(*labeled, strict=True):
        assert small < medium < large


def test_keep_divides_existing_folds(dataset):
    _file(dataset).parent.mkdir()
    old = [{"train": [f"case_{n}" for n in range(2, 10)], "val": ["case_0", "case_1"]}]
    _file(dataset).write_text(json.dumps(old))
    assert _split("--labeled", "2", "--keep") == 0
    fold, = json.loads(_file(dataset).read_text())
    assert fold["val"] == ["case_0", "case_1"]
    assert sorted(fold["train"] + fold["unlabeled"]) == old[0]["train"]
    # The division can be made again from its own result.
    assert _split("--labeled", "3", "--keep") == 0
    again, = json.loads(_file(dataset).read_text())
    assert set(fold["train"]) < set(again["train"])


@pytest.mark.parametrize(("content", "message"), [
    ([], "must be a list with one"), ({}, "must be a list with one"), (["case_1"], "fold 0 of"),
    ([{"train": [1, 2], "val": [3]}], '"train" must be a list of case identifiers'),
])
def test_keep_refuses_what_is_no_split(dataset, capsys, content, message):
    _file(dataset).parent.mkdir()
    _file(dataset).write_text(json.dumps(content))
    assert _split("--labeled", "2", "--keep") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("of_second", [{}, {"val": []}])
def test_keep_refuses_a_fold_without_validation_cases(dataset, capsys, of_second):
    """Training refuses it, too."""
    _file(dataset).parent.mkdir()
    old = json.dumps([{"train": ["case_0", "case_1"], "val": ["case_2"]}, {"train": ["case_0", "case_1"], **of_second}])
    _file(dataset).write_text(old)
    assert _split("--labeled", "1", "--keep") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f'--keep: fold 1 of {_file(dataset)} has no validation case, and training would refuse it: '
                         'list some under "val", or leave --keep out to draw folds')
    assert _file(dataset).read_text() == old


def test_keep_leaves_cases_out_that_a_group_has_beside_the_fold(dataset, tmp_path):
    """case_3 is in no list of the file, for a test perhaps."""
    _file(dataset).parent.mkdir()
    _file(dataset).write_text(json.dumps([{"train": ["case_0", "case_1"], "val": ["case_2"]}]))
    groups = tmp_path / "groups.csv"
    groups.write_text("identifier,group\ncase_0,patient\ncase_3,patient\n")
    assert _split("--labeled", "1", "--keep", "--groups", str(groups)) == 0
    fold, = json.loads(_file(dataset).read_text())
    assert sorted(fold["train"] + fold["unlabeled"]) == ["case_0", "case_1"] and fold["val"] == ["case_2"]


def test_unstratified_reads_no_label(dataset):
    for path in (dataset / "raw" / "Dataset701_Split" / "labelsTr").iterdir():
        path.write_bytes(b"not an image")
    assert _split("--labeled", "2", "--unstratified") == 0
    assert _file(dataset).exists()


def test_labels_are_counted_once(dataset, monkeypatch):
    assert _split("--labeled", "2") == 0
    monkeypatch.setattr("nnunet_dhc.nnunet.splits.label_contents._count", None)
    assert _split("--labeled", "3") == 0


@pytest.mark.parametrize(("options", "message"), [
    ([], "--labeled is needed"),
    (["--labeled", "20"], "choose between 1 and the 8 training cases"),
    (["--labeled", "0.0"], "--labeled 0.0: a fraction is above 0"),
    (["--labeled", "-0.5"], "--labeled -0.5: a fraction is above 0"),
    (["--labeled", "1.5"], "--labeled 1.5: a fraction is above 0"),
    (["--labeled", "2", "--folds", "1", "--val", "40"], "--val 40: choose between 1 and the 10 cases"),
    (["--labeled", "2", "--folds", "1", "--val", "-0.2"], "--val -0.2: a fraction is above 0"),
    (["--labeled", "2", "--val", "2"], "--val goes with --folds 1"),
    (["--labeled", "2", "--folds", "11"], "only 10 cases"),
    (["--labeled", "2", "--folds", "0"], "at least 1"),
    (["--labeled", "2", "--seed", "1", "1"], "give each seed once, 0 or higher"),
    (["--labeled", "2", "--keep"], "does not exist"),
    (["--labeled", "2", "--groups", "nowhere.csv"], "nowhere.csv can't be read"),
    (["--labeled", "2", "--strict"], "run nnUNetv2_plan_and_preprocess"),
    (["--labeled", "2", "--keep", "--folds", "3", "--val", "2"], "leave out --folds, --val, or --keep"),
    (["--protocol", "btcv20", "--labeled", "2", "--seed", "1"], "nothing is drawn for: leave out --labeled, --seed"),
    (["--protocol", "btcv20"], "24 of its 24 cases are not in the dataset"),
])
def test_bad_request_is_one_line(dataset, capsys, options, message):
    assert _split(*options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("nnunet_dhc split: ")
    assert message in error
    assert not _file(dataset).exists()


@pytest.mark.parametrize(("content", "message"), [
    ("a,b\n1,2\n", "columns identifier,group"),
    ("", "columns identifier,group"),
    ("identifier,group\nnobody,1\n", "nobody"),
    ("identifier,group\ncase_1,1\ncase_1,2\n", "twice"),
    ("group,identifier\np1,case_1\np1\n", "line 3 names no case"),
])
def test_bad_groups_file(dataset, capsys, content, message):
    path = dataset / "groups.csv"
    path.write_text(content)
    assert _split("--labeled", "2", "--groups", str(path)) == 2
    assert message in capsys.readouterr().err


def test_unreadable_label_is_named(dataset, capsys):
    path = dataset / "raw" / "Dataset701_Split" / "labelsTr" / "case_4.nii.gz"
    path.write_bytes(b"no image")
    assert _split("--labeled", "2") == 2
    assert str(path) in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("values", "message"), [([9], "9"), ([1.2, 1.7], "1.2, 1.7")])
def test_undeclared_label_is_named(dataset, capsys, values, message):
    path = dataset / "raw" / "Dataset701_Split" / "labelsTr" / "case_4.nii.gz"
    segmentation = np.zeros((4, 4, 4), np.float32)
    segmentation[0, 0, : len(values)] = values
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(segmentation), str(path))
    assert _split("--labeled", "2") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{path} holds the value(s) {message}, but dataset.json declares 0, 1, 2, 3, 4 alone" in line


def test_unknown_dataset(dataset, capsys):
    assert main(["split", "-d", "999", "--labeled", "2"]) == 2
    assert "no dataset 999" in capsys.readouterr().err


def test_strict_plans_have_statistics_of_labeled_cases_only(dataset, capsys):
    plans = {"plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
             "foreground_intensity_properties_per_channel": {"0": {"mean": -1.0}},
             "configurations": {"3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres",
                                               "normalization_schemes": ["CTNormalization"]},
                                "3d_cascade_fullres": {"inherits_from": "3d_fullres"}}}
    _file(dataset).parent.mkdir()
    (_file(dataset).parent / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert _split("--labeled", "1", "--folds", "2", "--strict") == 0
    for number, fold in enumerate(json.loads(_file(dataset).read_text())):
        path = _file(dataset).parent / f"nnUNetPlansStrictFold{number}.json"
        strict = json.loads(path.read_text())
        assert strict["plans_name"] == path.stem
        assert strict["nnunet_dhc_statistics_of"] == fold["train"]
        assert strict["configurations"]["3d_fullres"]["data_identifier"] == f"{path.stem}_3d_fullres"
        # Image = label * (10 + case number) + 5, and foreground is every label above 0, "ignore" (4) included,
        # as in nnU-Net's own statistics.
        case = int(fold["train"][0].removeprefix("case_"))
        statistics = strict["foreground_intensity_properties_per_channel"]["0"]
        assert statistics["min"] == 10 + case + 5
        assert statistics["max"] == 4 * (10 + case) + 5
    assert "nnUNetv2_preprocess -d 701 -plans_name nnUNetPlansStrictFold0" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in _file(dataset).parent.glob("*.json")}
    (dataset / "raw" / "Dataset701_Split" / "imagesTr" / f"{fold['train'][0]}_0000.nii.gz").write_bytes(b"no image")
    assert _split("--labeled", "2", "--folds", "2", "--strict") == 2  # the first fold's would have been made
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{fold['train'][0]}_0000.nii.gz is no readable NIfTI file" in error
    assert {path.name: path.read_bytes() for path in _file(dataset).parent.glob("*.json")} == before


def test_strict_plans_are_not_made_from_a_truncated_image(dataset, capsys):
    """ITK would read zeros where the file ends."""
    plans = {"plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
             "configurations": {"2d": {"normalization_schemes": ["CTNormalization"]}}}
    _file(dataset).parent.mkdir()
    (_file(dataset).parent / "nnUNetPlans.json").write_text(json.dumps(plans))
    noise = np.random.default_rng(0).integers(0, 1000, (24, 24, 24), dtype=np.int16)
    for path in (dataset / "raw" / "Dataset701_Split" / "imagesTr").iterdir():
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise), str(path))
        path.write_bytes(path.read_bytes()[:-1000])
    assert _split("--labeled", "2", "--strict") == 2
    assert "_0000.nii.gz is truncated" in capsys.readouterr().err.splitlines()[-1]


def test_strict_plans_are_looked_for_in_a_dry_run(dataset, capsys):
    assert _split("--labeled", "2", "--strict", "--dry-run") == 2
    assert "nnUNetPlans.json does not exist" in capsys.readouterr().err


def test_strict_is_not_needed_without_statistics(dataset, capsys):
    plans = {"plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
             "configurations": {"2d": {"normalization_schemes": ["ZScoreNormalization"]}}}
    _file(dataset).parent.mkdir()
    (_file(dataset).parent / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert _split("--labeled", "1", "--strict") == 0
    assert "no strict plans are needed" in capsys.readouterr().out


def _named_dataset(dataset: Path, names: list[str]) -> None:
    for folder, channel in (("labelsTr", ""), ("imagesTr", "_0000")):
        files = dataset / "raw" / "Dataset701_Split" / folder
        some = (files / f"case_0{channel}.nii.gz").read_bytes()
        for path in files.iterdir():
            path.unlink()
        for name in names:
            (files / f"{name}{channel}.nii.gz").write_bytes(some)


def test_a_label_without_an_image_is_in_no_list(dataset, capsys):
    """As where an image was moved to imagesUn."""
    (dataset / "raw" / "Dataset701_Split" / "imagesTr" / "case_3_0000.nii.gz").unlink()
    assert _split("--labeled", "2") == 0
    assert "no image in imagesTr, so in no list: case_3" in capsys.readouterr().out
    assert "case_3" not in _file(dataset).read_text()


def test_keep_refuses_a_case_with_both_roles(dataset, capsys):
    """nnU-Net itself writes such a fold for a single case."""
    _file(dataset).parent.mkdir()
    _file(dataset).write_text(json.dumps([{"train": ["case_0"], "val": ["case_0"]}]))
    assert _split("--labeled", "1", "--keep") == 2
    assert "case_0 of splits_final.json is for training and for validation in one fold" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
@pytest.mark.parametrize("prefix", ["case_", "img"])
def test_protocol_matches_by_number(dataset, name, prefix):
    protocol = PROTOCOLS[name]
    numbers = [*protocol.labeled, *protocol.unlabeled, *protocol.validation]
    assert len(set(numbers)) == len(numbers)
    _named_dataset(dataset, [prefix + number for number in [*numbers, "9999"]])
    assert _split("--protocol", name, "--unstratified") == 0
    fold, = json.loads(_file(dataset).read_text())
    assert fold["train"] == [prefix + number for number in protocol.labeled]
    assert sum(len(cases) for cases in fold.values()) == len(numbers)


def test_amos_protocol_has_the_published_sizes():
    # Origin: paper of DHC, 216 training and 24 validation cases, 5 % labeled.
    protocol = PROTOCOLS["amos5"]
    assert [len(protocol.labeled), len(protocol.unlabeled), len(protocol.validation)] == [10, 206, 24]
    # 3 of 10 labeled, 34 of 216 training and 6 of 24 validation scans are MRI (numbers above 500).
    mri = [sum(int(n) > 500 for n in part) for part in (protocol.labeled, protocol.unlabeled, protocol.validation)]
    assert mri == [3, 31, 6]


@pytest.mark.skipif(not DATA, reason="needs NNUNET_DHC_DATA")
def test_btcv_protocol_is_the_file_used_here(dataset):
    names = [path.name.removesuffix("_0000.nii.gz") for path in
             sorted((Path(DATA) / "Dataset514_BTCV4mm" / "imagesTr").iterdir())]
    _named_dataset(dataset, names)
    assert _split("--protocol", "btcv20", "--unstratified") == 0
    expected = json.loads((Path(DATA) / "splits_BTCV_20p.json").read_text())
    assert json.loads(_file(dataset).read_text()) == expected


def test_keep_refuses_a_patient_with_training_and_validation_scans(dataset, tmp_path, capsys):
    _file(dataset).parent.mkdir()
    _file(dataset).write_text(json.dumps([{"train": ["case_0", "case_1"], "val": ["case_2"]}]))
    groups = tmp_path / "groups.csv"
    groups.write_text("identifier,group\ncase_0,patient\ncase_2,patient\n")
    assert _split("--labeled", "1", "--keep", "--groups", str(groups)) == 2
    assert "a group of --groups has training and validation cases" in capsys.readouterr().err
