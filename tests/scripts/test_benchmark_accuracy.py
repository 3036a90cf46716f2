# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark with two-stage self-training on the tiny dataset: stopped, continued, test cases predicted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK
from console import environment
from tiny_data import TinyDataset, make_scan, write_image

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_accuracy.py"
SPLIT = [{"train": ["case_0", "case_1"], "val": ["case_5"], "unlabeled": ["case_2", "case_3"]}]
ROWS = ["two-stage=two-stage:trainer=nnUNetTrainerNoMirroring*2"]
"""Of all rows the one with the most parts; each costs CI half a minute."""


def run(dataset: TinyDataset, work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(SCRIPT), "--data", str(dataset.raw), "--split", str(work / "split.json"),
        "--work", str(work), "--rows", *ROWS, "--epochs", "1", "--iterations", "2", "--val-iterations", "1",
        "--patch", "16", "16", "16", "--features", "4", "8", "8", "--convolutions", "1", "--device", "cpu",
        "--predict", *options,
    ]  # fmt: skip
    return subprocess.run(
        command, env=environment(dataset, {"nnUNet_def_n_proc": "1"}), capture_output=True, text=True, check=True
    )


def test_goes_on_after_a_stop_and_ends_with_predictions(tiny_dataset, tmp_path):
    work = tmp_path / "bench"
    shutil.copytree(tiny_dataset.preprocessed, work / "preprocessed" / tiny_dataset.name)
    (work / "split.json").write_text(json.dumps(SPLIT))
    write_image(tiny_dataset.raw / "imagesTs" / "test_0_0000.nii.gz", make_scan(300)[0])
    for case in SPLIT[0]["unlabeled"]:  # whoever reads the label of an unlabeled case fails here
        for folder in (tiny_dataset.raw / "labelsTr", work / "preprocessed" / tiny_dataset.name / "gt_segmentations"):
            (folder / f"{case}.nii.gz").write_text("not a label")

    stopped = run(tiny_dataset, work, "--minutes", "0.05", "--features", "4", "8", "8", "8")
    assert "stopped; call again to continue" in stopped.stdout
    assert "--features [4, 8, 8, 8] are used as [4, 8, 8]" in stopped.stderr
    assert not (work / "results.jsonl").read_text()
    run(tiny_dataset, work)
    (line,) = map(json.loads, (work / "results.jsonl").read_text().splitlines())
    assert (line["row"], line["steps"]) == ("two-stage", 4)
    predicted = SimpleITK.ReadImage(str(work / "predictions" / "two-stage" / "seed_0" / "test_0.nii.gz"))
    assert predicted.GetSize() == (24, 26, 28)

    # the student was trained on the teacher's predictions as if they were labels
    student = work / "two-stage" / "two-stage" / "seed_0"
    assert {path.name for path in (student / "pseudo_labels").glob("*.nii.gz")} == {"case_2.nii.gz", "case_3.nii.gz"}
    assert (student / "preprocessed" / tiny_dataset.name / "nnUNetPlans_3d_fullres" / "case_3_seg.b2nd").is_file()


def test_row_with_lists_and_objects_among_its_settings(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from benchmark_accuracy import Row

    row = Row.parse("sides=nnUNetTrainerDHC:lambda_max=3,mirror_axes=[0,1],low_memory=on*2")
    assert row.settings == {"lambda_max": 3, "mirror_axes": [0, 1], "low_memory": "on"} and row.times == 2

    architecture = '{"3d_fullres":{"arch_kwargs":{"n_stages":2,"strides":[[1,1,1],[2,2,2]]}}}'
    row = Row.parse(f"residual=nnUNetTrainerDHC:architecture_b={architecture},lambda_max=3")
    assert row.settings == {"architecture_b": json.loads(architecture), "lambda_max": 3}
