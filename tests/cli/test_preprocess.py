# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc preprocess``: the command itself, killed and run again, and two at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_data import make_scan, write_image

from nnunet_dhc.cli.main import main

COMMAND = [sys.executable, "-m", "nnunet_dhc.cli.main", "preprocess", "-d", "999", "-c", "3d_fullres"]


def manifest(dataset, configuration="3d_fullres") -> list[dict]:
    path = dataset.preprocessed / f"nnUNetPlans_{configuration}_unlabeled" / "manifest.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(*arguments: str) -> int:
    return main(["preprocess", "-d", "999", "-np", "0", "--quiet", *arguments])


def test_prepares_several_configurations(tiny_dataset, capsys):
    assert run("-c", "3d_fullres", "2d") == 0
    assert len(manifest(tiny_dataset)) == len(manifest(tiny_dataset, "2d")) == 3
    out = capsys.readouterr().out
    assert "3d_fullres: 3 unlabeled cases are ready" in out and "2d: 3 unlabeled cases are ready" in out
    assert run("-c", "3d_fullres", "-p", "nnUNetPlansTiny") == 0
    assert len(manifest(tiny_dataset)) == 3


def test_joins_the_unlabeled_cases_of_every_fold_or_takes_those_asked_for(tiny_dataset, capsys):
    tiny_dataset.write_split(
        [
            {"train": ["case_0"], "val": ["case_1"], "unlabeled": ["case_2"]},
            {"train": ["case_2"], "val": ["case_1"], "unlabeled": ["case_3", "case_0"]},
        ]
    )
    assert run("-c", "3d_fullres", "-f", "0") == 0
    assert "4 unlabeled cases are ready" in capsys.readouterr().out
    assert run("-c", "3d_fullres") == 0
    assert "6 unlabeled cases are ready" in capsys.readouterr().out
    assert run("-c", "3d_fullres", "-f", "all") == 0
    assert "3 unlabeled cases are ready" in capsys.readouterr().out


def test_works_before_nnunet_has_preprocessed(tiny_dataset):
    shutil.rmtree(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres")
    assert run("-c", "3d_fullres") == 0
    assert len(manifest(tiny_dataset)) == 3


@pytest.mark.parametrize("others", [True, False])
def test_a_file_that_nnunet_does_not_know_among_preprocessed_ones(tiny_dataset, capsys, others):
    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"
    if not others:
        shutil.rmtree(folder)
        folder.mkdir()
    (folder / ".DS_Store").touch()
    assert run("-c", "3d_fullres") == 2
    assert "files of another kind, too: delete it" in capsys.readouterr().err


def test_skip_bad(tiny_dataset, capsys):
    write_image(tiny_dataset.images_un / "zero_0000.nii.gz", np.zeros((28, 26, 24), np.int16))
    assert run("-c", "3d_fullres") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "zero is constant" in error and "Traceback" not in error
    assert run("-c", "3d_fullres", "--skip-bad") == 0
    assert "Bad scans are excluded (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["-d", "998", "-c", "3d_fullres"], "there is no dataset 998"),
        (["-d", "x", "-c", "3d_fullres"], "there is no dataset x"),
        (["-d", "Dataset998_Gone", "-c", "3d_fullres"], "(found: Dataset999_Tiny)"),
        (["-d", "999", "-c", "4d"], "choose from 2d, 3d_fullres"),
        (["-d", "999", "-c", "2d", "-p", "OtherPlans"], "OtherPlans.json does not exist"),
        (["-d", "999", "-c", "2d", "-f", "7"], "Fold 7 is not in"),
    ],
)
def test_wrong_names_are_one_line(tiny_dataset, capsys, arguments, needle):
    assert main(["preprocess", *arguments]) == 2
    error = capsys.readouterr().err
    assert needle in error and error.count("\n") == 1


def test_unset_paths_and_broken_plans_are_one_line(tiny_dataset, capsys, monkeypatch):
    (tiny_dataset.preprocessed / "nnUNetPlans.json").write_text("{")
    assert run("-c", "2d") == 2
    assert "nnUNetPlans.json can't be read" in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_preprocessed")
    assert run("-c", "2d") == 2
    assert "nnUNet_preprocessed is not set" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as leave:
        main(["preprocess", "-h"])
    assert leave.value.code == 0
    assert "--skip-bad" in capsys.readouterr().out


def wait_until(condition, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def add_scans(dataset, count: int, size: int) -> list[str]:
    names = [f"more_{number:02d}" for number in range(count)]
    for number, name in enumerate(names):
        write_image(dataset.images_un / f"{name}_0000.nii.gz", make_scan(1000 + number, (size, size, size))[0])
    return names


@pytest.mark.slow
def test_killed_and_run_again(tiny_dataset, capsys):
    """SIGKILL in the middle: finished cases are kept, no half one is read, no worker stays, a rerun completes."""
    names = add_scans(tiny_dataset, 60, 60)
    with subprocess.Popen([*COMMAND, "-np", "2", "--quiet"], stdout=subprocess.DEVNULL) as first:
        wait_until(lambda: len(manifest(tiny_dataset)) >= 5 or first.poll() is not None)
        workers = children_of(first.pid)
        os.kill(first.pid, signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    wait_until(lambda: not any(is_alive(worker) for worker in workers), 20)
    finished = manifest(tiny_dataset)
    assert 5 <= len(finished) < 63
    folder = tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    (folder / ".writing-left-by-a-kill.b2nd").write_bytes(b"half")
    kept = {line["identifier"]: (folder / f"{line['identifier']}.b2nd").stat().st_mtime_ns for line in finished}
    assert run("-c", "3d_fullres") == 0
    assert f"Preprocessing {63 - len(kept)} unlabeled cases" in capsys.readouterr().out
    assert sorted(line["identifier"] for line in manifest(tiny_dataset)) == [*names, *tiny_dataset.unlabeled]
    assert all((folder / f"{case}.b2nd").stat().st_mtime_ns == changed for case, changed in kept.items())
    assert not list(folder.glob(".writing-*"))


@pytest.mark.slow
def test_two_at_once_share_the_work(tiny_dataset, tmp_path):
    add_scans(tiny_dataset, 40, 50)
    outputs = [tmp_path / "one.txt", tmp_path / "two.txt"]
    running = []
    for output in outputs:
        with open(output, "w") as file:
            running.append(subprocess.Popen([*COMMAND, "-np", "0", "--quiet"], stdout=file, stderr=file))
    assert [process.wait(120) for process in running] == [0, 0]
    identifiers = [line["identifier"] for line in manifest(tiny_dataset)]
    assert len(identifiers) == len(set(identifiers)) == 43
    texts = [Path(output).read_text() for output in outputs]
    assert all("43 unlabeled cases are ready" in text for text in texts)
    assert sum("Preprocessing 43" in text for text in texts) == 1
