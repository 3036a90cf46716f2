# SPDX-License-Identifier: Apache-2.0
"""What ``nnunet_dhc doctor`` finds out about an installation."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

import nnunet_dhc
from nnunet_dhc._autoload import shim_folder
from nnunet_dhc.errors import UserError

PATH_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_PROBE_TRAINER = "nnUNetTrainerDHC"
_PROBE = (
    "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
    f"print('FOUND', find('{_PROBE_TRAINER}').__module__)"
)
_LITTLE_DISK_GB, _LITTLE_SHARED_MEMORY_GB = 20, 1


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: ``status`` is ok, note (to know) or broken (must be mended)."""

    status: str
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}[self.status]
        return f"{mark}  {self.subject}: {self.text}" + (f"\n        -> {self.remedy}" if self.remedy else "")


def check_installation() -> list[Finding]:
    """Everything that does not depend on a dataset. Slow parts (torch, the lookup in a fresh process) take seconds."""
    # Importing torch calls our hook, which sets the variable: what the user has set is read before.
    environment = dict(os.environ)
    checks: list[Callable[[], list[Finding]]] = [
        check_python,
        check_package,
        check_torch,
        check_nnunet,
        check_paths,
        lambda: check_external_trainers(environment),
        lambda: check_lookup(environment),
        check_space,
    ]
    return [finding for check in checks for finding in check()]


def check_python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [Finding("ok", "python", f"{version} in {sys.prefix}")]


def check_package() -> list[Finding]:
    """Version, place, a second copy, an editable install whose checkout has moved, and the entry point."""
    here = Path(nnunet_dhc.__file__).resolve().parent
    findings = [Finding("ok", "nnunet_dhc", f"{nnunet_dhc.__version__} in {here}")]
    installed = list(metadata.distributions(name="nnunet_dhc"))
    if not installed:
        return [*findings, Finding("broken", "nnunet_dhc", "runs from a folder, but is not installed",
                                   "pip install . (without it nnU-Net does not find the trainers)")]
    if len({distribution.version for distribution in installed}) > 1:
        versions = ", ".join(sorted(distribution.version for distribution in installed))
        findings.append(Finding("broken", "nnunet_dhc", f"is installed several times ({versions})",
                                "pip uninstall nnunet_dhc until nothing is left, then install once"))
    checkout = _editable_checkout(installed[0])
    if checkout is not None and not here.is_relative_to(checkout.resolve()):
        state = "is gone" if not checkout.exists() else "is another one"
        findings.append(Finding("broken", "nnunet_dhc", f"is installed from {checkout}, which {state}",
                                f"pip install -e {here.parent}"))
    points = [p for p in metadata.entry_points(group="torch.backends") if p.value.startswith("nnunet_dhc")]
    if not points:
        findings.append(Finding("broken", "entry point", "torch.backends has none of nnunet_dhc",
                                "pip install . again (or use nnunet_dhc env)"))
    return findings


def _editable_checkout(distribution: metadata.Distribution) -> Path | None:
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return None
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(origin["url"]).path))


def notes_on_torch() -> list[Finding]:
    """A version of torch that is not supported, or known to be slow; a training begins with these."""
    import torch

    return [finding for finding in _torch_versions(torch.__version__) if finding.status != "ok"]


def require_supported_nnunet() -> None:
    """Refuse another nnU-Net than the one whose methods are overridden here, before a training writes anything.

    A checkout that somebody works on (``pip install -e``) tells the version of the day on which it was installed, so it
    is not judged by that; `check_nnunet` names it.

    Raises:
        UserError: Names the version that is installed and the command that installs a supported one.
    """
    try:
        installed = metadata.distribution("nnunetv2")
    except metadata.PackageNotFoundError:  # it runs from a folder
        return
    found = _version_finding("nnunetv2", installed.version, "nnunetv2")
    if found.status == "broken" and _editable_checkout(installed) is None:
        raise UserError(f"{found.subject} {found.text}: {found.remedy}")


def _torch_versions(version: str) -> list[Finding]:
    findings = [_version_finding("torch", version, "torch")]
    if version.startswith("2.9."):
        findings.append(Finding("note", "torch", "2.9 runs 3D convolutions under AMP about 4 times slower",
                                'pip install "torch>=2.10", or for CUDA the one of your system (pytorch.org)'))
    return findings


def check_torch() -> list[Finding]:
    """Version and device."""
    try:
        import torch
    except Exception as error:  # a broken build fails in many ways, and the doctor must go on
        remedy = "install torch for your system: pytorch.org"
        return [Finding("broken", "torch", f"can't be imported ({error})", remedy)]
    findings = _torch_versions(torch.__version__)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            findings.append(Finding("ok", f"device cuda:{index}", f"{properties.name}, {memory:.0f} GiB"))
    elif torch.backends.mps.is_available():
        findings.append(Finding("note", "device", "mps; use -device mps"))
    else:
        built = "torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        findings.append(Finding("note", "device", f"cpu only ({built}); use -device cpu and small plans"))
    return findings


