# SPDX-License-Identifier: Apache-2.0
"""A matrix of trainings on one dataset: rows x seeds, resumable, each in a results root of its own.

    python scripts/benchmark_accuracy.py --data Dataset514_BTCV4mm --split splits_BTCV_20p.json --work bench \
        --rows stock=nnUNetTrainer upper=nnUNetTrainer@all dhc=nnUNetTrainerDHC \
               always=nnUNetTrainerDHC:unlabeled_schedule=always \
        --seeds 0 1 2 --epochs 5 --patch 48 64 64 --features 8 16 32 64 80 --device cpu --minutes 60

A row is ``label=trainer``, then ``:setting=value,...`` for settings of nnunet_dhc (stock nnU-Net takes
``oversample_foreground``), then ``@all`` to train on the labels of the unlabeled cases too (the upper bound), ``*N`` to
train N times as many epochs, or ``~LABEL`` to train as long as the row LABEL took in the same seed, at the speed of a
row of the same trainer that ran before (equal wall-clock). The trainer ``two-stage`` is self-training with stock
nnU-Net (scripts/self_training.py), half of its epochs for each stage; ``two-stage:trainer=nnUNetTrainerNoMirroring``
chooses another trainer of nnU-Net for both.
Calling the script again continues: finished runs are skipped, killed ones go on from their last checkpoint; a run that
was started with other options is refused, as is another split in the same ``--work``. ``--print-commands`` prints every
run as a command of its own, for a cluster's scheduler; afterwards the same call without it collects the results.
Results: ``<work>/results.jsonl``; the folders are those of nnU-Net, so `nnunet_dhc compare` reads them (``two-stage``
and ``@all`` are fold 1, with other labeled cases: add ``--allow-different``). With ``--predict``, the cases of
``imagesTs`` are predicted into ``<work>/predictions/<label>/seed_<n>``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from time import time

from benchmark_runs import TWO_STAGE, Row, Run, epochs_of, file_ending, test_cases
from filelock import FileLock
from self_training import remove_cut_files

from nnunet_dhc.demo.pipeline import training_seconds
from nnunet_dhc.demo.small_plans import write_small_plans
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_json
from nnunet_dhc.nnunet.training.run_record import content_hash, installed_versions


def prepare(args: argparse.Namespace, rows: list[Row]) -> None:
    """Raw data (linked), nnU-Net's planning and preprocessing, the split, and plans for every row."""
    raw, preprocessed = args.work / "raw" / args.data.name, args.work / "preprocessed" / args.data.name
    raw.parent.mkdir(parents=True, exist_ok=True)
    if raw.is_symlink() and raw.resolve() != args.data.resolve():
        if raw.exists():
            raise UserError(f"--data {args.data}: {args.work} has runs on {raw.resolve()}: give another --work")
        raw.unlink()  # the data have moved
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
    if not is_preprocessed(args, preprocessed):
        number = args.data.name.removeprefix("Dataset").split("_")[0]
        subprocess.run(
            ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", args.configuration, "-np", "2"],
            env=environment,
            check=True,
            stdout=sys.stderr,  # --print-commands prints commands alone
        )
    write_split(args, preprocessed / "splits_final.json")
    if not (preprocessed / f"{args.plans}.json").is_file():
        raise UserError(f"--plans {args.plans}: {preprocessed} has none; make them with nnUNetv2_plan_experiment")
    plans = json.loads((preprocessed / f"{args.plans}.json").read_text())["configurations"][args.configuration]
    for row in rows:
        written = write_small_plans(
            preprocessed,
            args.configuration,
            args.patch or plans["patch_size"],
            args.features or plans["architecture"]["arch_kwargs"]["features_per_stage"],
            args.plans,
            f"nnUNetPlansBench-{row.label}",
            convolutions_per_stage=args.convolutions,
            batch_size=plans["batch_size"],
            settings={
                "num_epochs": round(args.epochs * row.times),
                "num_iterations_per_epoch": args.iterations,
                "num_val_iterations_per_epoch": args.val_iterations,
                **({} if row.trainer == TWO_STAGE else row.settings),
            },
        )
    used = json.loads(written.read_text())["configurations"][args.configuration]
    features = used["architecture"]["arch_kwargs"]["features_per_stage"]
    if args.features and len(features) < len(args.features):
        print(
            f"a patch of {used['patch_size']} gives {len(features)} resolutions by nnU-Net's rule: "
            f"--features {args.features} are used as {features}",
            file=sys.stderr,
            flush=True,
        )


