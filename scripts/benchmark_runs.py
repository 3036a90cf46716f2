# SPDX-License-Identifier: Apache-2.0
"""Rows of the accuracy benchmark and their runs: what is trained, where it lies, and the commands that do it."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from nnunet_dhc.demo.pipeline import training_seconds
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_json
from nnunet_dhc.nnunet.training.configure_plans import parse_setting
from nnunet_dhc.nnunet.training.run_record import content_hash
from nnunet_dhc.trainers.lookup import is_trainer_name, split_name

_ROW = re.compile(
    r"(?P<label>[A-Za-z0-9-]+)=(?P<trainer>[\w-]+)(?::(?P<settings>[^@*~]*))?(?P<all>@all)?"
    r"(?:\*(?P<times>\d+(?:\.\d+)?))?(?:~(?P<as_long_as>[A-Za-z0-9-]+))?"
)
_COMMA = re.compile(r",(?=\w+=)")  # between settings, not within a list or an object of JSON
_KEPT_EPOCHS = "epochs_of_as_long_as"
_COUNTERS = {"num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"}
STOCK, TWO_STAGE = "nnUNetTrainer", "two-stage"
OVERSAMPLE = "oversample_foreground"


@dataclass(frozen=True)
class Row:
    """One system of the comparison."""

    label: str
    trainer: str
    settings: dict
    all_labels: bool
    times: float
    as_long_as: str | None

    @classmethod
    def parse(cls, text: str) -> Row:
        match = _ROW.fullmatch(text)
        if not match:
            raise UserError(f"--rows {text}: write label=trainer[:setting=value,...][@all][*N][~LABEL]")
        settings = dict(parse_setting(part) for part in _COMMA.split(match["settings"] or "") if part)
        ours = is_trainer_name(match["trainer"])
        of_stock = "trainer" if match["trainer"] == TWO_STAGE else OVERSAMPLE
        if not ours and set(settings) - {of_stock}:
            raise UserError(
                f"--rows {text}: stock nnU-Net takes the setting {OVERSAMPLE} alone, {TWO_STAGE} the setting trainer"
            )
        if ours and (split_name(match["trainer"])[1] is not None or _COUNTERS & set(settings)):
            raise UserError(f"--rows {text}: the numbers of epochs and steps come from --epochs, *N and --iterations")
        if match["as_long_as"] and ours:
            raise UserError(
                f"--rows {text}: ~ is for stock nnU-Net and {TWO_STAGE}; ours take their epochs from the plans"
            )
        return cls(
            match["label"],
            match["trainer"],
            settings,
            bool(match["all"]),
            float(match["times"] or 1),
            match["as_long_as"],
        )


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
    def fold(self) -> int:
        """Fold 0 has the labels of the split, fold 1 those of its unlabeled cases too."""
        return int(self.row.all_labels or self.row.trainer == TWO_STAGE)

    @property
    def nnunet_trainer(self) -> str:
        return self.row.settings.get("trainer", STOCK) if self.row.trainer == TWO_STAGE else self.row.trainer

    @property
    def folder(self) -> Path:
        return (
            Path(self.environment["nnUNet_results"])
            / self.args.data.name
            / f"{self.nnunet_trainer}__{self.plans}__{self.args.configuration}"
            / f"fold_{self.fold}"
        )

    @property
    def summary(self) -> Path:
        return self.folder / "validation" / "summary.json"

    @property
    def predictions(self) -> Path:
        return self.args.work / "predictions" / self.row.label / f"seed_{self.seed}"

    @property
    def is_finished(self) -> bool:
        predicted = {path.name for path in self.predictions.glob("*")} if self.args.predict else set()
        return (self.folder / "benchmark.json").is_file() and predicted.issuperset(test_cases(self.args))

    @property
    def self_training(self) -> Path:
        """Folder of the teacher and of the student's data."""
        return self.args.work / "two-stage" / self.row.label / f"seed_{self.seed}"

    @property
    def has_started(self) -> bool:
        """Whether there is something of this label and seed, of whichever trainer."""
        files = Path(self.environment["nnUNet_results"]).glob(f"*/*__{self.plans}__*/fold_*/*")
        trained = any(path.name.startswith(("training_log_", "checkpoint_")) for path in files)
        return trained or self.self_training.is_dir() or self.predictions.is_dir()

    @property
    def options(self) -> dict:
        """What decides the result of a run; the epochs of ``~LABEL`` follow from other runs."""
        args, row = self.args, self.row
        names = ("configuration", "iterations", "val_iterations", "plans", "patch", "features", "convolutions",
                 "device")
        return {
            "dataset": args.data.name,
            "trainer": row.trainer,
            "settings": row.settings,
            "times": row.times,
            "all_labels": row.all_labels,
            "epochs": None if row.as_long_as else round(args.epochs * row.times),
            "as_long_as": row.as_long_as,
            "split_hash": content_hash(json.loads(args.split.read_text())[args.fold]),
            **{name: getattr(args, name) for name in names},
        }

    @property
    def _note(self) -> Path:
        """By label and seed, as predictions, plans and the data of a student are."""
        return self.args.work / "options" / f"{self.row.label}_seed_{self.seed}.json"

    def _noted(self) -> dict:
        notes = self._note, self.folder / "benchmark_options.json"  # the latter of work folders made until now
        return next((json.loads(note.read_text()) for note in notes if note.is_file()), {})

    def refuse_other_options(self) -> None:
        """Raise if a run of this label and seed was started with other options.

        Raises:
            UserError: Names what differs.
        """
        before, now = self._noted(), self.options
        if not before or not self.has_started:
            return
        if changed := [f"{name}: {before[name]} before, {value} now" for name, value in now.items()
                       if before.get(name, value) != value]:
            raise UserError(
                f"{self.row.label}, seed {self.seed}, was started with other options ({'; '.join(changed)}): give the "
                "former ones, another label, or another --work"
            )

    def note_options(self) -> None:
        """Keep the options, for `refuse_other_options` of a later call."""
        kept = {name: value for name, value in self._noted().items() if name == _KEPT_EPOCHS and self.has_started}
        self._note.parent.mkdir(parents=True, exist_ok=True)
        replace_json(self._note, {**self.options, **kept})

    @property
    def kept_epochs(self) -> int | None:
        """Those that a run of ``~LABEL`` was started with: it goes on with them, however fast other rows are now."""
        return self._noted().get(_KEPT_EPOCHS) if self.has_started else None

    def keep_epochs(self, epochs: int) -> None:
        if self.row.as_long_as is not None:
            replace_json(self._note, {**self._noted(), _KEPT_EPOCHS: epochs})

    def command(self, epochs: int) -> list[str]:
        """nnU-Net's own command for our trainers; stock with its counters set, since it has no option for them."""
        common = [self.args.data.name, self.args.configuration]
        plans = ["-p", self.plans, "-device", self.args.device]
        if is_trainer_name(self.row.trainer):
            return [
                "nnUNetv2_train",
                *common,
                str(self.fold),
                "-tr",
                self.row.trainer,
                *plans,
            ]
        schedule = ["--iterations", str(self.args.iterations), "--val-iterations", str(self.args.val_iterations)]
        if self.row.trainer == TWO_STAGE:
            return [
                sys.executable,
                str(Path(__file__).with_name("self_training.py")),
                *common,
                "0",
                "1",
                "-tr",
                self.nnunet_trainer,
                *plans,
                "--epochs",
                str(epochs // 2),
                *schedule,
                "--work",
                str(self.self_training),
            ]
        oversample = self.row.settings.get(OVERSAMPLE)
        return [
            sys.executable,
            "-m",
            "nnunet_dhc.demo.short_stock",
            *common,
            str(self.fold),
            "-tr",
            self.row.trainer,
            *plans,
            "--epochs",
            str(epochs),
            *schedule,
            *(["--oversample-foreground", str(oversample)] if oversample is not None else []),
        ]

    @property
    def resume(self) -> list[str]:
        """What continues a training of ours; the other commands see by themselves where they were."""
        started = is_trainer_name(self.row.trainer) and any(self.folder.glob("checkpoint_*.pth"))
        return ["--c"] if started else []

    def prediction(self) -> list[str]:
        """nnU-Net's command for the cases of ``imagesTs``."""
        return [
            "nnUNetv2_predict",
            "-d",
            self.args.data.name,
            "-c",
            self.args.configuration,
            "-f",
            str(self.fold),
            "-tr",
            self.nnunet_trainer,
            "-p",
            self.plans,
            "-i",
            str(self.args.data / "imagesTs"),
            "-o",
            str(self.predictions),
            "-device",
            self.args.device,
            "-npp",
            "1",
            "-nps",
            "1",
            "--continue_prediction",
        ]

    def shell_command(self, epochs: int) -> str:
        """Everything of this run as one line for a shell, which also continues it."""
        line = shlex.join(self.command(epochs))
        if is_trainer_name(self.row.trainer):
            checkpoints = f"{shlex.quote(str(self.folder))}/checkpoint_*.pth"
            line += f" $(ls {checkpoints} > /dev/null 2>&1 && echo --c)"
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        lines = [line, *([shlex.join(self.prediction())] if self.args.predict else [])]
        return " && ".join(f"{settings} {line}" for line in lines)


def file_ending(args: argparse.Namespace) -> str:
    return json.loads((args.data / "dataset.json").read_text())["file_ending"]


def test_cases(args: argparse.Namespace) -> set[str]:
    """Names of the files that a prediction of ``imagesTs`` has, nothing without ``--predict``."""
    if not args.predict:
        return set()
    ending = file_ending(args)
    return {path.name.replace(f"_0000{ending}", ending) for path in (args.data / "imagesTs").glob(f"*_0000{ending}")}


def epochs_of(run: Run, runs: list[Run]) -> int:
    """Epochs of a run; for ``~LABEL``, those that fit into the time which that row took.

    Raises:
        UserError: The row, or one that tells the speed of this trainer, has not been trained.
    """
    epochs = run.args.epochs * run.row.times
    if run.row.as_long_as is None:
        return _whole_stages(run, epochs)
    if run.kept_epochs is not None:
        return run.kept_epochs
    done = {other.row.label: other for other in runs if other.seed == run.seed and other.summary.is_file()}
    same_trainer = [
        other
        for other in done.values()
        if other.nnunet_trainer == run.nnunet_trainer
        and other.row.trainer != TWO_STAGE  # whose log has the student's epochs alone
        and other.row.as_long_as is None
        and not other.row.all_labels
    ]
    if run.row.as_long_as not in done or not same_trainer:
        raise UserError(f"--rows {run.row.label}: run {run.row.as_long_as} and a row of {run.nnunet_trainer} first")
    speed = training_seconds(same_trainer[0].folder) / epochs_of(same_trainer[0], runs)
    return _whole_stages(run, run.row.times * training_seconds(done[run.row.as_long_as].folder) / speed)


def _whole_stages(run: Run, epochs: float) -> int:
    """Whole epochs; of two stages an even number of them."""
    return 2 * max(1, round(epochs / 2)) if run.row.trainer == TWO_STAGE else round(epochs)
