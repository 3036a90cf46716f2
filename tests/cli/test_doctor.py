# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc doctor``: each thing that can be wrong is made wrong, and found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from tiny_data import make_scan, write_image

from nnunet_dhc._autoload import shim_folder
from nnunet_dhc.cli.main import main
from nnunet_dhc.nnunet.health import dataset_health
from nnunet_dhc.nnunet.health.dataset_health import check_dataset
from nnunet_dhc.nnunet.host import installation


def _broken(findings):
    return [f for f in findings if f.status == "broken"]


def test_paths(monkeypatch, tmp_path):
    for name in installation.PATH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert [f.text for f in installation.check_paths()] == ["is not set"] * 3
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "gone"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setattr(installation, "_writable", lambda folder: False)
    raw, preprocessed, results = installation.check_paths()
    assert raw.status == "ok"
    assert "does not exist" in preprocessed.text and "mkdir" in preprocessed.remedy
    assert "can't be written" in results.text


@pytest.mark.parametrize(
    ("package", "check"), [("nnunetv2", installation.check_nnunet), ("torch", installation.check_torch)]
)
def test_unsupported_version(monkeypatch, package, check):
    assert not [f for f in check() if f.subject == package and f.status == "broken"]
    monkeypatch.setattr(installation, "supported_range", lambda _: "<0.1")
    finding, = [f for f in check() if f.subject == package and f.status == "broken"]
    assert finding.remedy == f'pip install "{package}<0.1"'


def test_supported_range_is_that_of_the_metadata():
    assert "<2.9" in installation.supported_range("nnunetv2")
    assert installation.supported_range("torch") == ">=2.5"
    assert installation.supported_range("no_such_package") == ""


def test_slow_torch(monkeypatch):
    monkeypatch.setattr("torch.__version__", "2.9.1+cu128")
    assert any("4 times slower" in f.text for f in installation.check_torch())


def test_commands_of_another_environment(monkeypatch, tmp_path):
    other = tmp_path / "nnUNetv2_train"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert any("another environment" in f.text for f in _broken(installation.check_nnunet()))
    monkeypatch.setenv("PATH", "")
    assert any("is not on PATH" in f.text for f in _broken(installation.check_nnunet()))


class _Distribution:
    version = "1"

    def __init__(self, url: str | None, version: str = "1"):
        self.url, self.version = url, version

    def read_text(self, _):
        return self.url and json.dumps({"url": self.url, "dir_info": {"editable": True}})


@pytest.mark.parametrize(("installed", "text"), [
    ([], "is not installed"),
    ([_Distribution(None, "1"), _Distribution(None, "2")], "several times (1, 2)"),
    ([_Distribution("file:///no/such/checkout")], "/no/such/checkout, which is gone"),
    ([_Distribution(Path("/").as_uri() + "tmp")], "/tmp, which is another one"),
])
def test_installations_gone_wrong(monkeypatch, installed, text):
    monkeypatch.setattr(installation.metadata, "distributions", lambda **_: installed)
    monkeypatch.setattr(installation.metadata, "entry_points", lambda **_: [])
    assert any(text in f.text for f in _broken(installation.check_package()))


def test_missing_entry_point(monkeypatch):
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [])
    assert any(f.subject == "entry point" for f in _broken(installation.check_package()))


def test_external_trainer_folders(tmp_path):
    ours, mine, checkout = shim_folder(), tmp_path / "mine", tmp_path / "checkout"
    stale = tmp_path / "old" / "_nnunet_ext"
    for folder in (mine, checkout, stale):
        folder.mkdir(parents=True)
    (checkout / "setup.py").touch()
    value = os.pathsep.join(map(str, [ours, mine, checkout, stale, tmp_path / "gone"]))
    findings = installation.check_external_trainers({"nnUNet_extTrainer": value})
    assert [f.status for f in findings] == ["ok", "ok", "note", "broken", "note"]
    assert installation.check_external_trainers({}) == []


def test_little_space(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5e8})())
    findings = installation.check_space()
    assert {f.status for f in findings} == {"note"}
    if Path("/dev/shm").is_dir():
        assert any("shm-size" in f.remedy for f in findings)


@pytest.mark.slow
def test_lookup_switched_off():
    environment = {k: v for k, v in os.environ.items() if k != "nnUNet_extTrainer"}
    finding, = installation.check_lookup({**environment, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})
    assert finding.status == "broken"
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in finding.remedy and "nnunet_dhc env" in finding.remedy


@pytest.mark.slow
def test_everything_is_there(tiny_dataset, capsys, monkeypatch):
    import sys
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert main(["doctor", "-d", str(tiny_dataset.dataset_id)]) == 0
    printed = capsys.readouterr().out
    assert "nnU-Net finds nnUNetTrainerDHC by itself" in printed
    assert printed.endswith("Everything needed is there.\n")


