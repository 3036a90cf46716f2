# SPDX-License-Identifier: Apache-2.0
"""A matrix of trainings on one dataset: rows x seeds, resumable, each in a results root of its own.

    python scripts/benchmark_accuracy.py --data Dataset514_BTCV4mm --split splits_BTCV_20p.json --work bench \
        --rows stock=nnUNetTrainer upper=nnUNetTrainer@all dhc=nnUNetTrainerDHC \
               always=nnUNetTrainerDHC:unlabeled_schedule=always \
        --seeds 0 1 2 --epochs 5 --patch 48 64 64 --features 8 16 32 64 80 --device cpu --minutes 60

A row is ``label=trainer``, then ``:setting=value,...`` for settings of nnunet_dhc, then ``@all`` to train on the labels
of the unlabeled cases too (the upper bound), or ``*N`` to train N times as many epochs (equal wall-clock). Calling the
script again continues: finished runs are skipped, killed ones go on from their last checkpoint. ``--print-commands``
prints every run as a command of its own, for a cluster's scheduler. Results: ``<work>/results.jsonl``; the folders are
those of nnU-Net, so `nnunet_dhc compare` reads them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import time

from nnunet_dhc.demo.small_plans import write_small_plans
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.training.configure_plans import parse_setting
from nnunet_dhc.nnunet.training.run_record import content_hash, installed_versions
from nnunet_dhc.trainers.lookup import is_trainer_name

_ROW = re.compile(
    r"(?P<label>[A-Za-z0-9-]+)=(?P<trainer>\w+)(?::(?P<settings>[^@*]*))?(?P<all>@all)?(?:\*(?P<times>\d+))?"
)


@dataclass(frozen=True)
class Row:
    """One system of the comparison."""

    label: str
    trainer: str
    settings: dict
    all_labels: bool
    times: int

    @classmethod
    def parse(cls, text: str) -> Row:
        match = _ROW.fullmatch(text)
        if not match:
            raise UserError(f"--rows {text}: write label=trainer[:setting=value,...][@all][*N]")
        settings = dict(parse_setting(part) for part in (match["settings"] or "").split(",") if part)
        if settings and not is_trainer_name(match["trainer"]):
            raise UserError(f"--rows {text}: {match['trainer']} takes no settings")
        return cls(match["label"], match["trainer"], settings, bool(match["all"]), int(match["times"] or 1))


@dataclass(frozen=True)
class Run:
    """One training: a row with a seed."""

    row: Row
    seed: int
    args: argparse.Namespace

    @property
    def plans(self) -> str:
        return f"nnUNetPlansBench-{self.row.label}"

    @property
    def environment(self) -> dict[str, str]:
        work = self.args.work
        paths = {
            "nnUNet_raw": work / "raw",
            "nnUNet_preprocessed": work / "preprocessed",
            "nnUNet_results": work / "results" / f"seed_{self.seed}",
        }
        return {**{name: str(path) for name, path in paths.items()}, "nnUNet_dhc_seed": str(self.seed)}

    @property
    def folder(self) -> Path:
        return (
            Path(self.environment["nnUNet_results"])
            / self.args.data.name
            / f"{self.row.trainer}__{self.plans}__{self.args.configuration}"
            / f"fold_{int(self.row.all_labels)}"
        )

    @property
    def summary(self) -> Path:
        return self.folder / "validation" / "summary.json"

    def command(self) -> list[str]:
        """nnU-Net's own command for our trainers; stock with its counters set, since it has no option for them."""
        dataset, fold = self.args.data.name, str(int(self.row.all_labels))
        if is_trainer_name(self.row.trainer):
            command = ["nnUNetv2_train", dataset, self.args.configuration, fold, "-tr", self.row.trainer]
            continues = any(self.folder.glob("checkpoint_*.pth"))
            return [*command, "-p", self.plans, "-device", self.args.device, *(["--c"] if continues else [])]
        return [
            sys.executable,
            "-m",
            "nnunet_dhc.demo.short_stock",
            dataset,
            self.args.configuration,
            fold,
            "-tr",
            self.row.trainer,
            "-p",
            self.plans,
            "-device",
            self.args.device,
            "--epochs",
            str(self.epochs),
            "--iterations",
            str(self.args.iterations),
            "--val-iterations",
            str(self.args.val_iterations),
        ]

    @property
    def epochs(self) -> int:
        return self.args.epochs * self.row.times