def write_split(args: argparse.Namespace, splits: Path) -> None:
    """Fold 0 as in the split, fold 1 with the labels of its unlabeled cases, too.

    Raises:
        UserError: Something was trained with another split: all runs read one file, also those still to be run.
    """
    fold = json.loads(args.split.read_text())[args.fold]
    folds = [fold, {"train": fold["train"] + fold.get("unlabeled", []), "val": fold["val"]}]
    if splits.is_file() and json.loads(splits.read_text()) == folds:
        return  # not written anew: `compare` asks whether it is newer than a training
    if any(args.work.glob("results/seed_*/*/*/fold_*/training_log_*")) or any(args.work.glob("two-stage/*/seed_*")):
        raise UserError(f"--split {args.split}, fold {args.fold}: {args.work} has runs of another split: give another "
                        "--work")
    replace_json(splits, folds)


def is_preprocessed(args: argparse.Namespace, preprocessed: Path) -> bool:
    """Whether every training case is there; nnU-Net writes the .pkl file of a case last."""
    plans = preprocessed / f"{args.plans}.json"
    if not plans.is_file():
        return False
    folder = preprocessed / json.loads(plans.read_text())["configurations"][args.configuration]["data_identifier"]
    ending = file_ending(args)
    cases = {path.name.removesuffix(ending) for path in (args.data / "labelsTr").glob(f"*{ending}")}
    return cases <= {path.stem for path in folder.glob("*.pkl")}


