# SPDX-License-Identifier: Apache-2.0
"""Two-stage self-training with stock nnU-Net: train, predict the unlabeled cases, train again on all of them.

    python scripts/self_training.py Dataset514_BTCV4mm 3d_fullres 0 1 -p nnUNetPlans --epochs 5 --work self_training

This is what a user without this package would do. The two arguments after the configuration are folds of
``splits_final.json``: the teacher's, with the key ``unlabeled``, and the student's, whose training cases are the
teacher's labeled and unlabeled ones (the labels of the latter are never read: the student's preprocessed data are made
anew from the teacher's predictions, below ``--work``). Calling it again continues where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_json
from nnunet_dhc.nnunet.training.run_record import content_hash
from nnunet_dhc.reporting.image_files import read_label_map


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="dataset name, Dataset123_Name")
    parser.add_argument("configuration")
    parser.add_argument("teacher_fold", type=int)
    parser.add_argument("student_fold", type=int)
    parser.add_argument("-tr", default="nnUNetTrainer", help="a trainer of nnU-Net, for both stages")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS")
    parser.add_argument("-device", default="cuda", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--epochs", type=int, required=True, help="epochs of each stage")
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--val-iterations", type=int, default=50)
    parser.add_argument("--work", type=Path, required=True, help="predictions and the student's data go here")
    args = parser.parse_args()
    work = args.work.absolute()
    labels = work / "pseudo_labels"
    unlabeled_identifiers(args)  # before the teacher is trained
    work.mkdir(parents=True, exist_ok=True)
    student_data = work / "preprocessed"
    with FileLock(work / "teacher.lock"):  # a second process would take the data away from under the student
        refuse_other_options(args, work / "options.json")
        train(args, args.teacher_fold, dict(os.environ), work / "teacher")
        if not (student_data / "complete").is_file():
            predict_unlabeled(args, work, labels)
            make_student_data(args, labels, student_data)
            (student_data / "complete").touch()
    train(args, args.student_fold, {**os.environ, "nnUNet_preprocessed": str(student_data)})
    return 0


def refuse_other_options(args, note: Path) -> None:
    """The teacher, its predictions and the student's data belong together."""
    split = Path(os.environ["nnUNet_preprocessed"]) / args.dataset / "splits_final.json"
    names = ("dataset", "configuration", "teacher_fold", "tr", "p", "epochs", "iterations")
    options = {**{name: getattr(args, name) for name in names},
               "split_hash": content_hash(json.loads(split.read_text())[args.teacher_fold])}
    before = json.loads(note.read_text()) if note.is_file() else options
    if changed := [f"{name} {before.get(name)} before, {now} now" for name, now in options.items()
                   if before.get(name) != now]:
        sys.exit(f"{note.parent} was started with other options ({'; '.join(changed)}): give another --work")
    replace_json(note, options)


def train(args, fold: int, environment: dict, results: Path | None = None) -> None:
    """Stock nnU-Net; the teacher gets a results folder of its own."""
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        environment = {**environment, "nnUNet_results": str(results)}
    if results is not None and list(results.glob(f"*/*/fold_{fold}/validation/summary.json")):
        return
    command = [
        sys.executable,
        "-m",
        "nnunet_dhc.demo.short_stock",
        args.dataset,
        args.configuration,
        str(fold),
        "-tr",
        args.tr,
        "-p",
        args.p,
        "-device",
        args.device,
        "--epochs",
        str(args.epochs),
        "--iterations",
        str(args.iterations),
        "--val-iterations",
        str(args.val_iterations),
    ]
    subprocess.run(command, env=environment, check=True)


def predict_unlabeled(args, work: Path, labels: Path) -> None:
    """The teacher's predictions, with nnU-Net's own command."""
    raw = Path(os.environ["nnUNet_raw"]) / args.dataset
    dataset_json = json.loads((raw / "dataset.json").read_text())
    images = work / "unlabeled_images"
    images.mkdir(parents=True, exist_ok=True)
    for identifier in unlabeled_identifiers(args):
        for channel in map(Path, channels_of(raw, dataset_json, identifier)):
            if not (images / channel.name).exists():
                (images / channel.name).symlink_to(channel.resolve())
    remove_cut_files(labels, dataset_json["file_ending"])
    subprocess.run(
        [
            "nnUNetv2_predict",
            "-d",
            args.dataset,
            "-c",
            args.configuration,
            "-f",
            str(args.teacher_fold),
            "-tr",
            args.tr,
            "-p",
            args.p,
            "-i",
            images,
            "-o",
            labels,
            "-device",
            args.device,
            "-npp",
            "1",
            "-nps",
            "1",
            "--continue_prediction",
        ],
        env={**os.environ, "nnUNet_results": str(work / "teacher")},
        check=True,
    )


def unlabeled_identifiers(args) -> list[str]:
    file = Path(os.environ["nnUNet_preprocessed"]) / args.dataset / "splits_final.json"
    identifiers = json.loads(file.read_text())[args.teacher_fold].get("unlabeled")
    if not identifiers:
        sys.exit(f"{file}: fold {args.teacher_fold} has no case under the key unlabeled; scans in imagesUn can't be "
                 "taken here")
    return identifiers


def remove_cut_files(folder: Path, ending: str) -> None:
    """What a killed prediction left half written: ``--continue_prediction`` takes every file for a whole one."""
    for path in folder.glob(f"*{ending}"):
        try:
            read_label_map(path)
        except UserError:
            path.unlink()


def make_student_data(args, labels: Path, student_data: Path) -> None:
    """A preprocessed folder like the first, in which the unlabeled cases carry the teacher's predictions."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    source, target = Path(os.environ["nnUNet_preprocessed"]) / args.dataset, student_data / args.dataset
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    plans = PlansManager(str(source / f"{args.p}.json"))
    configuration = plans.get_configuration(args.configuration)
    pseudo_labeled = set(unlabeled_identifiers(args))
    for entry in source.iterdir():
        if entry.name != configuration.data_identifier:
            (target / entry.name).symlink_to(entry.resolve())
    data = target / configuration.data_identifier
    data.mkdir()
    for file in (source / configuration.data_identifier).iterdir():
        identifier = file.name.removesuffix(".pkl").removesuffix(".b2nd").removesuffix("_seg")
        if identifier not in pseudo_labeled:
            (data / file.name).symlink_to(file.resolve())
    raw = Path(os.environ["nnUNet_raw"]) / args.dataset
    dataset_json = json.loads((raw / "dataset.json").read_text())
    preprocessor = configuration.preprocessor_class(verbose=False)
    for identifier in sorted(pseudo_labeled):
        label = labels / (identifier + dataset_json["file_ending"])
        preprocessor.run_case_save(
            str(data / identifier),
            channels_of(raw, dataset_json, identifier),
            str(label),
            plans,
            configuration,
            dataset_json,
        )


def channels_of(raw: Path, dataset_json: dict, identifier: str) -> list[str]:
    """Image files of a case, in the order of the channels."""
    from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

    return create_lists_from_splitted_dataset_folder(str(raw / "imagesTr"), dataset_json["file_ending"], [identifier])[
        0
    ]


if __name__ == "__main__":
    sys.exit(main())
