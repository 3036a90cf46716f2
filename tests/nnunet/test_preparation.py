# SPDX-License-Identifier: Apache-2.0
"""What a resumed run is told of its cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
from nnunet_dhc.nnunet.training.preparation import TrainingData


def test_a_run_is_told_that_its_labeled_or_validation_cases_have_changed():
    data = TrainingData(FoldCases(("a", "b"), ("c",)), None, np.zeros(2), ())
    assert data.changes_since(data.fingerprint) is None
    for cases in (FoldCases(("a",), ("c",)), FoldCases(("a", "b"), ("d",))):
        assert "(split)" in (replace(data, cases=cases).changes_since(data.fingerprint) or "")
