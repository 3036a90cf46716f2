# SPDX-License-Identifier: Apache-2.0
"""The second stage of a cascade: first-stage predictions of labeled cases are asked for, of unlabeled ones made.

Stock nnU-Net predicts for the next stage in the final validation of the first one, so each labeled case is predicted by
the fold that validates it. Unlabeled cases are in no fold's validation; they are predicted here by the first stage of
the fold that is going to train on them, in nnU-Net's way and format.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import remove_temporary_files, sync_folder, temporary_path
from nnunet_dhc.nnunet.host.file_locks import awaited_lock, released_at_end
from nnunet_dhc.nnunet.network.model_folder import file_hash
from nnunet_dhc.nnunet.network.predictor import trained_predictor
from nnunet_dhc.nnunet.splits.fold_cases import SPLITS_FILE, FoldCases
from nnunet_dhc.nnunet.unlabeled.unlabeled_loader import read_case
from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import UnlabeledPool, bring_store_up_to_date
from nnunet_dhc.nnunet.unlabeled.unlabeled_store import StoreEntry, UnlabeledStore, case_files
from nnunet_dhc.wording import counted, name_some

CHECKPOINT = "checkpoint_final.pth"
FOLDER = "unlabeled_next_stage"
MANIFEST = "manifest.jsonl"
_LOCK = "predicting.lock"


def require_labeled_predictions(trainer: nnUNetTrainer, cases: FoldCases) -> None:
    """Refuse a second stage whose labeled or validation cases have no first-stage prediction.

    Raises:
        UserError: Names the cases and the folds of the first stage that would predict them.
    """
    folder = Path(trainer.folder_with_segs_from_previous_stage)
    needed = sorted({*cases.labeled, *cases.validation})
    missing = [case for case in needed if not any((folder / f"{case}{ending}").is_file() for ending in
                                                  (".b2nd", ".npz", ".npy"))]
    if not missing:
        return
    stage = trainer.configuration_manager.previous_stage_name
    if trainer.fold == "all":
        remedy = f"train {stage} with fold all first"
    else:
        folds, never = _validating_folds(Path(trainer.preprocessed_dataset_folder_base), missing)
        if never:
            remedy = (
                f"no fold of {SPLITS_FILE} validates {name_some(never, 3)}, so the folds must be made to cover all "
                "labeled cases (nnunet_dhc split), or train 3d_fullres instead"
            )
        else:
            remedy = f"train {stage} in fold {', '.join(map(str, folds))} first, with its final validation"
    raise UserError(
        f"the cascade's second stage lacks the predictions of {stage} for {len(missing)} of {len(needed)} labeled "
        f"cases ({name_some(missing, 3)}) in {folder}: {remedy}"
    )


def note_on_labels(cases: FoldCases) -> list[str]:
    """What must be known of a cascade's second stage where a split treats labeled cases as unlabeled."""
    if not cases.unlabeled:
        return []
    return [
        "the first-stage predictions of this fold's labeled cases come from the folds that validate them, which may "
        "have learned from labels of cases that are unlabeled here: fair against a stock cascade of the same split, "
        "but not a result of this fold's labels alone"
    ]


def predict_unlabeled(trainer: nnUNetTrainer, cases: FoldCases, pool: UnlabeledPool, num_processes: int) -> str:
    """Bring the first-stage predictions of the unlabeled cases up to date.

    Each is written atomically and remembered with what it was made from, so that a stopped run goes on and a changed
    checkpoint or scan is predicted again.

    Args:
        trainer: The trainer of the second stage.
        pool: Its unlabeled cases, preprocessed for the second stage.
        num_processes: For preprocessing them for the first stage, where that is still to do.

    Returns:
        The folder of the predictions, for ``UnlabeledDataset``.

    Raises:
        UserError: The same fold of the first stage is not trained.
    """
    configuration = trainer.configuration_name
    stage = trainer.configuration_manager.previous_stage_name
    model = Path(trainer.folder_with_segs_from_previous_stage).parents[1]
    fold_folder = model / f"fold_{trainer.fold}"
    if not (fold_folder / CHECKPOINT).is_file():
        raise UserError(
            f"{fold_folder} has no {CHECKPOINT}: the cascade's second stage needs {stage} of fold {trainer.fold}, "
            "which predicts its unlabeled cases; train it first"
        )
    first = bring_store_up_to_date(
        trainer.plans_manager.plans, stage, trainer.dataset_json, cases, num_processes, say=trainer.print_to_log_file
    )
    folder = fold_folder / FOLDER / configuration
    stages = Stages(first, pool, file_hash(fold_folder / CHECKPOINT))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder, trainer.print_to_log_file):
            _predict(trainer, model, folder, stages)
    except OSError as error:
        raise UserError(
            f"{folder} can't be written to ({error.strerror or error}); predictions made so far are kept"
        ) from error
    return str(folder)


