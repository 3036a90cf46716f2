# SPDX-License-Identifier: Apache-2.0
"""Rank unlabeled scans by what labeling them would teach a trained pair; each scan is remembered once it is predicted.

``<output>/.cases/`` holds, per scan, ``<case>.json`` (sums over voxels) and ``<case>.npz`` (three small slices).
Both are replaced in one step, and belong to one checkpoint and one preprocessed scan, so that a killed run goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import Timeout
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
from tqdm import tqdm

from nnunet_dhc.core.annotation_value import (
    PairCounts,
    annotation_order,
    case_scores,
    class_values,
    count_pair,
    feature_vectors,
)
from nnunet_dhc.core.votes import combined_logits
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import remove_temporary_files, replace_file, replace_json
from nnunet_dhc.nnunet.host.file_locks import held_lock, released_at_end
from nnunet_dhc.nnunet.network.model_folder import ModelFolder, file_hash, find_model_folder
from nnunet_dhc.nnunet.network.predictor import pair_of, trained_predictor
from nnunet_dhc.nnunet.ranking.rank_planes import disagreement_planes, oriented
from nnunet_dhc.nnunet.ranking.rank_sources import CaseSource, FolderCases, LeftOut, StoreCases
from nnunet_dhc.nnunet.unlabeled.case_preprocessing import is_2d_dataset
from nnunet_dhc.nnunet.unlabeled.unlabeled_store import file_stem

CASE_FOLDER = ".cases"
_LOCK = ".ranking.lock"
CASE_FORMAT = 3  # raise it when a record is made differently


@dataclass(frozen=True)
class RankRequest:
    """What to rank, and with what.

    Attributes:
        images: Folder of scans; None ranks the dataset's own unlabeled cases.
        budget: How many scans can be labeled next.
        diversity: 0 (by score alone) to 1 (farthest-point sampling alone).
        mirroring: nnU-Net's test-time augmentation; without it, a 3D scan takes an eighth of the time.
    """

    dataset: str | int
    configuration: str
    folds: Sequence[int | str]
    trainer: str = "nnUNetTrainerDHC"
    plans_identifier: str = "nnUNetPlans"
    checkpoint_name: str = "checkpoint_final.pth"
    images: Path | None = None
    budget: int = 10
    diversity: float = 0.5
    mirroring: bool = True


class PairPredictor:
    """Sliding-window logits of A and of B by nnU-Net's own predictor, averaged over folds.

    Raises:
        UserError: A checkpoint is missing, holds no pair, or needs the predictions of another stage.
    """

    def __init__(
        self, model: ModelFolder, folds: Sequence[int | str], checkpoint_name: str, device: torch.device,
        mirroring: bool = True,
    ) -> None:
        model.require_checkpoints(folds, checkpoint_name)
        self.plans_manager, self.configuration_manager = model.managers()
        if self.configuration_manager.previous_stage_name is not None:
            raise UserError(
                f"{model.configuration} is the second stage of a cascade, which needs the first stage's predictions of "
                "every scan: rank with 3d_fullres or with the first stage (-c)"
            )
        self.predictor = trained_predictor(model.path, folds, checkpoint_name, device)
        self.predictor.use_mirroring = self.predictor.use_mirroring and mirroring
        self.pair = pair_of(self.predictor, model.path)
        self.label_manager = self.plans_manager.get_label_manager(model.dataset_json)
        self.votes = mean_votes(self.predictor.list_of_parameters)

    def logits(self, image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of A and of B, shape (k, *spatial) each, on the CPU; each patch goes through each network once."""
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        found = []
        for output in ("a", "b"):
            with self.pair.giving(output):
                found.append(self.predictor.predict_logits_from_preprocessed_data(tensor))
        return found[0], found[1]

    def combined(self, logits: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """What the pair of one fold says, from what `logits` gave; float32."""
        a, b = (of_network[None].float() for of_network in logits)
        return combined_logits(a, b, self.votes)[0]

    def label_maps(self, logits: tuple[torch.Tensor, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Label maps of A and of B; what one abstains from is the other one's in both."""
        if self.votes is None:
            return self.label_map(logits[0]), self.label_map(logits[1])
        decides_a, decides_b = (self.votes[:, 1:] == 1).numpy()
        if self.label_manager.has_regions:
            a, b = (of_network.clone() for of_network in logits)
            a[decides_b], b[decides_a] = logits[1][decides_b], logits[0][decides_a]
            return self.label_map(a), self.label_map(b)
        a, b = (self.label_map(of_network) for of_network in logits)
        for decides, own, other in ((decides_a, a, b), (decides_b, b, a)):
            labels = np.flatnonzero(decides) + 1
            here = np.isin(own, labels) | np.isin(other, labels)
            other[here] = own[here]
        return a, b

    def label_map(self, logits: torch.Tensor) -> np.ndarray:
        """nnU-Net's label map of some logits."""
        if not self.label_manager.has_regions:
            return logits.argmax(0).numpy().astype(np.uint16)
        return np.asarray(self.label_manager.convert_logits_to_segmentation(logits.float())).astype(np.uint16)

    def spacing(self, properties: dict[str, Any]) -> list[float]:
        """Spacing of preprocessed voxels, in mm; a 2D configuration keeps the scan's own distance of slices.

        Pixels of a picture count as 1 mm: nnU-Net has 999 there for the distance of slices.
        """
        target = [float(value) for value in self.configuration_manager.spacing]
        if len(target) == 3:
            return target
        if is_2d_dataset(self.plans_manager.plans):
            return [1.0, *target]
        return [float(properties["spacing"][self.plans_manager.transpose_forward[0]]), *target]


def rank_cases(
    request: RankRequest,
    output: Path,
    device: torch.device,
    num_processes: int = 1,
    with_pictures: bool = True,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Predict what is not remembered, then order all scans.

    Args:
        output: Folder for the results; only its folder of remembered cases is written here.
        num_processes: For preprocessing the dataset's own unlabeled cases, where that is still to do.

    Returns:
        A JSON-ready ranking for ``nnunet_dhc.reporting.rank_page``.

    Raises:
        UserError: There is no such model, checkpoint or scan, or the output can't be written.
    """
    if not request.folds or len(set(request.folds)) < len(request.folds):
        raise UserError("-f: name each fold once")
    if request.budget < 1:
        raise UserError(f"--budget {request.budget}: at least one scan")
    if not 0.0 <= request.diversity <= 1.0:
        raise UserError(f"--diversity {request.diversity}: between 0 and 1")
    model = find_model_folder(request.dataset, request.trainer, request.plans_identifier, request.configuration)
    predictor = PairPredictor(model, request.folds, request.checkpoint_name, device, request.mirroring)
    source: CaseSource
    if request.images is None:
        source = StoreCases(model, request.folds, num_processes, say)
    else:
        source = FolderCases(model, Path(request.images))
    hashes = [file_hash(model.checkpoint(fold, request.checkpoint_name)) for fold in request.folds]
    try:
        with _only_ranking(output / CASE_FOLDER):
            records = _records(predictor, source, output / CASE_FOLDER, hashes, with_pictures, show_progress)
    except OSError as error:
        raise UserError(
            f"{output} can't be written to ({error.strerror or error}): scans done so far are kept; free space or "
            "choose another -o"
        ) from error
    if not records:
        raise UserError(f"no scan is left to rank: {'; '.join(map(' '.join, source.left_out.items())) or 'none found'}")
    ranking = order_records(records, structures_of(predictor, model), request.diversity, request.budget)
    ranking["model"] = {
        "dataset": model.dataset, "trainer": model.trainer, "plans": model.plans_identifier,
        "configuration": model.configuration, "folds": list(request.folds), "checkpoint": request.checkpoint_name,
        "sha256": hashes, "mirroring": request.mirroring,
    }
    ranking["source"] = source.description
    ranking["left_out"] = [{"case": case, "reason": reason} for case, reason in sorted(source.left_out.items())]
    return ranking


@contextmanager
def _only_ranking(folder: Path) -> Iterator[None]:
    """Hold the folder: another ranking would take away what this one is writing, and put its own in its place.

    Raises:
        UserError: Another ranking holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = held_lock(folder / _LOCK)
    except Timeout:
        raise UserError(
            f"another ranking is writing to {folder.parent}: wait for it, or choose another -o"
        ) from None
    with released_at_end(lock):
        yield


def order_records(
    records: dict[str, dict[str, Any]], structures: list[dict[str, Any]], diversity: float, budget: int
) -> dict[str, Any]:
    """Scores and order of a pool of scans, JSON-ready.

    Args:
        records: What ``case_record`` gave, by identifier.
        structures: ``key`` and ``name`` of each.
    """
    cases = list(records)
    counts = [_counts(record) for record in records.values()]
    disagreement = np.stack([count.disagreement() for count in counts])
    entropy = np.stack([count.mean_entropy() for count in counts])
    volume = np.stack([(count.predicted_a + count.predicted_b) / 2 * record["voxel_ml"]
                       for count, record in zip(counts, records.values(), strict=True)])
    values, found = class_values(disagreement, entropy)
    scores = case_scores(values)
    order, novelty = annotation_order(scores, feature_vectors(1000 * volume, disagreement, entropy), diversity)
    by_score = np.empty(len(cases), dtype=int)
    by_score[np.argsort(-scores, kind="stable")] = np.arange(1, len(cases) + 1)
    every = np.full(disagreement.shape, np.nan)
    every[:, found] = values
    lines = [{
        "rank": rank, "case": cases[row], "chosen": rank <= budget, "score": float(scores[row]),
        "rank_by_score": int(by_score[row]), "novelty": distance,
        "disagreement": _mean(disagreement[row]), "entropy": _mean(entropy[row]),
        "structures": {item["key"]: {
            "disagreement": _number(disagreement[row, column]), "entropy": _number(entropy[row, column]),
            "value": _number(every[row, column]), "volume_ml": float(volume[row, column]),
        } for column, item in enumerate(structures)},
        "planes": records[cases[row]].get("planes", []), "picture_file": records[cases[row]].get("picture_file"),
    } for rank, (row, distance) in enumerate(zip(order, novelty, strict=True), 1)]
    return {
        "cases": [line["case"] for line in lines], "ranking": lines,
        "structures": [{
            **item, "found_in": int((~np.isnan(entropy[:, column])).sum()),
            "of_one_network": bool(counts[0].of_one_network[column]),
            "disagreement": _mean(disagreement[:, column]), "entropy": _mean(entropy[:, column]),
        } for column, item in enumerate(structures)],
        "settings": {"diversity": diversity, "budget": budget},
    }


def structures_of(predictor: PairPredictor, model: ModelFolder) -> list[dict[str, Any]]:
    """Key (nnU-Net's), name and labels of each foreground class or region, in the order of the logits."""
    manager = predictor.label_manager
    names = {tuple(np.atleast_1d(value).tolist()): name for name, value in model.dataset_json["labels"].items()}
    items = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    return [{
        "key": label_or_region_to_key(item),
        "name": names.get(tuple(np.atleast_1d(item).tolist()), str(item)).replace("_", " "),
        "labels": [int(label) for label in np.atleast_1d(item)],
    } for item in items]


def case_record(
    predictor: PairPredictor, logits: tuple[torch.Tensor, torch.Tensor], properties: dict[str, Any]
) -> dict[str, Any]:
    """Sums over the voxels of one scan, JSON-ready."""
    counts = count_pair(*logits, predictor.label_manager.has_regions, predictor.votes)
    return {
        **{item.name: getattr(counts, item.name).tolist() for item in fields(counts)},
        "voxel_ml": float(np.prod(predictor.spacing(properties)) / 1000),
    }


def _records(
    predictor: PairPredictor, source: CaseSource, folder: Path, hashes: list[str], with_pictures: bool,
    show_progress: bool
) -> dict[str, dict[str, Any]]:
    remove_temporary_files(folder)
    records, todo = {}, []
    common = [CASE_FORMAT, hashes, predictor.predictor.use_mirroring]
    for case in source.identifiers:
        identity = hashlib.sha256(json.dumps([*common, source.made_from(case)]).encode()).hexdigest()
        record = _remembered(folder, case, identity, with_pictures)
        if record is None:
            todo.append((case, identity))
        else:
            records[case] = record
    for case, identity in tqdm(todo, desc="A and B on unlabeled scans", disable=not show_progress or not todo):
        try:
            image, properties = source.load(case)
        except LeftOut as reason:
            source.left_out[case] = str(reason)
            continue
        except OSError as error:
            raise UserError(
                f"{case} can't be read ({error.strerror or error}): scans done so far are kept; bring the folder of "
                "the scans back, or take the scan out, and run again"
            ) from error
        logits = predictor.logits(image)
        record = {"made_from": identity, "case": case, **case_record(predictor, logits, properties)}
        if with_pictures:
            record["planes"], content = _pictures(predictor, image, logits, properties)
            record["picture_file"] = f"{CASE_FOLDER}/{file_stem(case)}.npz"
            replace_file(folder / f"{file_stem(case)}.npz", content)
        replace_json(folder / f"{file_stem(case)}.json", record)
        records[case] = record
    return {case: records[case] for case in source.identifiers if case in records}


def _remembered(folder: Path, case: str, identity: str, with_pictures: bool) -> dict[str, Any] | None:
    stem = file_stem(case)
    try:
        record = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("made_from") != identity:
        return None
    if with_pictures and not ("picture_file" in record and (folder / f"{stem}.npz").is_file()):
        return None
    return record


def _pictures(
    predictor: PairPredictor, image: np.ndarray, logits: tuple[torch.Tensor, torch.Tensor], properties: dict[str, Any]
) -> tuple[list[dict[str, Any]], bytes]:
    volumes = [image[0], *predictor.label_maps(logits)]
    turned, spacing = oriented(
        volumes, predictor.spacing(properties), predictor.plans_manager.transpose_backward, properties
    )
    facts, arrays = disagreement_planes(turned[0], turned[1], turned[2], spacing)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return facts, buffer.getvalue()


def _counts(record: dict[str, Any]) -> PairCounts:
    return PairCounts(**{item.name: np.array(record[item.name]) for item in fields(PairCounts)})


def mean_votes(of_folds: Sequence[dict[str, Any]]) -> torch.Tensor | None:
    """Mean of the votes of the pairs of some folds, (2, k); None where nobody abstains."""
    known = [parameters["votes"].cpu() for parameters in of_folds if parameters.get("votes") is not None]
    if not known:
        return None
    half = torch.full_like(known[0], 0.5)
    return torch.stack([*known, *[half] * (len(of_folds) - len(known))]).mean(0)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
