# SPDX-License-Identifier: Apache-2.0
"""What the tests of unlabeled preprocessing share."""

from __future__ import annotations

import json

from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import UnlabeledPool, bring_store_up_to_date

FOLD = FoldCases(labeled=("case_0", "case_1", "case_2", "case_3"), validation=("case_4", "case_5"))
SPLIT_FOLD = FoldCases(labeled=("case_0", "case_1"), validation=("case_2",), unlabeled=("case_3", "case_4"))


def update(dataset, fold=FOLD, *, plans=None, configuration="3d_fullres", num_processes=0, **options) -> UnlabeledPool:
    """``bring_store_up_to_date`` on the tiny dataset, in this process and without a progress bar."""
    return bring_store_up_to_date(
        plans or dataset.plans_content("nnUNetPlans"),
        configuration,
        dataset.dataset_json,
        fold,
        num_processes,
        show_progress=False,
        **options,
    )


def store_folder(dataset, configuration="3d_fullres"):
    return dataset.preprocessed / f"nnUNetPlans_{configuration}_unlabeled"


def manifest_lines(dataset) -> list[dict]:
    text = (store_folder(dataset) / "manifest.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