def test_dataset(tiny_dataset):
    findings = check_dataset(tiny_dataset.dataset_id)
    assert not _broken(findings)
    text = "\n".join(map(str, findings))
    assert "6 cases with labels, 3 classes" in text
    assert "imagesUn: 3 scans" in text
    assert "plans nnUNetPlansTiny: " in text and "3d_fullres 6 labeled, unlabeled not preprocessed yet" in text
    assert "the first training makes 5 folds" in text
    labeled = tiny_dataset.labeled
    tiny_dataset.write_split([{"train": labeled[:2], "val": labeled[2:3], "unlabeled": labeled[3:]}])
    assert "fold 0: 2 labeled, 6 unlabeled, 1 validation cases" in "\n".join(map(str, check_dataset("999")))


def test_excluded_scans_are_neither_broken_nor_counted(tiny_dataset):
    (tiny_dataset.images_un / "notes.txt").write_text("not an image")
    write_image(tiny_dataset.images_un / "zero_0000.nii.gz", np.zeros((28, 26, 24), np.int16))
    assert _broken(check_dataset("999"))
    assert main(["preprocess", "-d", "999", "-c", "3d_fullres", "-p", "nnUNetPlansTiny", "--skip-bad"]) == 0
    findings = check_dataset("999")
    assert not _broken(findings)
    text = "\n".join(map(str, findings))
    assert "imagesUn: 3 scans" in text
    assert "excluded as bad: imagesUn/notes.txt, zero; bad_cases.json says why" in text
    write_image(tiny_dataset.images_un / "zero_0000.nii.gz", make_scan(7)[0])
    (tiny_dataset.images_un / "notes.txt").write_text("another text")  # a training will look at both again
    findings = check_dataset("999")
    assert "imagesUn: 4 scans" in "\n".join(map(str, findings))
    assert "notes.txt" in "\n".join(map(str, _broken(findings)))


def test_dataset_gone_wrong(tiny_dataset):
    tiny_dataset.write_split([{"train": ["nobody"], "val": ["case_1"]}])
    (tiny_dataset.images_un / "notes.txt").write_text("not an image")
    content = json.loads((tiny_dataset.raw / "dataset.json").read_text())
    (tiny_dataset.raw / "dataset.json").write_text(json.dumps({**content, "numTraining": 9}))
    text = "\n".join(map(str, _broken(check_dataset("999"))))
    assert "nobody" in text
    assert "notes.txt" in text
    assert "numTraining 9" in text


@pytest.mark.parametrize(("change", "text"), [
    ({"file_ending": None}, "dataset.json has no file_ending"),
    ({"labels": None, "file_ending": None}, "has no labels, file_ending"),
    ({"channel_names": None}, "has no channel_names"),
    ({"labels": ["background", "liver"]}, "labels must give each name its number"),
    ({"labels": {"0": "background", "1": "liver"}}, "labels must give each name its number"),
])
def test_dataset_json_of_another_format(tiny_dataset, capsys, change, text):
    content = {**tiny_dataset.dataset_json, **change}
    content = {key: value for key, value in content.items() if value is not None}
    (tiny_dataset.raw / "dataset.json").write_text(json.dumps(content))
    finding, = check_dataset("999")
    assert finding.status == "broken" and text in finding.text
    assert main(["split", "-d", "999", "--labeled", "2"]) == 2
    assert text in capsys.readouterr().err.splitlines()[-1]


def test_dataset_without_plans_or_raw_data(tiny_dataset, monkeypatch):
    for path in tiny_dataset.preprocessed.glob("nnUNetPlans*.json"):
        path.unlink()
    assert any("nnUNetv2_plan_and_preprocess -d 999" in f.remedy for f in _broken(check_dataset("999")))
    monkeypatch.delenv("nnUNet_raw")
    assert any("is not in nnUNet_raw" in f.text for f in check_dataset("999"))


def test_labeled_cases_that_no_fold_names(tiny_dataset):
    labeled = tiny_dataset.labeled
    tiny_dataset.write_split([{"train": labeled[:3], "val": labeled[3:5]}, {"train": labeled[3:5], "val": labeled[:3]}])
    notes = [finding.text for finding in check_dataset("999") if finding.status == "note"]
    note, = (text for text in notes if "in no list of the fold" in text)
    assert note.startswith(f"{labeled[5]} has a label") and 'add it to "train" of each fold' in note


def test_unknown_dataset(tiny_dataset):
    finding, = check_dataset("123")
    assert finding.status == "broken"
    assert "no dataset 123" in finding.text