def check_nnunet() -> list[Finding]:
    """Version against what this package supports, and whether its commands are those of this environment."""
    try:
        version = metadata.version("nnunetv2")
    except metadata.PackageNotFoundError:
        return [Finding("broken", "nnunetv2", "is not installed", "pip install . brings it")]
    findings = [_version_finding("nnunetv2", version, "nnunetv2")]
    command = shutil.which("nnUNetv2_train")
    ours = Path(sys.executable).parent
    if command is None:
        findings.append(Finding("broken", "nnUNetv2_train", "is not on PATH", f"activate the environment of {ours}"))
    elif Path(command).parent.resolve() != ours.resolve():
        findings.append(Finding("broken", "nnUNetv2_train", f"on PATH is {command}, of another environment than {ours}",
                                "activate the environment that has nnunet_dhc"))
    return findings


def supported_range(requirement: str) -> str:
    """What our metadata requires of a package, for example ``>=2.8,<2.9``; empty where it isn't known."""
    try:
        lines = metadata.requires("nnunet_dhc") or []
    except metadata.PackageNotFoundError:
        return ""
    for line in lines:
        match = re.fullmatch(rf"{re.escape(requirement)}\s*([^\w\s.-][^;]*)?", line.strip())
        if match:
            return (match[1] or "").strip()
    return ""


def _version_finding(subject: str, version: str, requirement: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    wanted = supported_range(requirement)
    if wanted and not SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding("broken", subject, f"{version} is not supported", f'pip install "{requirement}{wanted}"')
    return Finding("ok", subject, version + (f" (supported: {wanted})" if wanted else ""))


def check_paths() -> list[Finding]:
    """nnU-Net's three folders: set, there, writable."""
    findings = []
    for name in PATH_VARIABLES:
        value = os.environ.get(name)
        if not value:
            findings.append(Finding("broken", name, "is not set", f"export {name}=/path/to/a/folder"))
        elif not Path(value).is_dir():
            findings.append(Finding("broken", name, f"{value} does not exist", f"mkdir -p {value}"))
        elif name != "nnUNet_raw" and not _writable(Path(value)):
            findings.append(Finding("broken", name, f"{value} can't be written", "choose a folder of your own"))
        else:
            findings.append(Finding("ok", name, value))
    return findings


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def check_external_trainers(environment: dict[str, str]) -> list[Finding]:
    """The folders of nnUNet_extTrainer, as set before torch was imported."""
    value = environment.get("nnUNet_extTrainer", "")
    folders = [folder for folder in value.split(os.pathsep) if folder.strip()]
    findings = []
    for folder in folders:
        path = Path(folder)
        if path.resolve() == Path(shim_folder()).resolve():
            findings.append(Finding("ok", "nnUNet_extTrainer", f"{folder} (ours)"))
        elif not path.is_dir():
            findings.append(Finding("note", "nnUNet_extTrainer", f"{folder} does not exist", "take it out"))
        elif path.name == "_nnunet_ext":
            findings.append(Finding("broken", "nnUNet_extTrainer", f"{folder} belongs to another copy of nnunet_dhc",
                                    "take it out; it may come from a checkout that was moved"))
        elif (path / "setup.py").is_file():
            text = f"{folder} holds a setup.py, which nnU-Net will import"
            findings.append(Finding("note", "nnUNet_extTrainer", text, "give a folder that holds trainers only"))
        else:
            findings.append(Finding("ok", "nnUNet_extTrainer", f"{folder} (yours)"))
    return findings


def check_lookup(environment: dict[str, str]) -> list[Finding]:
    """Ask nnU-Net for a trainer of ours in a fresh process, as nnUNetv2_train does."""
    process = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True)
    if "FOUND nnunet_dhc." in process.stdout:
        return [Finding("ok", "trainer lookup", f"nnU-Net finds {_PROBE_TRAINER} by itself")]
    last = (process.stderr.strip().splitlines() or ["no message"])[-1]
    if "FOUND" in process.stdout:
        last = f"{process.stdout.strip().splitlines()[-1]} hides ours"
    why = ""
    if environment.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        why = "TORCH_DEVICE_BACKEND_AUTOLOAD=0 switches the automatic lookup off; "
    return [Finding("broken", "trainer lookup", f"nnU-Net does not find {_PROBE_TRAINER} ({last})",
                    why + 'run eval "$(nnunet_dhc env)", or use nnunet_dhc train and nnunet_dhc predict')]


def check_space() -> list[Finding]:
    """Free disk space of the folders that are written, and shared memory for the workers."""
    findings = []
    for name in PATH_VARIABLES[1:]:
        folder = os.environ.get(name)
        if folder and Path(folder).is_dir():
            free = shutil.disk_usage(folder).free / 1e9
            status = "note" if free < _LITTLE_DISK_GB else "ok"
            findings.append(Finding(status, f"disk of {name}", f"{free:.0f} GB free"))
    if Path("/dev/shm").is_dir():
        size = shutil.disk_usage("/dev/shm").free / 1e9
        if size < _LITTLE_SHARED_MEMORY_GB:
            findings.append(Finding("note", "/dev/shm", f"{size:.1f} GB free: data workers may die of it",
                                    "docker run --shm-size=8g, or export nnUNet_n_proc_DA=2"))
        else:
            findings.append(Finding("ok", "/dev/shm", f"{size:.0f} GB free"))
    return findings
