# SPDX-License-Identifier: Apache-2.0
"""nnU-Net's predictor, as its final validation makes it."""

from __future__ import annotations

import contextlib
import io
import os

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def trained_predictor(
    model: str | os.PathLike, fold: int | str, checkpoint_name: str, device: torch.device
) -> nnUNetPredictor:
    """nnU-Net's predictor with the weights of one fold, without what it prints while it looks for the trainer."""
    predictor = new_predictor(device)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.initialize_from_trained_model_folder(os.fspath(model), (fold,), checkpoint_name)
    return predictor


def new_predictor(device: torch.device) -> nnUNetPredictor:
    """nnU-Net's predictor as its final validation makes it, without what it prints on the CPU."""
    with contextlib.redirect_stdout(io.StringIO()):
        return nnUNetPredictor(perform_everything_on_device=True, device=device, allow_tqdm=False)