@dataclass
class Stages:
    """The preprocessed unlabeled cases of both stages, and what predicts the first."""

    first: UnlabeledPool
    second: UnlabeledPool
    checkpoint_hash: str

    def __post_init__(self) -> None:
        self._entries = [UnlabeledStore(pool.folder).entries for pool in (self.first, self.second)]
        absent = sorted(set(self.second.identifiers) - set(self.first.identifiers))
        if absent:
            raise UserError(
                f"{name_some(absent)} is preprocessed for the second stage of the cascade but not for the first: run "
                "nnunet_dhc preprocess for both"
            )

    def made_from(self, identifier: str) -> str:
        """Identifies the image, both preprocessings and the checkpoint."""
        entries: list[StoreEntry] = [entries[identifier] for entries in self._entries]
        facts = [self.checkpoint_hash, *[(entry.voxels, entry.preprocessing, entry.shape) for entry in entries]]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def target_shape(self, identifier: str) -> list[int]:
        return list(self._entries[1][identifier].shape[1:])


def _predict(trainer: nnUNetTrainer, model: Path, folder: Path, stages: Stages) -> None:
    from tqdm import tqdm

    remove_temporary_files(folder)
    known = _read_manifest(folder / MANIFEST)
    there = set(os.listdir(folder))
    todo = [
        case
        for case in stages.second.identifiers
        if known.get(case) != stages.made_from(case) or case_files(case)["image"] not in there
    ]
    if not todo:
        return
    what = counted(len(todo), "unlabeled case")
    trainer.print_to_log_file(f"Predicting {what} with {model.name} for this stage, into {folder}")
    predictor = trained_predictor(model, (trainer.fold,), CHECKPOINT, trainer.device)
    for case in tqdm(todo, desc="First stage of unlabeled cases", disable=trainer.local_rank != 0):
        image, properties = read_case(stages.first.folder, case)
        partial = temporary_path(folder, ".b2nd")
        predict_for_next_stage(predictor, image, properties, stages.target_shape(case), partial)
        os.replace(partial, folder / case_files(case)["image"])
        sync_folder(folder)
        with open(folder / MANIFEST, "a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([case, stages.made_from(case)]))  # first the end of a line that a kill tore


def predict_for_next_stage(
    predictor: nnUNetPredictor,
    image: np.ndarray,
    properties: Mapping[str, Any],
    target_shape: Sequence[int],
    output: Path,
) -> None:
    """Predict a case of the first stage and store its segmentation at the second stage's size, as nnU-Net does.

    Args:
        image: Preprocessed for the first stage, shape (c, x, y, z), float32.
        properties: Of preprocessing.
        target_shape: Size of the case in the second stage, (x, y, z).
        output: A file ending with ``.b2nd``.
    """
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(np.ascontiguousarray(image))).cpu()
    resample_and_save(
        logits,
        list(target_shape),
        str(output.with_suffix("")),
        predictor.plans_manager,
        predictor.configuration_manager,
        dict(properties),
        predictor.dataset_json,
        torch.get_num_threads(),
        nnUNetDatasetBlosc2,
    )


def _read_manifest(path: Path) -> dict[str, str]:
    """What each prediction was made from; a torn last line is left out."""
    known = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                identifier, made_from = json.loads(line)
            except ValueError:
                continue
            known[identifier] = made_from
    return known


def _validating_folds(base: Path, cases: Sequence[str]) -> tuple[list[int], list[str]]:
    """Folds that validate some of the cases, and the cases that none validates."""
    folds = json.loads((base / SPLITS_FILE).read_text(encoding="utf-8"))
    needed = [number for number, fold in enumerate(folds) if set(fold["val"]) & set(cases)]
    validated = {case for fold in folds for case in fold["val"]}
    return needed, [case for case in cases if case not in validated]


@contextmanager
def _lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let one process (or rank) predict and the others wait."""
    waiting = f"Another process is predicting unlabeled cases into {folder}; waiting for it."
    with released_at_end(awaited_lock(folder / _LOCK, say, waiting)):
        yield
