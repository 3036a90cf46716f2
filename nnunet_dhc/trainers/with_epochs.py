# SPDX-License-Identifier: Apache-2.0
"""Trainers with a fixed number of epochs in their name, made on demand and kept importable and picklable here."""

from __future__ import annotations

from nnunet_dhc.trainers.lookup import split_name, trainer_class


def __getattr__(name: str) -> type:
    base_name, epochs = split_name(name)
    if epochs is None:
        raise AttributeError(name)
    base = trainer_class(base_name)

    made = type(name, (base,), {"epochs_of_name": epochs, "__module__": __name__, "__doc__": base.__doc__})
    globals()[name] = made
    return made
