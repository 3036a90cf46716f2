# SPDX-License-Identifier: Apache-2.0
"""``dhc_run.json``: what ran, on what, with which versions; and how plans and splits are identified."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nnunet_dhc.nnunet.host.atomic_files import replace_json

FILE_NAME = "dhc_run.json"
_PACKAGES = (
    "nnunet_dhc",
    "nnunetv2",
    "torch",
    "numpy",
    "batchgenerators",
    "batchgeneratorsv2",
    "dynamic_network_architectures",
    "acvl_utils",
    "SimpleITK",
)


def content_hash(content: Any) -> str:
    """Hash of JSON-able content that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def device_name(device: torch.device) -> str:
    """For example ``cuda: NVIDIA H200`` or ``cpu: 16 threads``."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {torch.get_num_threads()} threads"


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of the device on CUDA, of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


class RunRecord:
    """The manifest of a run; later writes add to what stands there (a resumed run keeps its first start).

    Args:
        folder: Output folder of the fold.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.path = Path(folder) / FILE_NAME

    def read(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    @property
    def cases(self) -> dict[str, list[str]]:
        """Labeled, validation and unlabeled cases that the run was last started with; empty without a record."""
        return self.read().get("cases", {})

    @property
    def cases_of_all_starts(self) -> dict[str, list[str]]:
        """The same of all its starts together: a split that changes between them takes no case out of the weights."""
        return self.read().get("cases_of_all_starts", self.cases)

    def update(self, **values: Any) -> None:
        replace_json(self.path, {**self.read(), **values})
