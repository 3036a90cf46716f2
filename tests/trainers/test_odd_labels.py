# SPDX-License-Identifier: Apache-2.0
"""Labels that nnU-Net's own checks look at: another geometry than the image, and no foreground at all."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_data import make_scan, write_image
from tiny_training import FOLD, log_lines, make_trainer

from nnunet_dhc.nnunet.splits.fold_cases import FoldCases
from nnunet_dhc.nnunet.training import preparation
from nnunet_dhc.nnunet.training.preparation import prepare_training_data


@pytest.mark.parametrize(
    ("shape", "spacing", "needle"),
    [((28, 26, 23), (1.0, 1.0, 1.0), "Shape mismatch"), ((28, 26, 24), (2.0, 1.0, 1.0), "Spacing mismatch")],
)
def test_geometry_of_a_label_is_checked_by_nnunet(
    tiny_dataset, no_process_pools, capfd, shape, spacing, needle
):
    """What ``nnUNetv2_plan_and_preprocess --verify_dataset_integrity`` calls; it names the label file."""
    write_image(tiny_dataset.raw / "labelsTr" / "case_1.nii.gz", np.ones(shape, np.uint8), spacing)
    with pytest.raises(RuntimeError, match="Some images have errors"):
        verify_dataset_integrity(str(tiny_dataset.raw), 1)
    out = capfd.readouterr().out
    assert needle in out and "labelsTr/case_1.nii.gz" in out


def test_a_labeled_case_without_foreground_is_trained_on(tiny_dataset):
    segmentation = make_scan(0)[1]
    label = tiny_dataset.raw / "labelsTr" / "case_0.nii.gz"
    before = make_trainer(tiny_dataset, num_epochs=1)
    before.run_training()
    write_image(label, np.zeros_like(segmentation))
    plans = PlansManager(tiny_dataset.plans_content())
    configuration = plans.get_configuration("3d_fullres")
    folder = tiny_dataset.preprocessed / configuration.data_identifier
    for path in folder.glob("case_0*"):
        path.unlink()
    configuration.preprocessor_class(verbose=False).run_case_save(
        str(folder / "case_0"), [str(tiny_dataset.raw / "imagesTr" / "case_0_0000.nii.gz")], str(label), plans,
        configuration, tiny_dataset.dataset_json,
    )
    assert "case_0" in FOLD["train"]
    trainer = make_trainer(tiny_dataset, num_epochs=1)
    trainer.run_training()
    line = log_lines(trainer)[-1]
    assert line["skipped_steps"] == 0 and all(np.isfinite(list(line["losses"].values())))
    lost = np.asarray(before.data.labeled_counts) - np.asarray(trainer.data.labeled_counts)
    np.testing.assert_array_equal(lost[1:], np.bincount(segmentation.ravel(), minlength=4)[1:])
    assert lost.sum() == 0


def test_a_class_that_no_labeled_case_has_is_told(tiny_dataset, monkeypatch):
    monkeypatch.setattr(preparation, "labeled_voxel_counts", lambda *_: np.array([900, 50, 0, 3]))
    data = prepare_training_data(make_trainer(tiny_dataset), FoldCases(("case_0",), ("case_2",)), uses_unlabeled=False)
    assert any("contains class middle: it cannot be learned" in warning for warning in data.warnings)
