#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Kill the real ``nnUNetv2_train`` at random moments, run it again, and check that nothing was lost.

    python scripts/kill_test.py --moments 20 --seed 1 --out kill_test.json

Each moment gets a fresh copy of the tiny dataset. SIGKILL goes to the whole process group: nothing can clean up. Then
every file under a final name must be whole, and the same command (with --c where there is a checkpoint) must end with a
valid model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from console import TRAIN, TRAINER, Running, configure, environment, fold_folder  # noqa: E402
from tiny_data import TinyDataset, make_scan, plan_and_preprocess, write_image, write_raw_dataset  # noqa: E402

from nnunet_dhc.nnunet.reliability.output_folder import LOCK_FILE  # noqa: E402
from nnunet_dhc.nnunet.training.checkpoint import read_checkpoint  # noqa: E402

NUM_EPOCHS = 6
NUM_SCANS = 24
SPLIT = {"train": ["case_0", "case_1"], "val": ["case_2"], "unlabeled": ["case_3"]}
# Where in the run: the text on standard output after which the phase begins, and the one that ends it.
PHASES = {
    "start": ("", "Preprocessing"),
    "preprocessing": ("Preprocessing", "Epoch 0"),
    "training": ("Epoch 0", "Training done."),
    "checkpoint writing": ("Epoch 0", "Training done."),
    "validation": ("Training done.", None),
}


@dataclass
class Moment:
    """One kill and what came after it."""

    number: int
    phase: str
    killed_after_s: float
    last_epoch_begun: int | None
    resumed_with_c: bool
    resumed_in_epoch: int | None
    unfinished_files: int
    problems: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--out", type=Path, default=None, help="JSON with one entry per moment")
    parser.add_argument("--workers", default="1", help="nnUNet_n_proc_DA")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    rng = random.Random(seed)
    print(f"seed {seed}", flush=True)
    variables = {"nnUNet_n_proc_DA": args.workers}
    moments = []
    with tempfile.TemporaryDirectory() as folder:
        template = make_template(Path(folder) / "template")
        lengths = phase_lengths(copy(template, Path(folder) / "whole"), variables)
        print("seconds by phase:", {phase: round(length, 1) for phase, length in lengths.items()}, flush=True)
        for number in range(args.moments):
            phase = list(PHASES)[number % len(PHASES)]
            dataset = copy(template, Path(folder) / f"moment_{number}")
            moment = kill_and_resume(dataset, number, phase, rng.random(), lengths, variables)
            moments.append(moment)
            print(moment, flush=True)
            shutil.rmtree(dataset.root)
    failed = [moment for moment in moments if moment.problems]
    print(f"{len(moments) - len(failed)} of {len(moments)} moments: went on and ended with a valid model (seed {seed})")
    if args.out is not None:
        args.out.write_text(json.dumps({"seed": seed, "moments": [asdict(moment) for moment in moments]}, indent=1))
    return 1 if failed else 0


def make_template(root: Path) -> TinyDataset:
    """The tiny dataset with so many scans and epochs that every phase takes a while."""
    dataset = TinyDataset(root)
    write_raw_dataset(dataset.raw)
    for number in range(NUM_SCANS):
        write_image(dataset.images_un / f"more_{number:02d}_0000.nii.gz", make_scan(300 + number, (64, 64, 64))[0])
    os.environ.update({k: v for k, v in environment(dataset, {}).items() if k.startswith("nnUNet_")})
    os.environ["nnUNet_n_proc_DA"] = "1"
    plan_and_preprocess(dataset.raw, dataset.preprocessed, ("3d_fullres",))
    dataset.write_split([SPLIT])
    configure(dataset, num_epochs=NUM_EPOCHS, num_iterations_per_epoch=4, num_val_iterations_per_epoch=2)
    return dataset


def copy(template: TinyDataset, root: Path) -> TinyDataset:
    shutil.copytree(template.root, root)
    return TinyDataset(root)


def phase_lengths(dataset: TinyDataset, variables: dict[str, str]) -> dict[str, float]:
    """How long each phase takes in a run that nobody kills."""
    begun = time.monotonic()
    marks = {"": begun}
    running = Running(dataset, TRAIN, variables)
    for text in ("Preprocessing", "Epoch 0", "Training done."):
        running.wait_for(text)
        marks[text] = time.monotonic()
    outcome = running.finish()
    marks[None] = time.monotonic()
    if outcome.code != 0:
        raise SystemExit(f"the run that nobody killed failed:\n{outcome.err[-3000:]}")
    return {phase: marks[end] - marks[start] for phase, (start, end) in PHASES.items()}


