# SPDX-License-Identifier: Apache-2.0
"""Plans whose intensity statistics come from one fold's labeled cases alone.

Stock planning takes the statistics of CT normalization from the foreground of every case in labelsTr, unlabeled and
validation cases of the fold included. Nothing else in the plans comes from labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_dhc.errors import UserError
from nnunet_dhc.nifti_integrity import damage_of_nifti, is_nifti
from nnunet_dhc.nnunet.host.dataset_places import read_plans
from nnunet_dhc.nnunet.host.raw_images import list_training_images
from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
from nnunet_dhc.warning_kinds import SHARED_STATISTICS

STATISTICS_KEY = "nnunet_dhc_statistics_of"
# Normalizations that read nothing of the plans but their own image.
_NEED_NO_STATISTICS = {"ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"}
# Shared by the cases; nnU-Net draws ten times as many, from many more cases as a rule.
_SAMPLES_IN_TOTAL = 10e6


def strict_identifier(plans_identifier: str, fold: int) -> str:
    """Plans identifier of a fold's strict plans."""
    return f"{plans_identifier}StrictFold{fold}"


def needs_statistics(plans: Mapping[str, Any]) -> bool:
    """Whether the normalization of any channel reads intensity statistics from the plans."""
    configurations = plans["configurations"].values()
    return not _NEED_NO_STATISTICS.issuperset(
        scheme for configuration in configurations for scheme in configuration.get("normalization_schemes", ())
    )


def note_on_shared_statistics(plans: Mapping[str, Any], cases: FoldCases) -> str | None:
    """What a reader of the scores should know where stock's plans hold statistics of references not to be seen.

    Args:
        plans: Content of the plans.
        cases: Of the fold; matters only where the split file counts labeled cases as unlabeled.
    """
    made_from = plans.get(STATISTICS_KEY)
    is_strict = made_from is not None and set(made_from) <= set(cases.labeled)
    if not cases.unlabeled or is_strict or not needs_statistics(plans):
        return None
    source = "all cases of labelsTr" if made_from is None else "the labeled cases of another fold or split"
    return (
        f"{SHARED_STATISTICS}: the intensity statistics of {plans['plans_name']} come from {source}, also from some "
        "that count as unlabeled or for validation in this fold, and are the same for stock nnU-Net; nnunet_dhc split "
        "--strict plans without them."
    )


def strict_plans(
    raw_dataset_folder: Path,
    preprocessed_dataset_folder: Path,
    plans_identifier: str,
    fold: int,
    labeled: Sequence[str],
    label_files: Mapping[str, Path],
) -> dict[str, Any] | None:
    """Plans under another identifier, with statistics of the labeled cases only; nothing is written.

    Returns:
        Their content, or None where no channel's normalization uses such statistics.

    Raises:
        UserError: The plans or an image are missing.
    """
    plans = read_plans(preprocessed_dataset_folder, plans_identifier)
    if not needs_statistics(plans):
        return None
    dataset_json = json.loads((raw_dataset_folder / "dataset.json").read_text(encoding="utf-8"))
    images = list_training_images(raw_dataset_folder, dataset_json, labeled)
    gone = [case for case in labeled if case not in images]
    if gone:
        folder = raw_dataset_folder / "imagesTr"
        raise UserError(f"no image of {gone[0]} in {folder}: --strict reads the labeled images")
    files = [(list(images[case].files), str(label_files[case])) for case in labeled]
    identifier = strict_identifier(plans_identifier, fold)
    plans["plans_name"] = identifier
    plans[STATISTICS_KEY] = sorted(labeled)
    plans["foreground_intensity_properties_per_channel"] = _statistics(files, dataset_json)
    for name, plan in plans["configurations"].items():
        if "data_identifier" in plan:
            plan["data_identifier"] = f"{identifier}_{name}"
    return plans


def _statistics(files: Sequence[tuple[list[str], str]], dataset_json: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Intensity statistics per channel, from nnU-Net's own sampling of the foreground."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from tqdm import tqdm

    samples = int(_SAMPLES_IN_TOTAL // len(files))
    reader, per_case = None, []
    for images, label in tqdm(files, desc="Statistics of the labeled cases", unit="case"):
        for path in (*images, label):
            if is_nifti(path) and (damage := damage_of_nifti(path, must_be_finite=False)):
                raise UserError(f"{path} {damage}: repair it")
        try:
            reader = reader or determine_reader_writer_from_dataset_json(dataset_json, images[0], verbose=False)
            per_case.append(DatasetFingerprintExtractor.analyze_case(images, label, reader, samples)[2])
        except Exception as error:  # each reader has errors of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise UserError(f"{images[0]} or its label {label} can't be read ({reason}): repair them") from error
    result = {}
    for channel in range(len(per_case[0])):
        values = np.concatenate([np.asarray(case[channel], dtype=np.float64) for case in per_case])
        if not len(values):
            raise UserError("the labeled cases of this fold have no foreground: --strict can't make statistics of them")
        low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
        result[str(channel)] = {
            "max": float(values.max()),
            "mean": float(values.mean()),
            "median": float(median),
            "min": float(values.min()),
            "percentile_00_5": float(low),
            "percentile_99_5": float(high),
            "std": float(values.std()),
        }
    return result
