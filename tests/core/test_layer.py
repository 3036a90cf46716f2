# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nnunet_dhc.core

IMPORT_ALL = """
import importlib, pkgutil, sys
import nnunet_dhc.core as core
for module in pkgutil.iter_modules(core.__path__):
    importlib.import_module("nnunet_dhc.core." + module.name)
foreign = {"nnunetv2", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures"} & set(sys.modules)
ours = {name for name in sys.modules if name.startswith("nnunet_dhc.")}
ours = {name for name in ours if not name.startswith(("nnunet_dhc.core", "nnunet_dhc.errors", "nnunet_dhc._autoload"))}
assert not foreign and not ours, (foreign, ours)
"""


def test_core_stands_alone() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True)


def test_all_weightings_are_exported() -> None:
    assert set(nnunet_dhc.core.__all__) >= {"DistDW", "DiffDW", "CReST", "SimiS", "CLD", "Unweighted"}


def test_files_stay_short() -> None:
    folder = Path(nnunet_dhc.core.__file__).parent
    assert {f.name: n for f in folder.glob("*.py") if (n := len(f.read_text().splitlines())) > 400} == {}
