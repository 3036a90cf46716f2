# SPDX-License-Identifier: Apache-2.0
"""Labeled cases that were preprocessed with another spacing than the plans have now."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.splits.fold_cases import name_some
from nnunet_dhc.nnunet.splits.preprocessed_cases import PreprocessedCase

_ROUNDING = 1  # voxels; other versions of nnU-Net may round otherwise


def refuse_stale_cases(
    folder: str | Path, cases: Mapping[str, PreprocessedCase], plans_manager: Any, configuration: str
) -> None:
    """Raise if a preprocessed case doesn't have the shape that its plans would give it now.

    Unlabeled cases are made anew when plans change, labeled ones by nnU-Net's command alone, so both would be mixed.
    Only what nnU-Net's own preprocessor and resampling have made can be told.

    Args:
        folder: nnU-Net's folder of preprocessed cases.
        cases: Labeled and validation cases by identifier.
        plans_manager: nnU-Net's ``PlansManager``.
        configuration: For example "3d_fullres".
    """
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    manager = plans_manager.get_configuration(configuration)
    resampling = str(manager.configuration.get("resampling_fn_data", ""))
    if manager.preprocessor_class is not DefaultPreprocessor or not resampling.startswith("resample_"):
        return
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
    if stale:
        raise UserError(
            f"{name_some(stale)} in {folder} {'was' if len(stale) == 1 else 'were'} preprocessed with another spacing "
            f"than {plans_manager.plans_name} has now, and unlabeled scans would get the new one: run "
            f"nnUNetv2_preprocess -d {shlex.quote(plans_manager.dataset_name)} -plans_name {plans_manager.plans_name} "
            f"-c {configuration}"
        )
