# SPDX-License-Identifier: Apache-2.0
"""The demo from data to report: stock nnU-Net and DHC on the same few labels, by the commands a user would type.

Everything lies below one folder, and a second run continues where the first one stopped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nnunet_dhc.demo.phantom_dataset import PhantomPlan, write_dataset
from nnunet_dhc.demo.small_plans import write_small_plans
from nnunet_dhc.demo.steps import STATE_FILE, Steps
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_file
from nnunet_dhc.nnunet.host.dataset_places import id_of, read_dataset_json
from nnunet_dhc.nnunet.host.raw_images import IMAGES_UN
from nnunet_dhc.nnunet.splits.fold_cases import SPLITS_FILE
from nnunet_dhc.nnunet.training.mirroring import stock_trainer
from nnunet_dhc.nnunet.training.run_record import content_hash
from nnunet_dhc.reporting.run_files import logged_seconds
from nnunet_dhc.trainers.dhc import nnUNetTrainerDHC

PHANTOM_ID = 901
PLANS, SMALL_PLANS = "nnUNetPlans", "nnUNetPlansDemo"
DHC, CONTROL = "nnUNetTrainerDHC", "nnUNetTrainerPairSupervised"
CONFIGURATION, FOLD = "3d_fullres", "0"
# Coarser than the phantom's own voxels: a patch of few voxels then sees enough of the body, on a CPU in minutes.
_PHANTOM_SPACING = ("4", "2.4", "2.4")


@dataclass(frozen=True)
class DemoOptions:
    """What ``nnunet_dhc demo`` can be told; see its help."""

    output: Path = Path(".demo")
    data: Path | None = None
    split: Path | None = None
    epochs: int = 10
    iterations: int = 50
    patch: tuple[int, ...] = (24, 32, 32)
    features: tuple[int, ...] = (16, 32, 64)
    device: str = "auto"
    processes: int = 2
    equal_time: bool = False
    control: bool = False


def run_demo(options: DemoOptions) -> Path:
    """Run the demo (or what is left of it) and return the path of the HTML report."""
    started = time.monotonic()
    output = options.output.resolve()
    logs = output / "logs"
    _refuse_folders_of_others(output, logs / STATE_FILE)
    logs.mkdir(parents=True, exist_ok=True)
    device = _device(options.device)
    environment = _environment(output, options.processes)
    dataset = _Dataset(options, output)
    if options.equal_time and not dataset.has_test_labels:
        raise UserError(f"--equal-time: {options.data} has no imagesTs and labelsTs, on which the longer training of "
                        "stock is compared: leave it out, or keep test cases aside")
    rounds = 2 + options.control + options.equal_time
    steps = Steps(logs, 4 + rounds * (2 if dataset.has_test_labels else 1), environment)
    print(f"Demo in {output} on {device}: {options.epochs} epochs of {options.iterations} steps for each trainer.")
    print("A run that was stopped continues where it was.\n", flush=True)

    dataset.make(steps)
    trainers = {"stock": dataset.stock, "DHC": DHC, **({"control": CONTROL} if options.control else {})}
    _plan(steps, dataset, options)
    for name, trainer in trainers.items():
        _train(steps, f"Train {name}", trainer, dataset, options, device)
    rows = {name: (trainer, environment) for name, trainer in trainers.items()}
    if options.equal_time:
        rows[_EQUAL_TIME] = (dataset.stock, _train_at_equal_time(steps, dataset, options, device, output, environment))
    if not dataset.has_test_labels:
        report = _compare_validation(steps, dataset, list(trainers.values()), output)
    else:
        for name, (trainer, where) in rows.items():
            steps.environment = where
            target = _predictions(output, name)
            steps.command(f"Predict with {name}", _prediction(trainer, dataset, device, target),
                          prepare=lambda target=target: _remove(target))
        steps.environment = environment
        report = _compare_test_cases(steps, dataset, list(rows), output)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\nReport: {report}\nThe demo took {minutes} min {seconds} s.")
    return report


_EQUAL_TIME = "stock-equal-time"
_MADE_FOLDERS = ("raw", "preprocessed", "results", "results_equal_time", "predictions", "comparison")
# In a fold's folder: the options that its training was started with.
_MADE_FROM = "demo_options.json"


class _Dataset:
    """The phantom, or the user's dataset linked into the demo's own raw folder."""

    def __init__(self, options: DemoOptions, output: Path) -> None:
        self.options = options
        self.source = options.data.resolve() if options.data else None
        self.split = options.split.resolve() if options.split else None
        self.name = self.source.name if self.source else f"Dataset{PHANTOM_ID:03d}_AbdomenPhantom"
        if not re.fullmatch(r"Dataset\d{3,}_[\w.+-]+", self.name):
            raise UserError(f"--data {self.source}: the folder must be named like Dataset123_Name")
        self.number = str(id_of(self.name))
        self.raw = output / "raw" / self.name
        self.preprocessed = output / "preprocessed" / self.name

    @property
    def has_test_labels(self) -> bool:
        """Whether test cases with labels are kept aside; without them, the validation cases are compared."""
        return self.source is None or all((self.source / name).is_dir() for name in ("imagesTs", "labelsTs"))

    @cached_property
    def stock(self) -> str:
        """nnU-Net's trainer that mirrors as DHC does, so that the comparison doesn't measure mirroring."""
        return stock_trainer(read_dataset_json(self.raw / "dataset.json")["labels"])

    @property
    def origin(self) -> object:
        """What the data come from, and how they are: something else makes the demo begin again."""
        if self.source is None:
            return PhantomPlan()
        files = [path for name in ("imagesTr", "labelsTr", IMAGES_UN, "imagesTs", "labelsTs")
                 for path in sorted((self.source / name).glob("*"))]
        files += [path for path in (self.source / "dataset.json", self.split_file) if path.is_file()]
        found = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return (str(self.source), str(self.split), content_hash(found))

    @property
    def split_file(self) -> Path:
        return self.split or self.source / SPLITS_FILE

    def make(self, steps: Steps) -> None:
        if self.source is None:
            plan = PhantomPlan()
            steps.call("Make the phantom dataset", self.origin,
                       lambda: write_dataset(self.raw.parent, PHANTOM_ID, plan, self.options.processes))
        else:
            steps.call("Link the dataset", self.origin, self._link)

    def _link(self) -> None:
        if self.source == self.raw:
            raise UserError(f"--data {self.source} lies where the demo puts its own links: give another -o")
        if not (self.source / "dataset.json").is_file():
            raise UserError(f"--data {self.source} has no dataset.json: give a dataset in nnU-Net's raw format")
        read_dataset_json(self.source / "dataset.json")
        split = self.split_file
        if not (self.source / IMAGES_UN).is_dir() and not _has_unlabeled(split):
            raise UserError(f"--data {self.source} has no unlabeled scans: put some into {IMAGES_UN}, or give --split "
                            'with a file that has the key "unlabeled"')
        split_content = split.read_bytes() if split.is_file() else None
        self._unlink()
        self.raw.mkdir(parents=True, exist_ok=True)
        for entry in sorted(self.source.iterdir()):
            link = self.raw / entry.name
            if entry.name != SPLITS_FILE and not link.exists():
                link.symlink_to(entry, target_is_directory=entry.is_dir())
        if split_content is not None:
            self.preprocessed.mkdir(parents=True)
            for folder in (self.raw, self.preprocessed):
                (folder / SPLITS_FILE).write_bytes(split_content)

    def _unlink(self) -> None:
        """Nothing stays of another source or split under the same name."""
        for entry in list(self.raw.glob("*")):
            if entry.is_symlink() or entry.name == SPLITS_FILE:
                entry.unlink()
        _remove(self.preprocessed)


def _refuse_folders_of_others(output: Path, state_file: Path) -> None:
    """The demo replaces what lies in its folders, so they must be its own."""
    if state_file.is_file():
        return
    for name in _MADE_FOLDERS:
        if (output / name).is_dir() and any((output / name).iterdir()):
            raise UserError(f"-o {output}: {output / name} has files that no demo made and this one might replace: "
                            "give another folder")


def _has_unlabeled(split: Path) -> bool:
    try:
        return any(fold.get("unlabeled") for fold in json.loads(split.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _environment(output: Path, processes: int) -> dict[str, str]:
    environment = dict(os.environ)
    # The commands of this interpreter's environment, also where that isn't activated.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    for variable, folder in (("nnUNet_raw", "raw"), ("nnUNet_preprocessed", "preprocessed"),
                             ("nnUNet_results", "results")):
        (output / folder).mkdir(exist_ok=True)
        environment[variable] = str(output / folder)
    # nnU-Net's own number is 8, and each of its processes imports torch before a validation of two cases.
    environment.setdefault("nnUNet_def_n_proc", str(processes))
    # One data worker for each loader: on two cores, more only compete with the training.
    environment.setdefault("nnUNet_n_proc_DA", str(max(1, processes // 2)))
    environment.setdefault("nnUNet_compile", "f")  # in trainings this short, compiling takes longer than it saves
    return environment


def _plan(steps: Steps, dataset: _Dataset, options: DemoOptions) -> None:
    spacing = () if dataset.source else ("-overwrite_target_spacing", *_PHANTOM_SPACING, "-overwrite_plans_name", PLANS)
    environment = steps.environment
    # nnU-Net takes its threads from this number and can't plan with 0, which is fine for training.
    steps.environment = {**environment, "nnUNet_n_proc_DA": "1"}
    steps.command("Plan and preprocess the labeled cases", [
        "nnUNetv2_plan_and_preprocess", "-d", dataset.number, "-c", CONFIGURATION, *spacing,
        "-npfp", str(options.processes), "-np", str(options.processes)])
    steps.environment = environment
    settings = _settings(options)
    steps.call(f"Write small plans ({SMALL_PLANS})", (options.patch, options.features, settings),
               lambda: write_small_plans(dataset.preprocessed, CONFIGURATION, options.patch, options.features, PLANS,
                                         SMALL_PLANS, settings=settings))


def _settings(options: DemoOptions) -> dict[str, int]:
    return {"num_epochs": options.epochs, "num_iterations_per_epoch": options.iterations,
            "num_val_iterations_per_epoch": _validation_steps(options)}


def _validation_steps(options: DemoOptions) -> int:
    return max(1, options.iterations // 10)


def _train(steps: Steps, title: str, trainer: str, dataset: _Dataset, options: DemoOptions, device: str,
           epochs: int | None = None) -> None:
    """Train, or continue what was started with the same options."""
    epochs = epochs or options.epochs
    command = _training(trainer, dataset, options, device, epochs)
    folder = _fold_folder(trainer, dataset, steps.environment)
    made_from = [repr(dataset.origin), options.patch, options.features, _settings(options), command]

    def prepare() -> list[str]:
        continues = _can_continue(folder, made_from)
        return ["--c"] if continues and trainer != dataset.stock else []  # stock's command sees the checkpoint itself

    steps.command(title, command, prepare, epochs)


def _training(trainer: str, dataset: _Dataset, options: DemoOptions, device: str, epochs: int) -> list[str]:
    common = [dataset.number, CONFIGURATION, FOLD, "-p", SMALL_PLANS, "-device", device]
    if trainer == dataset.stock:
        # nnU-Net has no option for a shorter schedule or for DHC's way of drawing patches; this sets nothing else.
        return ["python", "-m", "nnunet_dhc.demo.short_stock", *common, "-tr", trainer, "--oversample-foreground",
                str(nnUNetTrainerDHC.recipe.oversample_foreground), "--epochs", str(epochs), "--iterations",
                str(options.iterations), "--val-iterations", str(_validation_steps(options))]
    return ["nnUNetv2_train", *common, "-tr", trainer]


def _can_continue(fold_folder: Path, made_from: list[object]) -> bool:
    """Whether a training can be continued; one that was started with other options is removed, as it is the demo's."""
    note, text = fold_folder / _MADE_FROM, json.dumps(made_from)
    if not note.is_file() or note.read_text(encoding="utf-8") != text:
        if fold_folder.exists():
            print(f"      {fold_folder} was started with other options: removed", flush=True)
            _remove(fold_folder)
        fold_folder.mkdir(parents=True)
        replace_file(note, text.encode())
    return any(fold_folder.glob("checkpoint_*.pth"))


