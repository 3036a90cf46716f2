# SPDX-License-Identifier: Apache-2.0
"""Plans for a small network under an identifier of their own: training on a CPU within minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_json
from nnunet_dhc.nnunet.host.dataset_places import read_plans


def write_small_plans(
    preprocessed_dataset_folder: str | Path,
    configuration: str,
    patch_size: Sequence[int],
    features_per_stage: Sequence[int],
    plans_identifier: str = "nnUNetPlans",
    new_identifier: str = "nnUNetPlansSmall",
    convolutions_per_stage: int = 1,
    batch_size: int = 2,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Copy plans to another identifier with a smaller patch and network for one configuration.

    Spacing, normalization and the preprocessed data stay those of the plans copied, so nothing is preprocessed again.

    Args:
        preprocessed_dataset_folder: ``nnUNet_preprocessed/DatasetXXX_Y``.
        configuration: For example "3d_fullres"; the other configurations are left out of the new plans.
        patch_size: Wanted patch size in voxels; axes are cut to the median image and made divisible.
        features_per_stage: Feature maps of each resolution; their number limits the stages.
        settings: Goes to ``plans["nnunet_dhc"]``.

    Returns:
        Path of the new plans file.
    """
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    folder = Path(preprocessed_dataset_folder)
    plans = read_plans(folder, plans_identifier)
    if configuration not in plans["configurations"] or "architecture" not in plans["configurations"][configuration]:
        raise UserError(f"{folder / plans_identifier}.json has no plan of its own for {configuration}")
    small = deepcopy(plans["configurations"][configuration])
    wanted = np.minimum(patch_size, np.ceil(small["median_image_size_in_voxels"])).astype(int)
    _, strides, kernel_sizes, patch, _ = get_pool_and_conv_props(
        small["spacing"], list(wanted), 4, len(features_per_stage) - 1
    )
    stages = len(strides)
    if stages < 3:
        # nnU-Net gives the lowest output of deep supervision the weight 0; with a single output nothing is left.
        raise UserError(f"a patch of {list(map(int, patch))} with {len(features_per_stage)} numbers of features makes "
                        f"a network of {stages} resolutions, and nnU-Net needs 3: choose a larger patch, or 3 numbers")
    small["patch_size"] = [int(n) for n in patch]
    small["batch_size"] = int(batch_size)
    small["architecture"]["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=[int(n) for n in features_per_stage[:stages]],
        kernel_sizes=[[int(n) for n in kernel] for kernel in kernel_sizes],
        strides=[[int(n) for n in stride] for stride in strides],
        n_conv_per_stage=[convolutions_per_stage] * stages,
        n_conv_per_stage_decoder=[convolutions_per_stage] * (stages - 1),
    )
    plans["plans_name"] = new_identifier
    plans["configurations"] = {configuration: small}
    if settings:
        plans["nnunet_dhc"] = {**plans.get("nnunet_dhc", {}), **settings}
    target = folder / f"{new_identifier}.json"
    replace_json(target, plans)
    return target
