# SPDX-License-Identifier: Apache-2.0
"""Direction of imports: every file is parsed, and what must stay light is imported in a fresh process."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import nnunet_dhc

PACKAGE = Path(nnunet_dhc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# What each layer may import of ours at most; cli may import anything.
ALLOWED = {
    "core": {"core", "errors"},
    "nnunet": {
        "nnunet", "core", "errors", "wording", "disagreement", "nifti_integrity", "warning_kinds", "earlier_recipes",
        "_autoload",
    },
    "trainers": {"trainers", "nnunet", "core", "errors"},
    "reporting": {
        "reporting", "errors", "wording", "disagreement", "nifti_integrity", "warning_kinds", "earlier_recipes",
    },
}
# Rooms of the layer nnunet, from the ground up: each imports from those before it only.
ROOMS = ("host", "splits", "unlabeled", "reliability", "network", "training", "models", "ranking", "health")
HEAVY = {"torch", "nnunetv2"}


def _imports(path: Path, at_import_time: bool = False):
    """(top-level package, our sub-package or None) of every import in a file."""
    for name in _modules(path, at_import_time):
        parts = name.split(".")
        yield parts[0], parts[1] if parts[0] == "nnunet_dhc" and len(parts) > 1 else None


def _modules(path: Path, at_import_time: bool = False):
    """Every module that a file imports, with the names imported from packages of ours that hold modules."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        in_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if typing_only or (at_import_time and in_function):
            skipped.update(id(child) for child in ast.walk(node))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            is_package = node.module in ("nnunet_dhc", "nnunet_dhc.nnunet")
            names = [f"{node.module}.{alias.name}" if is_package else node.module for alias in node.names]
        else:
            continue
        yield from names


def _declared() -> list[str]:
    """What setup.py requires, by name."""
    tree = ast.parse((PACKAGE.parent / "setup.py").read_text(encoding="utf-8"))
    listed = next(node.value for node in ast.walk(tree) if isinstance(node, ast.keyword)
                  and node.arg == "install_requires")
    return [_distribution(requirement) for requirement in ast.literal_eval(listed)]


def _distribution(requirement: str) -> str:
    """The name in a requirement, however it is spelled."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def _layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize(
    "path", [path for path in FILES if _layer(path) in ALLOWED], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_go_downwards(path):
    allowed = ALLOWED[_layer(path)]
    for _, part in _imports(path):
        if part is None or part == "__version__":
            continue
        assert part in allowed, f"{path.relative_to(PACKAGE)} imports nnunet_dhc.{part}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if _layer(path) == "nnunet"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_rooms_are_built_on_each_other(path):
    parts = path.relative_to(PACKAGE / "nnunet").parts
    below = () if len(parts) == 1 else ROOMS[: ROOMS.index(parts[0]) + 1]
    for module in _modules(path):
        if module.startswith("nnunet_dhc.nnunet."):
            room = module.split(".")[2]
            assert room in below, f"{path.relative_to(PACKAGE)} imports {module}, from a room above"


@pytest.mark.parametrize("path", [p for p in FILES if _layer(p) == "core"], ids=lambda path: path.name)
def test_core_never_imports_nnunet(path):
    assert "nnunetv2" not in {package for package, _ in _imports(path)}


@pytest.mark.parametrize(
    "path",
    [PACKAGE / "__init__.py", PACKAGE / "_autoload.py", PACKAGE / "errors.py", PACKAGE / "trainers" / "__init__.py",
     PACKAGE / "trainers" / "table.py", PACKAGE / "trainers" / "lookup.py"],
    ids=lambda path: path.name,
)
def test_what_runs_inside_import_torch_is_standard_library(path):
    for package, _ in _imports(path, at_import_time=True):
        assert package == "nnunet_dhc" or package in sys.stdlib_module_names


@pytest.mark.parametrize("path", [p for p in FILES if _layer(p) in ("cli", "reporting")],
                         ids=lambda path: str(path.relative_to(PACKAGE)))
def test_command_line_and_reports_import_heavy_packages_lazily(path):
    assert not HEAVY & {package for package, _ in _imports(path, at_import_time=True)}


def test_what_is_imported_is_declared():
    """By this package, or by one that it declares: what others bring by chance may be gone with their next version."""
    declared = _declared()
    brought = [line for name in declared for line in metadata.requires(name) or [] if "extra ==" not in line]
    allowed = {*declared, *map(_distribution, brought)}
    distributions = metadata.packages_distributions()
    for path in FILES:
        for package, _ in _imports(path):
            if package != "nnunet_dhc" and package not in sys.stdlib_module_names:
                names = {_distribution(name) for name in distributions[package]}
                assert names & allowed, f"{path.relative_to(PACKAGE)} imports {package}"


@pytest.mark.parametrize(("statement", "forbidden"), [
    ("from nnunet_dhc.cli.main import build_parser; build_parser()", ["torch", "nnunetv2", "numpy"]),
    ("from nnunet_dhc.cli.main import main; main(['methods'])", ["torch", "nnunetv2"]),
    ("from nnunet_dhc.cli.main import main; main(['env'])", ["torch", "nnunetv2"]),
    ("import nnunet_dhc._autoload, nnunet_dhc.trainers.table", ["torch", "numpy", "argparse"]),
    ("import nnunet_dhc.core", ["nnunetv2"]),
])
def test_fresh_process_stays_light(statement, forbidden):
    code = f"import sys; {statement}; print([m for m in {forbidden!r} if m in sys.modules], file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stderr.strip().splitlines()[-1] == "[]"


def test_reporting_needs_no_torch():
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
               for path in FILES if _layer(path) == "reporting" and path.name != "__init__.py"]
    code = (f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
            "print([m for m in ('torch', 'nnunetv2') if m in sys.modules])")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