def kill_and_resume(
    dataset: TinyDataset, number: int, phase: str, part: float, lengths: dict[str, float], variables: dict[str, str]
) -> Moment:
    begun = time.monotonic()
    running = Running(dataset, TRAIN, variables)
    running.wait_for(PHASES[phase][0])
    if phase == "checkpoint writing":
        wait_for_checkpoint_writing(dataset, running, 1 + int(part * 2 * NUM_EPOCHS))
    else:
        time.sleep(part * lengths[phase])
    unfinished = len(list(fold_folder(dataset).glob("*.tmp")))
    try:
        os.killpg(running.process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # ended just before
    running.process.wait()
    elapsed = time.monotonic() - begun
    time.sleep(0.5)
    problems = [f"{len(running.members())} processes are left"] if running.members() else []
    running.kill()
    problems += half_files(dataset)
    continues = any(fold_folder(dataset).glob("checkpoint_*.pth"))
    resumed = Running(dataset, (*TRAIN, "--c") if continues else TRAIN, variables)
    outcome = resumed.finish()
    if outcome.code != 0:
        problems.append(f"exit code {outcome.code}: {outcome.last_line}")
    problems += half_files(dataset) + incomplete_model(dataset)
    return Moment(
        number, phase, round(elapsed, 2), last_epoch(running.out), continues, first_epoch(outcome.out), unfinished,
        problems,
    )


def wait_for_checkpoint_writing(dataset: TinyDataset, running: Running, which: int) -> None:
    """Wait for the ``which``-th time that a checkpoint is being written, or for the end."""
    seen, writing = 0, False
    while running.process.poll() is None:
        now = fold_folder(dataset).is_dir() and any(name.endswith(".tmp") for name in os.listdir(fold_folder(dataset)))
        seen += now and not writing
        if seen >= which and now:
            return
        if "Training done." in running.out:
            return
        writing = now
        time.sleep(0.001)


def half_files(dataset: TinyDataset) -> list[str]:
    """Files under a final name that can't be read as a whole."""
    import blosc2

    problems = []
    for path in fold_folder(dataset).glob("checkpoint_*.pth"):
        try:
            read_checkpoint(str(path), TRAINER)
        except Exception as error:
            problems.append(f"{path.name}: {error}")
    store = dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    for line in read_manifest(store / "manifest.jsonl"):
        try:
            voxels = blosc2.open(str(store / f"{line['identifier']}.b2nd"))[:]
            assert np.isfinite(voxels).all()
        except Exception as error:
            problems.append(f"{line['identifier']}.b2nd: {error}")
    for path in [dataset.preprocessed / "splits_final.json", *fold_folder(dataset).glob("dhc_run.json")]:
        try:
            json.loads(path.read_text())
        except ValueError as error:
            problems.append(f"{path.name}: {error}")
    return problems


def read_manifest(path: Path) -> list[dict]:
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # torn off by the kill; its case is made again
    return lines


def incomplete_model(dataset: TinyDataset) -> list[str]:
    """What is missing of a finished training."""
    folder = fold_folder(dataset)
    problems = []
    if not (folder / "checkpoint_final.pth").is_file():
        return ["no checkpoint_final.pth"]
    checkpoint = read_checkpoint(str(folder / "checkpoint_final.pth"), TRAINER)
    if not all(value.isfinite().all() for value in checkpoint["network_weights"].values()):
        problems.append("weights that are not finite")
    if checkpoint["current_epoch"] != NUM_EPOCHS:
        problems.append(f"{checkpoint['current_epoch']} epochs in checkpoint_final.pth")
    epochs = [json.loads(line)["epoch"] for line in (folder / "dhc_log.jsonl").read_text().splitlines()]
    if epochs != list(range(NUM_EPOCHS)):
        problems.append(f"epochs {epochs} in dhc_log.jsonl")
    if not (folder / "validation" / "summary.json").is_file():
        problems.append("no validation/summary.json")
    problems += [f"{path.name} is left" for path in [*folder.glob("*.tmp"), *folder.glob(LOCK_FILE)]]
    ready = {line["identifier"] for line in read_manifest(
        dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled" / "manifest.jsonl"
    )}
    if len(ready) != NUM_SCANS + 3 + len(SPLIT["unlabeled"]):
        problems.append(f"{len(ready)} preprocessed unlabeled cases")
    return problems


def last_epoch(out: str) -> int | None:
    epochs = _epochs(out)
    return epochs[-1] if epochs else None


def first_epoch(out: str) -> int | None:
    epochs = _epochs(out)
    return epochs[0] if epochs else None


def _epochs(out: str) -> list[int]:
    words = [line.split(": ", 1)[-1].strip() for line in out.splitlines()]
    return [int(word[6:]) for word in words if word.startswith("Epoch ") and word[6:].isdigit()]


if __name__ == "__main__":
    sys.exit(main())
