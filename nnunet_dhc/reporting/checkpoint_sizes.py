# SPDX-License-Identifier: Apache-2.0
"""How many parameters a checkpoint holds, from the sizes in it: without torch, and without running what is in it."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any


def parameter_count(checkpoint: Path) -> int | None:
    """Number of weights of the network in one of nnU-Net's checkpoints; None where that can't be told.

    Weights that two modules share, as nnU-Net's decoder holds the encoder, count once.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            content = _Sizes(io.BytesIO(archive.read(name))).load()
        weights = content["network_weights"]  # "votes" of our pairs are no weights
        tensors = {tensor for name, tensor in weights.items() if isinstance(tensor, _Tensor) and name != "votes"}
    except Exception:  # an unfinished, foreign or older file: the table shows a dash
        return None
    return sum(size for _, size in tensors) or None


class _Tensor(tuple):  # type: ignore[type-arg]
    """Place in the file and number of values."""


class _Ignored:
    """Stands for every object that is no tensor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Ignored:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Sizes(pickle.Unpickler):
    """Loads names and sizes; nothing that the file names is imported or called."""

    def persistent_load(self, pid: Any) -> Any:
        return pid[2]

    def find_class(self, module: str, name: str) -> Any:
        if name == "_rebuild_tensor_v2":
            return lambda storage, offset, size, *_: _Tensor(((storage, offset), math.prod(size)))
        if name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Ignored
