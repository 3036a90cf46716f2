# SPDX-License-Identifier: Apache-2.0
"""nnU-Net finds the trainers by name: in a fresh process with nothing set, in spawned children, from a wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import nnunet_dhc
from nnunet_dhc import _autoload

ROOT = Path(nnunet_dhc.__file__).parents[1]

# Everything that needs nnU-Net imported, in one fresh process.
PROBE = """
import contextlib, multiprocessing, os, pickle, sys
from pathlib import Path
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

if __name__ == "__main__":
    import nnunet_dhc
    from nnunet_dhc.trainers.table import METHODS
    expected = sys.argv[1]
    assert Path(nnunet_dhc.__file__).is_relative_to(expected), (nnunet_dhc.__file__, expected)
    names = [name + ending for name in METHODS for ending in ("", "_1epoch", "_5epochs", "_37epochs")]
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        found = {name: find(name) for name in names}
    for name, cls in found.items():
        assert cls.__name__ == name
        assert cls.__module__.startswith("nnunet_dhc.trainers."), cls
        assert find(name) is cls
        assert pickle.loads(pickle.dumps(cls)) is cls
        assert sys.modules[cls.__module__].__dict__[name] is cls
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for name in ("nnUNetTrainerDHC", "nnUNetTrainerDHC_5epochs", "nnUNetTrainerCPS_1epoch"):
            assert pool.apply(getattr, (found[name], "__name__")) == name
            assert pool.apply(find, (name,)) is found[name]
    try:
        find("nnUNetTrainerNobody")
    except RuntimeError as error:
        assert "Could not find requested nnunet trainer nnUNetTrainerNobody" in str(error)
    else:
        raise AssertionError("an unknown name was found")
    assert "nnunet_dhc_trainers" not in sys.modules
    print("EXTERNAL", os.environ["nnUNet_extTrainer"])
"""


def _environment(**variables: str) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("nnUNet_extTrainer", "PYTHONPATH")}
    return {**environment, **variables}


def _probe(folder: Path, expected: Path, **variables: str) -> list[str]:
    script = folder / "probe.py"
    script.write_text(PROBE)
    process = subprocess.run([sys.executable, str(script), str(expected)], env=_environment(**variables),
                             capture_output=True, text=True, cwd=folder)
    assert process.returncode == 0, process.stderr
    line = next(line for line in process.stdout.splitlines() if line.startswith("EXTERNAL "))
    return line.removeprefix("EXTERNAL ").split(os.pathsep)


@pytest.mark.slow
def test_every_name_is_found_with_nothing_set(tmp_path):
    assert _probe(tmp_path, ROOT) == [_autoload.shim_folder()]


def test_importing_torch_keeps_the_folders_of_the_user_first(tmp_path):
    code = "import torch, os; print(os.environ['nnUNet_extTrainer'])"
    process = subprocess.run([sys.executable, "-c", code], env=_environment(nnUNet_extTrainer=str(tmp_path)),
                             capture_output=True, text=True, check=True)
    assert process.stdout.strip().split(os.pathsep) == [str(tmp_path), _autoload.shim_folder()]


def test_register_appends_once(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(["/a", "", "/b"]))
    _autoload.register()
    _autoload.register()
    assert os.environ["nnUNet_extTrainer"].split(os.pathsep) == ["/a", "/b", _autoload.shim_folder()]


class _Refuses(dict):
    def get(self, *_):
        raise OSError("no environment")


@pytest.mark.parametrize("odd", ["file", "environment"])
def test_register_never_raises(monkeypatch, odd):
    if odd == "file":
        monkeypatch.setattr(_autoload, "__file__", None)
    else:
        monkeypatch.setattr(_autoload.os, "environ", _Refuses())
    _autoload.register()


def test_shim_folder_holds_one_module():
    # nnU-Net imports whatever lies there.
    assert [path.name for path in Path(_autoload.shim_folder()).glob("*.py")] == ["nnunet_dhc_trainers.py"]


def test_entry_points_load():
    points = metadata.distribution("nnunet_dhc").entry_points
    assert {(point.group, point.name) for point in points} == {
        ("torch.backends", "nnunet_dhc"), ("console_scripts", "nnunet_dhc")}
    for point in points:
        assert callable(point.load())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy, so that nothing is written into the checkout."""
    pytest.importorskip("setuptools", reason="the wheel is built without a network")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "nnunet_dhc", source / "nnunet_dhc", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                    "--wheel-dir", str(folder), str(source)], check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    code = {name for name in names if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)).replace(os.sep, "/") for path in (ROOT / "nnunet_dhc").rglob("*.py")}
    assert expected <= code
    assert all(name.startswith("nnunet_dhc/") for name in code)
    others = {str(path.relative_to(ROOT)).replace(os.sep, "/") for path in (ROOT / "nnunet_dhc").rglob("*")
              if path.is_file() and path.suffix != ".py" and path.parent.name != "__pycache__"}
    assert others == code - expected, "files that the package needs are missing, or strange ones are inside"
    metadata_files = {name.split(".dist-info/")[1] for name in names if ".dist-info/" in name}
    assert {"METADATA", "entry_points.txt", "RECORD"} <= metadata_files
    assert any(name.endswith("LICENSE") for name in metadata_files)


@pytest.mark.slow
def test_every_name_is_found_from_a_wheel(wheel, tmp_path):
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target),
                    str(wheel)], check=True)
    folders = _probe(tmp_path, target, PYTHONPATH=str(target))
    assert folders[0] == str(target / "nnunet_dhc" / "_nnunet_ext")
