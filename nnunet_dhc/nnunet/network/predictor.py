# SPDX-License-Identifier: Apache-2.0
"""nnU-Net's predictor, as its final validation makes it."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Sequence

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_dhc.errors import UserError, first_line
from nnunet_dhc.nnunet.network.cotrained_pair import CoTrainedPair, unwrapped


def trained_predictor(
    model: str | os.PathLike, folds: Sequence[int | str], checkpoint_name: str, device: torch.device
) -> nnUNetPredictor:
    """nnU-Net's predictor with the weights of some folds, without what it prints while it looks for the trainer.

    Raises:
        UserError: A checkpoint can't be loaded.
    """
    predictor = new_predictor(device)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            predictor.initialize_from_trained_model_folder(os.fspath(model), tuple(folds), checkpoint_name)
    except UserError:
        raise
    except (RuntimeError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = first_line(error, type(error).__name__)
        raise UserError(
            f"{model} has a {checkpoint_name} of fold {', '.join(map(str, folds))} that can't be loaded ({reason}): "
            "copy it again or train that fold again"
        ) from error
    return predictor


def pair_of(predictor: nnUNetPredictor, model: str | os.PathLike) -> CoTrainedPair:
    """The pair that a predictor predicts with.

    Raises:
        UserError: It predicts with another network.
    """
    network = unwrapped(predictor.network)
    if not isinstance(network, CoTrainedPair):
        raise UserError(
            f"{model} holds no pair of sub-networks: choose -tr of nnunet_dhc (nnunet_dhc methods lists them)"
        )
    return network


def new_predictor(device: torch.device) -> nnUNetPredictor:
    """nnU-Net's predictor as its final validation makes it, without what it prints on the CPU."""
    with contextlib.redirect_stdout(io.StringIO()):
        return nnUNetPredictor(perform_everything_on_device=True, device=device, allow_tqdm=False)
