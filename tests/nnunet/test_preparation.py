# SPDX-License-Identifier: Apache-2.0
"""What a resumed run is told of its cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
from nnunet_dhc.nnunet.splits.strict_plans import STATISTICS_KEY, note_on_shared_statistics
from nnunet_dhc.nnunet.training.preparation import TrainingData
from nnunet_dhc.nnunet.unlabeled.unlabeled_preprocessing import UnlabeledPool
from nnunet_dhc.warning_kinds import SHARED_STATISTICS


def test_a_run_is_told_that_its_labeled_or_validation_cases_have_changed():
    data = TrainingData(FoldCases(("a", "b"), ("c",)), None, np.zeros(2), ())
    assert data.changes_since(data.fingerprint, data.by_role) is None
    other_order = replace(data, cases=FoldCases(("b", "a"), ("c",)))
    assert other_order.changes_since(data.fingerprint, data.by_role) is None
    for cases, differences in (
        (FoldCases(("a",), ("c",)), "(labeled now without b)"),
        (FoldCases(("a", "b"), ("d",)), "(validation now with d; validation now without c)"),
    ):
        changed = replace(data, cases=cases)
        assert f"(split) is not what this run started with {differences};" in changed.changes_since(
            data.fingerprint, data.by_role
        )
        assert "started with; it goes on" in changed.changes_since(data.fingerprint, {})  # its record is gone


def test_a_run_is_told_that_an_unlabeled_case_has_another_image():
    pool = UnlabeledPool("folder", ["u"], {}, {}, 1, 0, voxels={"u": "one"})
    data = TrainingData(FoldCases(("a",), ("c",)), pool, np.zeros(2), ())
    replaced = replace(data, pool=replace(pool, voxels={"u": "another"}))
    assert "has another image" in replaced.changes_since(data.fingerprint, data.by_role)
    of_earlier_version = {key: value for key, value in data.fingerprint.items() if "images" not in key}
    assert replaced.changes_since(of_earlier_version, data.by_role) is None


def test_shared_statistics_are_said_where_the_split_file_hides_labels():
    plans = {"plans_name": "nnUNetPlans", "configurations": {"2d": {"normalization_schemes": ["CTNormalization"]}}}
    hides = FoldCases(("a", "d"), ("b",), unlabeled=("c",))
    assert note_on_shared_statistics(plans, hides).startswith(f"{SHARED_STATISTICS}: the intensity")
    assert note_on_shared_statistics(plans, FoldCases(("a",), ("b",))) is None  # imagesUn has no labels
    assert note_on_shared_statistics({**plans, STATISTICS_KEY: ["a"]}, hides) is None
    assert "of another fold or split" in note_on_shared_statistics({**plans, STATISTICS_KEY: ["a", "c"]}, hides)
    own = {"2d": {"normalization_schemes": ["ZScoreNormalization"]}, "other_2d": {"inherits_from": "2d"}}
    assert note_on_shared_statistics({**plans, "configurations": own}, hides) is None