def prepare(args: argparse.Namespace, rows: list[Row]) -> None:
    """Raw data (linked), nnU-Net's planning and preprocessing, the split, and plans for every row."""
    raw, preprocessed = args.work / "raw" / args.data.name, args.work / "preprocessed" / args.data.name
    raw.parent.mkdir(parents=True, exist_ok=True)
    if not raw.exists():
        raw.symlink_to(args.data.resolve(), target_is_directory=True)
    environment = {
        **os.environ,
        "nnUNet_raw": str(raw.parent),
        "nnUNet_preprocessed": str(preprocessed.parent),
        "nnUNet_results": str(args.work / "results"),
    }
    if environment.get("nnUNet_n_proc_DA") == "0":
        environment["nnUNet_n_proc_DA"] = "1"  # nnU-Net's planner takes it for a number of threads
    os.environ.update({name: environment[name] for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")})
    if not (preprocessed / "nnUNetPlans.json").is_file() or not any(
        preprocessed.glob(f"*_{args.configuration}/*.b2nd")
    ):
        number = args.data.name.removeprefix("Dataset").split("_")[0]
        subprocess.run(
            ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", args.configuration, "-np", "2"],
            env=environment,
            check=True,
        )
    fold = json.loads(args.split.read_text())[args.fold]
    upper = {"train": fold["train"] + fold.get("unlabeled", []), "val": fold["val"]}
    (preprocessed / "splits_final.json").write_text(json.dumps([fold, upper], indent=1))
    plans = json.loads((preprocessed / f"{args.plans}.json").read_text())["configurations"][args.configuration]
    for row in rows:
        write_small_plans(
            preprocessed,
            args.configuration,
            args.patch or plans["patch_size"],
            args.features or plans["architecture"]["arch_kwargs"]["features_per_stage"],
            args.plans,
            f"nnUNetPlansBench-{row.label}",
            convolutions_per_stage=args.convolutions,
            batch_size=plans["batch_size"],
            settings={
                "num_epochs": args.epochs * row.times,
                "num_iterations_per_epoch": args.iterations,
                "num_val_iterations_per_epoch": args.val_iterations,
                **row.settings,
            },
        )


def execute(run: Run, deadline: float) -> bool:
    """Train until it ends or the time is over; True when it ended."""
    run.folder.mkdir(parents=True, exist_ok=True)
    started = time()
    with open(run.folder / "console.log", "a") as log:
        process = subprocess.Popen(
            run.command(),
            env={**os.environ, **run.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=max(deadline - time(), 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)
            code = None
    with open(run.folder / "seconds.txt", "a") as file:
        file.write(f"{time() - started:.1f}\n")
    if code not in (0, None):
        raise UserError(f"{shlex.join(run.command())} failed; see {run.folder / 'console.log'}")
    return run.summary.is_file()


def result(run: Run) -> dict:
    """One line of ``results.jsonl``."""
    summary = json.loads(run.summary.read_text())
    seconds = sum(map(float, (run.folder / "seconds.txt").read_text().split()))
    return {
        "row": run.row.label,
        "trainer": run.row.trainer,
        "settings": run.row.settings,
        "seed": run.seed,
        "all_labels": run.row.all_labels,
        "steps": run.epochs * run.args.iterations,
        "seconds": round(seconds, 1),
        "dice": {label: values["Dice"] for label, values in summary["mean"].items()},
        "mean_dice": summary["foreground_mean"]["Dice"],
        "device": run.args.device,
        "patch": run.args.patch,
        "features": run.args.features,
        "split_hash": content_hash(json.loads(run.args.split.read_text())[run.args.fold]),
        "versions": installed_versions(),
        "command": run.command(),
        "finished": time(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="dataset folder in nnU-Net raw format")
    parser.add_argument("--split", type=Path, required=True, help="split file with the key unlabeled")
    parser.add_argument("--fold", type=int, default=0, help="fold of that file")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--rows", nargs="+", required=True, metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--val-iterations", type=int, default=10)
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--plans", default="nnUNetPlans")
    parser.add_argument("--patch", nargs="+", type=int, help="default: the plans'")
    parser.add_argument("--features", nargs="+", type=int, help="default: the plans'")
    parser.add_argument("--convolutions", type=int, default=2, help="convolutions per stage")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time; call again to continue")
    parser.add_argument("--print-commands", action="store_true", help="print the runs instead of running them")
    args = parser.parse_args()
    args.work = args.work.absolute()
    deadline = time() + 60 * args.minutes
    try:
        rows = [Row.parse(text) for text in args.rows]
        prepare(args, rows)
        runs = [Run(row, seed, args) for seed in args.seeds for row in rows]
        for run in runs:
            if args.print_commands:
                settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in run.environment.items())
                print(settings, shlex.join(run.command()))
            elif not run.summary.is_file() and time() < deadline:
                print(f"{run.row.label}, seed {run.seed} ...", flush=True)
                print("  done" if execute(run, deadline) else "  stopped; call again to continue", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    finished = [result(run) for run in runs if run.summary.is_file()]
    (args.work / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in finished))
    for line in finished:
        print(
            f"{line['row']:>20}  seed {line['seed']}  {line['steps']:6d} steps  {line['seconds']:8.0f} s  "
            f"mean Dice {100 * line['mean_dice']:.1f}"
        )
    print(f"{len(finished)} of {len(runs)} runs finished; {args.work / 'results.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
