# SPDX-License-Identifier: Apache-2.0
"""What makes nnU-Net's own code fast enough to be run whole in a test; for a test, or a fixture of any scope."""

from __future__ import annotations

from multiprocessing.context import SpawnContext
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest


def leave_out_curves(patch: pytest.MonkeyPatch) -> None:
    """The curves are the slowest part of a tiny training; nnU-Net's file of them is there, empty."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    from nnunet_dhc.nnunet.training import run_files

    patch.setattr(LocalLogger, "plot_progress_png", lambda _, folder: Path(folder, "progress.png").touch())
    patch.setattr(run_files, "plot_progress", lambda *_: None)


def threads_for_processes(patch: pytest.MonkeyPatch) -> None:
    """nnU-Net's final validation starts two pools of processes, half a minute of imports: threads do the same."""
    patch.setattr(SpawnContext, "Pool", lambda self, processes=None, *_, **__: ThreadPool(1))


def predict_without_mirroring(patch: pytest.MonkeyPatch) -> None:
    """One pass instead of eight."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predict = nnUNetPredictor._internal_maybe_mirror_and_predict

    def without_mirroring(self, patch_of_image):
        self.use_mirroring = False
        return predict(self, patch_of_image)

    patch.setattr(nnUNetPredictor, "_internal_maybe_mirror_and_predict", without_mirroring)