def test_scans_without_labels_among_the_labeled_ones(tiny_dataset):
    """They are no cases that anything else is missing of, and the command moves them and nothing else."""
    tiny_dataset.write_split([{"train": ["case_0", "case_2"], "val": ["case_4"], "unlabeled": ["case_5"]}])
    for case in ("case_1", "case_3"):
        (tiny_dataset.raw / "labelsTr" / f"{case}.nii.gz").unlink()
        for path in (tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres").glob(f"{case}*"):
            path.unlink()
    images = tiny_dataset.raw / "imagesTr"
    before = {path.name for path in images.iterdir()}
    finding, = _broken(check_dataset(tiny_dataset.dataset_id))
    assert "no label for case_1, case_3 in" in finding.text
    command = finding.remedy.split("does it): ")[1]
    subprocess.run(["bash", "-c", command], check=True)
    assert {path.name for path in images.iterdir()} == before
    other = tiny_dataset.images_un / "case_1_0000.nii.gz"
    other.write_text("of another patient")
    subprocess.run(["bash", "-c", command.replace("echo ", "")], check=True)
    assert other.read_text() == "of another patient"
    other.unlink()
    subprocess.run(["bash", "-c", command.replace("echo ", "")], check=True)
    moved = before - {path.name for path in images.iterdir()}
    assert moved == {"case_1_0000.nii.gz", "case_3_0000.nii.gz"} & before
    assert moved <= {path.name for path in tiny_dataset.images_un.iterdir()}


def test_scans_as_tiff_are_moved_with_their_spacing(tmp_path):
    for name in ("imagesTr/a_0000.tif", "imagesTr/a.json", "imagesTr/b_0000.tif", "imagesTr/b.json", "labelsTr/b.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    command = dataset_health._move_scans_without_labels(tmp_path, ".tif")
    subprocess.run(["bash", "-c", command.replace("echo ", "")], check=True)
    assert sorted(path.name for path in (tmp_path / "imagesUn").iterdir()) == ["a.json", "a_0000.tif"]
    assert sorted(path.name for path in (tmp_path / "imagesTr").iterdir()) == ["b.json", "b_0000.tif"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "can't be read"),
        ('{"plans_name": "nnUNetPlansOther"}', 'has no "configurations"'),
        ({"nnunet_dhc": {"lambda": 1}}, "unknown setting lambda"),
        ({"nnunet_dhc": {"lambda_max": -1}}, "lambda_max = -1"),
        ({"nnunet_dhc": ["lambda_max"]}, "must be a JSON object of settings"),
    ],
)
def test_plans_that_a_training_would_refuse(tiny_dataset, content, text):
    if not isinstance(content, str):
        content = json.dumps({**tiny_dataset.plans_content(), **content})
    (tiny_dataset.preprocessed / "nnUNetPlansOther.json").write_text(content)
    finding, = _broken(check_dataset(tiny_dataset.dataset_id))
    assert finding.subject == "plans nnUNetPlansOther" and text in finding.text


def test_preprocessing_that_has_only_begun(tiny_dataset):
    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"
    shutil.rmtree(folder)
    folder.mkdir()
    texts = {finding.subject: finding.text for finding in _broken(check_dataset(tiny_dataset.dataset_id))}
    assert "not preprocessed" in texts["plans nnUNetPlansTiny"]


def test_a_node_without_raw_data(tiny_dataset, monkeypatch):
    """What is preprocessed counts; ``gt_segmentations`` keeps cases that were removed from the dataset."""
    assert main(["preprocess", "-d", "999", "-c", "3d_fullres", "-p", "nnUNetPlansTiny"]) == 0
    labeled = tiny_dataset.labeled
    tiny_dataset.write_split([{"train": labeled[:2], "val": labeled[2:3]}])
    folder = tiny_dataset.preprocessed / "gt_segmentations"
    shutil.copy(folder / "case_0.nii.gz", folder / "removed.nii.gz")
    monkeypatch.delenv("nnUNet_raw")
    findings = check_dataset("999")
    assert not _broken(findings)
    text = "\n".join(map(str, findings))
    assert "3 of its scans are preprocessed" in text
    assert "fold 0: 2 labeled, 3 unlabeled, 1 validation cases" in text


def test_images_that_lie_elsewhere_and_are_gone(tiny_dataset):
    cases = {case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
             for case in tiny_dataset.labeled}
    for gone in ({"images": ["/mnt/gone/a.nii.gz"]}, {"label": "/mnt/gone/a.nii.gz"}):
        listed = {**cases, "case_1": {**cases["case_1"], **gone}}
        content = {**tiny_dataset.dataset_json, "dataset": listed}
        (tiny_dataset.raw / "dataset.json").write_text(json.dumps(content))
        finding = next(finding for finding in _broken(check_dataset("999")) if finding.subject == "raw data")
        assert finding.text.startswith("/mnt/gone/a.nii.gz, which dataset.json lists") and "mv" not in finding.remedy


def test_labeled_cases_that_are_not_preprocessed(tiny_dataset):
    for path in (tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres").glob("case_1*"):
        path.unlink()
    texts = {finding.subject: finding for finding in _broken(check_dataset(tiny_dataset.dataset_id))}
    assert "case_1 not preprocessed" in texts["plans nnUNetPlansTiny"].text
    assert texts["plans nnUNetPlansTiny"].remedy.endswith("-plans_name nnUNetPlansTiny -c 3d_fullres")


def test_a_training_begins_with_a_note_on_torch(monkeypatch):
    assert all(note.subject == "torch" for note in installation.notes_on_torch())
    monkeypatch.setattr(installation, "supported_range", lambda _: "<0.1")
    assert "is not supported" in installation.notes_on_torch()[0].text
