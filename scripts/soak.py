#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train for thousands of tiny steps and watch memory and open files of the training and of its data workers.

    python scripts/soak.py --steps 2000 --out soak.json

Uses the tiny dataset of the tests and real worker processes. Memory is read at each epoch's end; growth is the slope of
a line through the second half of the run, where every cache is warm.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "trainers")]

STEPS_PER_EPOCH = 50
# Slopes below this over 1000 steps are noise of the allocator, not growth: a step that kept one of its patches would
# grow by 32 MiB, one that kept its activations by gigabytes.
LIMIT_MIB_PER_1000_STEPS = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = train(Path(folder), args.steps, args.workers)
    report = summary(samples)
    print(json.dumps(report, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps({**report, "samples": samples}, indent=1))
    return 0 if report["holds"] else 1


def train(root: Path, steps: int, workers: int) -> list[dict]:
    """One sample per epoch."""
    from tiny_data import TinyDataset, plan_and_preprocess, write_raw_dataset

    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(root / name)
    os.environ["nnUNet_n_proc_DA"] = "1"
    import torch

    torch.set_num_threads(1)
    dataset = TinyDataset(root)
    write_raw_dataset(dataset.raw)
    plan_and_preprocess(dataset.raw, dataset.preprocessed, ("3d_fullres",))
    os.environ["nnUNet_n_proc_DA"] = str(workers)
    from tiny_training import make_trainer

    trainer = make_trainer(
        dataset, num_epochs=max(2, steps // STEPS_PER_EPOCH), num_iterations_per_epoch=STEPS_PER_EPOCH,
        num_val_iterations_per_epoch=5,
    )
    samples: list[dict] = []
    end_epoch = trainer.on_epoch_end

    def on_epoch_end() -> None:
        end_epoch()
        gc.collect()
        samples.append(sample(trainer.current_epoch * STEPS_PER_EPOCH))
        print(samples[-1], file=sys.stderr, flush=True)

    trainer.on_epoch_end = on_epoch_end
    trainer.run_training()
    return samples


def sample(steps: int) -> dict:
    """Memory in MiB and open files of this process and of its children."""
    own, children = os.getpid(), []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1]) == own:
                children.append(int(entry))
        except OSError:
            continue
    return {
        "steps": steps,
        "seconds": round(time.monotonic(), 1),
        "memory_mib": resident_mib(own),
        "workers_memory_mib": round(sum(map(resident_mib, children)), 1),
        "open_files": open_files(own),
        "workers_open_files": sum(map(open_files, children)),
        "processes": 1 + len(children),
        "shared_memory_files": len(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else 0,
    }


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def summary(samples: list[dict]) -> dict:
    """First and last values, and growth over the second half."""
    half = samples[len(samples) // 2 :]
    steps = np.array([item["steps"] for item in half], dtype=float)
    growth = {
        name: round(1000 * float(np.polyfit(steps, [item[name] for item in half], 1)[0]), 2) if len(half) > 1 else 0.0
        for name in ("memory_mib", "workers_memory_mib", "open_files", "workers_open_files")
    }
    files_grow = half[-1]["open_files"] > half[0]["open_files"] + 5
    memory_grows = max(growth["memory_mib"], growth["workers_memory_mib"]) > LIMIT_MIB_PER_1000_STEPS
    return {
        "first": samples[0],
        "middle": half[0],
        "last": samples[-1],
        "growth_per_1000_steps": growth,
        "holds": not files_grow and not memory_grows,
    }


if __name__ == "__main__":
    sys.exit(main())