def check(args: argparse.Namespace, rows: list[Row]) -> None:
    """What would fail only after hours.

    Raises:
        UserError: Names the option.
    """
    try:
        folds = json.loads(args.split.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--split {args.split} can't be read ({error})") from error
    if not (args.data / "dataset.json").is_file():
        raise UserError(f"--data {args.data} has no dataset.json: give a dataset folder in nnU-Net raw format")
    labels = [row.label for row in rows]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise UserError(f"--rows: {twice[0]} names two rows, whose results would be mixed")
    if args.fold >= len(folds):
        raise UserError(f"--fold {args.fold}: {args.split} has {len(folds)} folds, counted from 0")
    needs = [row.label for row in rows if row.all_labels or row.trainer == TWO_STAGE]
    if needs and not folds[args.fold].get("unlabeled"):
        raise UserError(f"--rows {needs[0]}: fold {args.fold} of {args.split} has no case under the key unlabeled")
    if args.predict and not test_cases(args):
        raise UserError(f"--predict: {args.data / 'imagesTs'} has no image")
    two_stage = {row.label for row in rows if row.trainer == TWO_STAGE}
    if wrong := [row.label for row in rows if row.as_long_as in two_stage]:
        raise UserError(f"--rows {wrong[0]}: ~ can't name a row of {TWO_STAGE}, whose time is that of several commands")


def execute(run: Run, epochs: int, deadline: float) -> bool:
    """Train until it ends or the time is over; True when it ended."""
    if not run.summary.is_file():
        run.keep_epochs(epochs)
        started = time()
        try:
            _call(run, [*run.command(epochs), *run.resume], deadline)
        finally:  # also when this script is stopped
            with open(run.folder / "seconds.txt", "a") as file:
                file.write(f"{time() - started:.1f}\n")
    if not run.summary.is_file():
        return False
    if run.args.predict:
        remove_cut_files(run.predictions, file_ending(run.args))
        _call(run, run.prediction(), deadline)
        if time() >= deadline:
            return False  # without a line of results, the next call goes on with the prediction
    replace_json(run.folder / "benchmark.json", {**result(run, epochs), "command": run.command(epochs)})
    return True


def _call(run: Run, command: list[str], deadline: float) -> None:
    """Run a command until the deadline, its output in the run's folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / "console.log", "a") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **run.environment}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        code = None
        try:
            code = process.wait(timeout=max(deadline - time(), 1))
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when this script is stopped
            _end(process)
    if code not in (0, None):
        raise UserError(f"{shlex.join(command)} failed; see {run.folder / 'console.log'}")


def _end(process: subprocess.Popen) -> None:
    """Stop a command and all that it has started."""
    for number, seconds in ((signal.SIGTERM, 60), (signal.SIGKILL, None)):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                continue


def result(run: Run, epochs: int) -> dict:
    """One line of ``results.jsonl``."""
    summary = json.loads(run.summary.read_text())
    timed = run.folder / "seconds.txt"  # absent where a scheduler ran the printed command
    seconds = sum(map(float, timed.read_text().split())) if timed.is_file() else training_seconds(run.folder)
    return {
        "dataset": run.args.data.name,
        "configuration": run.args.configuration,
        "row": run.row.label,
        "trainer": run.row.trainer,
        "settings": run.row.settings,
        "seed": run.seed,
        "all_labels": run.row.all_labels,
        "steps": epochs * run.args.iterations,
        "seconds": round(seconds, 1),
        "epoch_seconds": round(training_seconds(run.folder), 1),
        "dice": {label: values["Dice"] for label, values in summary["mean"].items()},
        "mean_dice": summary["foreground_mean"]["Dice"],
        "device": run.args.device,
        "patch": run.args.patch,
        "features": run.args.features,
        "convolutions": run.args.convolutions,
        "split_hash": content_hash(json.loads(run.args.split.read_text())[run.args.fold]),
        "versions": installed_versions(),
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
    parser.add_argument("--predict", action="store_true", help="predict imagesTs with each finished run")
    parser.add_argument("--print-commands", action="store_true", help="print the runs instead of running them")
    args = parser.parse_args()
    args.work, args.data = args.work.absolute(), args.data.absolute()
    deadline = time() + 60 * args.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = False
    try:
        rows = [Row.parse(text) for text in args.rows]
        check(args, rows)
        runs = [Run(row, seed, args) for seed in args.seeds for row in rows]
        args.work.mkdir(parents=True, exist_ok=True)
        with FileLock(args.work / "prepare.lock"):
            for run in runs:
                run.refuse_other_options()
            for run in runs:
                run.note_options()
            prepare(args, rows)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for run in runs:
        try:
            if args.print_commands:
                epochs = epochs_of(run, runs)
                run.keep_epochs(epochs)
                print(run.shell_command(epochs))
            elif not run.is_finished and time() < deadline:
                epochs = epochs_of(run, runs)
                print(f"{run.row.label}, seed {run.seed}, {epochs} epochs ...", flush=True)
                print("  done" if execute(run, epochs, deadline) else "  stopped; call again to continue", flush=True)
        except UserError as error:
            failed = True
            if args.print_commands:
                print(f"# {error}, then print again")
            print(error, file=sys.stderr)
    if args.print_commands:
        return 0
    finished = [
        json.loads(file.read_text()) for file in sorted(args.work.glob("results/seed_*/*/*/fold_*/benchmark.json"))
    ]
    (args.work / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in finished))
    for line in finished:
        print(
            f"{line['row']:>20}  seed {line['seed']}  {line['steps']:6d} steps  {line['seconds']:8.0f} s  "
            f"mean Dice {100 * line['mean_dice']:.1f}"
        )
    print(f"{len(finished)} runs finished; {args.work / 'results.jsonl'}")
    return 2 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # call again to continue
