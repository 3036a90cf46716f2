# SPDX-License-Identifier: Apache-2.0
"""Whole commands of this package against nnU-Net's: preprocessing of unlabeled cases, and prediction.

    python scripts/benchmark_commands.py --data Dataset514_BTCV4mm --cases 8 -np 2 -device cpu

Preprocessing: the same number of other scans of the same dataset, once as labeled cases by nnUNetv2_preprocess, once as
imagesUn by `nnunet_dhc preprocess`. Prediction: the plans' own network, trained for one step (its time does not depend
on what was learned), by nnUNetv2_predict as stock, as DHC, and as stock after `nnunet_dhc export`. Commands that are
compared run in turn; the ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmark_step import environment_of, spread

from nnunet_dhc.demo.small_plans import write_small_plans

CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlansBenchmark"
SMALLEST_SPLIT = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder in nnU-Net raw format")
    parser.add_argument("--cases", type=int, default=8, help="scans of each kind")
    parser.add_argument("--predict", type=int, default=2, help="scans to predict")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patch", type=int, nargs="+", help="default: the plans'")
    parser.add_argument("--features", type=int, nargs="+", help="default: the plans'")
    parser.add_argument("-np", type=int, default=2, help="processes")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    print(json.dumps({"environment": environment_of(args.device)}))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        rows = [*bench.preprocessing(), *bench.prediction()]
    print("| command | s | processor s | to stock | quartiles | to stock, processor time |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["what"], f"{row['seconds']:.1f}", f"{row['processor_seconds']:.1f}", "", "", ""]
        if "ratio" in row:
            cells[3:] = [f"{row['ratio']:.2f}", "{} to {}".format(*row["spread"]), f"{row['processor_ratio']:.2f}"]
        print("| " + " | ".join(cells) + " |")


class Bench:
    """A dataset of its own below ``folder``, with labeled and unlabeled scans."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.name = args, args.data.name
        self.number = str(int(self.name[7:10]))
        self.raw, self.preprocessed = folder / "raw" / self.name, folder / "preprocessed" / self.name
        self.folder = folder
        self.environment = {
            **os.environ,
            "nnUNet_raw": str(self.raw.parent),
            "nnUNet_preprocessed": str(self.preprocessed.parent),
            "nnUNet_results": str(folder / "results"),
        }
        dataset = json.loads((args.data / "dataset.json").read_text())
        ending, channels = dataset["file_ending"], len(dataset["channel_names"])
        cases = sorted(path.name.removesuffix(ending) for path in (args.data / "labelsTr").glob(f"*{ending}"))
        if len(cases) < 2 * args.cases:
            raise SystemExit(f"{args.data} has {len(cases)} labeled cases; --cases takes at most half of them")
        self.labeled, unlabeled = cases[: args.cases], cases[args.cases : 2 * args.cases]
        for kind in ("imagesTr", "labelsTr", "imagesUn", "imagesTs"):
            (self.raw / kind).mkdir(parents=True)
        for case in self.labeled:
            shutil.copy(args.data / "labelsTr" / f"{case}{ending}", self.raw / "labelsTr")
        test = unlabeled[: args.predict]
        for kind, names in (("imagesTr", self.labeled), ("imagesUn", unlabeled), ("imagesTs", test)):
            for image in (f"{name}_{channel:04d}{ending}" for name in names for channel in range(channels)):
                shutil.copy(args.data / "imagesTr" / image, self.raw / kind)
        (self.raw / "dataset.json").write_text(json.dumps({**dataset, "numTraining": len(self.labeled)}))
        self.call("nnUNetv2_extract_fingerprint", "-d", self.number, "-np", str(args.np))
        self.call("nnUNetv2_plan_experiment", "-d", self.number)
        fold = {"train": self.labeled[SMALLEST_SPLIT:], "val": self.labeled[:SMALLEST_SPLIT]}
        (self.preprocessed / "splits_final.json").write_text(json.dumps([fold]))

    def call(self, *command: str) -> tuple[float, float]:
        """Run a command; its seconds, and its processor time with all its processes."""
        started, used = perf_counter(), _children()
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return perf_counter() - started, _children() - used

    def preprocessing(self) -> list[dict]:
        common = ["-d", self.number, "-c", CONFIGURATION, "-np", str(self.args.np)]
        turns = []
        for _ in range(self.args.repeats):
            stock = self.call("nnUNetv2_preprocess", *common)
            shutil.rmtree(self.preprocessed / f"nnUNetPlans_{CONFIGURATION}_unlabeled", ignore_errors=True)
            turns.append([stock, self.call("nnunet_dhc", "preprocess", *common)])
        return summary(
            [f"nnUNetv2_preprocess, {self.args.cases} cases", f"nnunet_dhc preprocess, {self.args.cases} cases"], turns
        )

    def prediction(self) -> list[dict]:
        args = self.args
        plans = json.loads((self.preprocessed / "nnUNetPlans.json").read_text())["configurations"][CONFIGURATION]
        network = plans["architecture"]["arch_kwargs"]
        write_small_plans(
            self.preprocessed,
            CONFIGURATION,
            args.patch or plans["patch_size"],
            args.features or network["features_per_stage"],
            "nnUNetPlans",
            PLANS,
            network["n_conv_per_stage"][0],
            settings={"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1},
        )
        common = ["-p", PLANS, "-device", args.device]
        self.call(
            sys.executable,
            "-m",
            "nnunet_dhc.demo.short_stock",
            self.number,
            CONFIGURATION,
            "0",
            *common,
            "--epochs",
            "1",
            "--iterations",
            "1",
            "--val-iterations",
            "1",
        )
        self.call("nnUNetv2_train", self.number, CONFIGURATION, "0", "-tr", "nnUNetTrainerDHC", *common)
        exported = str(self.folder / "exported")
        self.call(
            "nnunet_dhc",
            "export",
            "-d",
            self.number,
            "-c",
            CONFIGURATION,
            "-p",
            PLANS,
            "-f",
            "0",
            "-net",
            "A",
            "-o",
            exported,
        )
        files = ["-i", str(self.raw / "imagesTs"), "-device", args.device, "-npp", "1", "-nps", "1"]
        by_name = ["nnUNetv2_predict", "-d", self.number, "-c", CONFIGURATION, "-p", PLANS, "-f", "0", *files]
        turns = []
        for turn in range(args.repeats):
            out = [str(self.folder / f"out_{turn}_{kind}") for kind in range(3)]
            turns.append(
                [
                    self.call(*by_name, "-o", out[0]),
                    self.call(*by_name, "-tr", "nnUNetTrainerDHC", "-o", out[1]),
                    self.call("nnUNetv2_predict_from_modelfolder", "-m", exported, "-f", "0", *files, "-o", out[2]),
                ]
            )
        return summary(["nnUNetv2_predict, stock", "nnUNetv2_predict, DHC", "nnUNetv2_predict, exported"], turns)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def summary(names: list[str], turns: list[list[tuple[float, float]]]) -> list[dict]:
    """Medians of every command, with ratios to the first of the same turn."""
    rows = []
    for index, name in enumerate(names):
        row = {
            "what": name,
            "seconds": median(turn[index][0] for turn in turns),
            "processor_seconds": median(turn[index][1] for turn in turns),
        }
        if index:
            ratios = [turn[index][0] / turn[0][0] for turn in turns]
            row |= {
                "ratio": median(ratios),
                "spread": spread(ratios),
                "processor_ratio": median(turn[index][1] / turn[0][1] for turn in turns),
            }
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
