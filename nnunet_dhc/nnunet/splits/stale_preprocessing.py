# SPDX-License-Identifier: Apache-2.0
"""Labeled cases that were preprocessed for other plans than those of now."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.preprocessing_hash import preprocessing_hash
from nnunet_dhc.nnunet.splits.preprocessed_cases import PreprocessedCase, preprocessed_cases
from nnunet_dhc.wording import name_some

_ROUNDING = 1  # voxels; other versions of nnU-Net may round otherwise


def current_cases(
    folder: str | Path,
    identifiers: Iterable[str],
    plans_manager: Any,
    configuration: str,
    dataset_json: Mapping[str, Any],
) -> dict[str, PreprocessedCase]:
    """Labeled cases as nnU-Net preprocessed them, each of which is what its plans would make of it now.

    Unlabeled cases are made anew when plans change, labeled ones by nnU-Net's command alone, so both would be mixed.
    nnU-Net doesn't note the plans of a preprocessed case: another spacing shows in its shape, anything else if the
    plans have changed since its file was first read here.

    Args:
        folder: nnU-Net's folder of preprocessed cases.
        identifiers: Labeled and validation cases.
        plans_manager: nnU-Net's ``PlansManager``.
        configuration: For example "3d_fullres".
        dataset_json: nnU-Net's dataset.json.

    Raises:
        UserError: A case is missing, can't be read, or was preprocessed for other plans.
    """
    preprocessing = preprocessing_hash(plans_manager, plans_manager.get_configuration(configuration), dataset_json)
    cases = preprocessed_cases(folder, identifiers, preprocessing=preprocessing)
    stale = preprocessed_otherwise(folder, cases, plans_manager, configuration, preprocessing)
    if stale:
        raise UserError(
            f"{stale} than {plans_manager.plans_name} has now, which unlabeled scans would get: run "
            f"nnUNetv2_preprocess -d {shlex.quote(plans_manager.dataset_name)} -plans_name {plans_manager.plans_name} "
            f"-c {configuration}"
        )
    return cases


def preprocessed_otherwise(
    folder: str | Path,
    cases: Mapping[str, PreprocessedCase],
    plans_manager: Any,
    configuration: str,
    preprocessing: str,
) -> str | None:
    """Beginning of a sentence on cases that are not what these plans would make of them, None if there are none."""
    stale, what = _with_other_shapes(cases, plans_manager, configuration), "another spacing"
    if not stale:
        stale = sorted(name for name, case in cases.items() if case.preprocessing not in (None, preprocessing))
        what = "other settings, as those of normalization,"
    verb = "was" if len(stale) == 1 else "were"
    return f"{name_some(stale)} in {folder} {verb} preprocessed with {what}" if stale else None


def _with_other_shapes(cases: Mapping[str, PreprocessedCase], plans_manager: Any, configuration: str) -> list[str]:
    """Cases whose shape isn't that of the plans' spacing; nnU-Net's own preprocessor and resampling alone are known."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    manager = plans_manager.get_configuration(configuration)
    resampling = str(manager.configuration.get("resampling_fn_data", ""))
    if manager.preprocessor_class is not DefaultPreprocessor or not resampling.startswith("resample_"):
        return []
    stale = []
    for identifier, case in sorted(cases.items()):
        if case.spacing is None or case.shape_before_resampling is None:
            continue
        spacing = [case.spacing[axis] for axis in plans_manager.transpose_forward]
        target = list(manager.spacing)
        target = spacing[: len(spacing) - len(target)] + target  # 2D leaves the spacing between slices
        expected = compute_new_shape(case.shape_before_resampling, spacing, target)
        if any(abs(a - int(b)) > _ROUNDING for a, b in zip(case.shape, expected, strict=True)):
            stale.append(identifier)
    return stale
