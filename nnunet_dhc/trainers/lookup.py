# SPDX-License-Identifier: Apache-2.0
"""From a trainer's name to its class, including the ``_<N>epochs`` form of every name."""

from __future__ import annotations

import re
from importlib import import_module

from nnunet_dhc.trainers.table import METHODS

_WITH_EPOCHS = re.compile(r"(?P<base>\w+?)_(?P<epochs>[1-9]\d*)epoch(?P<plural>s?)")


def split_name(name: str) -> tuple[str, int | None]:
    """Trainer name without its epoch suffix, and the number of epochs (None without suffix).

    Spelled as nnU-Net spells its own: ``_1epoch``, ``_5epochs``.
    """
    match = _WITH_EPOCHS.fullmatch(name)
    if match and (match["epochs"] == "1") == (match["plural"] == ""):
        return match["base"], int(match["epochs"])
    return name, None


def is_trainer_name(name: str) -> bool:
    """Whether this package has a trainer of that name."""
    return split_name(name)[0] in METHODS


def trainer_class(name: str) -> type:
    """Class of a trainer name of the method table, with or without epoch suffix.

    Raises:
        AttributeError: The name is not one of ours.
    """
    base, epochs = split_name(name)
    if base not in METHODS:
        raise AttributeError(f"nnunet_dhc has no trainer {name}")
    if epochs is None:
        return getattr(import_module(METHODS[base].module), base)
    return getattr(import_module("nnunet_dhc.trainers.with_epochs"), name)