def _remove(folder: Path) -> tuple[()]:
    if folder.exists():
        shutil.rmtree(folder)
    return ()


def _fold_folder(trainer: str, dataset: _Dataset, environment: dict[str, str]) -> Path:
    return (Path(environment["nnUNet_results"]) / dataset.name / f"{trainer}__{SMALL_PLANS}__{CONFIGURATION}"
            / f"fold_{FOLD}")


def _train_at_equal_time(steps: Steps, dataset: _Dataset, options: DemoOptions, device: str, output: Path,
                         environment: dict[str, str]) -> dict[str, str]:
    """Stock with as many steps as fit into DHC's training time, in a results folder of its own."""
    stock, dhc = (training_seconds(_fold_folder(trainer, dataset, environment)) for trainer in (dataset.stock, DHC))
    epochs = max(options.epochs, round(options.epochs * dhc / stock))
    elsewhere = {**environment, "nnUNet_results": str(output / "results_equal_time")}
    Path(elsewhere["nnUNet_results"]).mkdir(exist_ok=True)
    steps.environment = elsewhere
    _train(steps, "Train stock for DHC's wall-clock", dataset.stock, dataset, options, device, epochs)
    steps.environment = environment
    return elsewhere


def training_seconds(fold_folder: Path) -> float:
    """Seconds that a training spent in its epochs, from nnU-Net's own logs (all of them: it may have been resumed).

    Raises:
        UserError: There is no log with a finished epoch.
    """
    seconds = logged_seconds(fold_folder)
    if seconds is None:
        raise UserError(f"no finished epoch in the logs of {fold_folder}: run the demo again")
    return seconds


def _predictions(output: Path, name: str) -> Path:
    return output / "predictions" / name


def _prediction(trainer: str, dataset: _Dataset, device: str, target: Path) -> list[str | Path]:
    return ["nnUNetv2_predict", "-d", dataset.number, "-c", CONFIGURATION, "-f", FOLD, "-tr", trainer, "-p",
            SMALL_PLANS, "-i", dataset.raw / "imagesTs", "-o", target, "-device", device, "-npp", "1", "-nps", "1",
            "--disable_tta"]  # mirroring makes each prediction eight times as long, for all rows alike


def _compare_test_cases(steps: Steps, dataset: _Dataset, names: list[str], output: Path) -> Path:
    folders = [f"{name}={_predictions(output, name)}" for name in names]
    return _compare(steps, output, [
        "-i", *folders, "-ref", dataset.raw / "labelsTs", "-djfile", dataset.raw / "dataset.json",
        "--images", dataset.raw / "imagesTs"])


def _compare_validation(steps: Steps, dataset: _Dataset, trainers: list[str], output: Path) -> Path:
    return _compare(steps, output, ["-d", dataset.number, "-c", CONFIGURATION, "-tr", *trainers, "-p", SMALL_PLANS])


def _compare(steps: Steps, output: Path, arguments: list[str | Path]) -> Path:
    folder = output / "comparison"
    steps.show("Compare", ["nnunet_dhc", "compare", *arguments, "-o", folder])
    return folder / "comparison.html"
