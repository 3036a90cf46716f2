# SPDX-License-Identifier: Apache-2.0
"""What a training left behind: read tolerantly, a missing file or key is None and shown as a dash."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_dhc.reporting.checkpoint_sizes import parameter_count

_EPOCH = re.compile(r"Epoch (\d+)\s*$")
_EPOCH_SECONDS = re.compile(r"Epoch time: ([0-9.]+) s")
_CASE_COUNTS = re.compile(r"has (\d+) training and (\d+) validation cases")
_PSEUDO_DICE = re.compile(r"Pseudo dice \[(.*)\]")
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan")


@dataclass
class RunRecord:
    """One fold folder of one training.

    ``began_after_validation``: by nnU-Net's logs, another training began here after the last validation, whose files
    nnU-Net leaves in the folder.
    """

    folder: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    debug: dict[str, Any] = field(default_factory=dict)
    epochs_done: int | None = None
    seconds: float | None = None
    counted_cases: tuple[int, int] | None = None
    finished: bool = False
    parameters: int | None = None
    began_after_validation: bool = False

    @property
    def unlabeled_count(self) -> int | None:
        return case_count(self.manifest, "unlabeled")

    def anonymous(self) -> RunRecord:
        """Without command and warnings, which name folders and cases."""
        return replace(self, manifest={key: value for key, value in self.manifest.items()
                                       if key not in ("command", "warnings")})

    def facts(self) -> dict[str, Any]:
        """What stands in the table of runs."""
        manifest, debug = self.manifest, self.debug
        iterations = _number(manifest.get("iterations_per_epoch")) or _number(debug.get("num_iterations_per_epoch"))
        epochs = self.epochs_done
        labeled = case_count(manifest, "labeled")
        return {
            "epochs": epochs,
            "planned_epochs": _number(manifest.get("num_epochs")) or _number(debug.get("num_epochs")),
            "iterations_per_epoch": iterations,
            "steps": None if epochs is None or iterations is None else epochs * iterations,
            "seconds": manifest.get("seconds_total") or self.seconds,
            "device": _device(manifest.get("device") or debug.get("gpu_name") or debug.get("device")),
            "parameters": manifest.get("parameters") or self.parameters,
            "peak_memory_bytes": manifest.get("peak_memory_bytes"),
            "batch_size": _number(manifest.get("batch_size")) or _number(debug.get("batch_size")),
            "patch_size": manifest.get("patch_size"),
            "mirror_axes": _mirror_axes(debug),
            "seed": manifest.get("seed"),
            "labeled_cases": labeled if labeled is not None else (self.counted_cases or (None,))[0],
            "unlabeled_cases": self.unlabeled_count,
            "plans_hash": manifest.get("plans_hash"),
            "split_hash": manifest.get("split_hash"),
            "recipe": manifest.get("recipe"),
            "command": manifest.get("command"),
            "versions": manifest.get("versions") or _versions(debug),
            "warnings": [str(text) for text in manifest.get("warnings") or []],
            "finished": self.finished,
        }


def read_run(folder: Path) -> RunRecord:
    """Everything that the files of a fold folder tell."""
    record = RunRecord(folder, manifest=json_object(folder / "dhc_run.json"), debug=json_object(folder / "debug.json"),
                       epochs=_json_lines(folder / "dhc_log.jsonl"),
                       finished=(folder / "checkpoint_final.pth").is_file())
    if not record.manifest.get("parameters"):
        found = next((path for name in ("final", "latest", "best")
                      if (path := folder / f"checkpoint_{name}.pth").is_file()), None)
        record.parameters = parameter_count(found) if found else None
    stock = _read_training_logs(folder, record)
    if record.epochs:
        record.epochs_done = record.epochs[-1]["epoch"] + 1
        timed = [epoch_seconds(line) for line in record.epochs]
        if all(value is not None for value in timed):
            record.seconds = float(sum(value for value in timed if value is not None))
    else:
        record.epochs = stock
    return record


def logged_seconds(folder: Path) -> float | None:
    """Seconds that nnU-Net's own logs of a fold give its finished epochs; None without any."""
    record = RunRecord(folder)
    _read_training_logs(folder, record)
    return record.seconds


def training_logs(folder: Path) -> list[Path]:
    """nnU-Net's logs of a fold, oldest first; their names hold the time without leading zeros."""
    return sorted(folder.glob("training_log_*.txt"), key=lambda path: [int(number) for number in
                                                                       re.findall(r"\d+", path.stem)])


def case_list(manifest: dict[str, Any], kind: str) -> list[str] | None:
    """Identifiers of a kind of case, whichever way the manifest lists them."""
    value = _cases(manifest, kind).get(kind)
    if isinstance(value, dict):
        value = next((item for item in value.values() if isinstance(item, list)), None)
    return sorted(str(item) for item in value) if isinstance(value, list) else None


def case_count(manifest: dict[str, Any], kind: str) -> int | None:
    """Number of cases of a kind."""
    cases = _cases(manifest, kind)
    listed = case_list(manifest, kind)
    if listed is not None:
        return len(listed)
    value = cases.get(kind)
    if isinstance(value, dict):
        value = next((item for item in value.values() if isinstance(item, int)), None)
    for candidate in (value, cases.get(f"num_{kind}"), cases.get(f"{kind}_count")):
        if isinstance(candidate, int):
            return candidate
    return None


def _cases(manifest: dict[str, Any], kind: str) -> dict[str, Any]:
    """Where a kind of case is listed: what an earlier start of the run was trained on stays in its weights."""
    of_all_starts, of_last_start = manifest.get("cases_of_all_starts"), manifest.get("cases")
    if kind != "validation" and isinstance(of_all_starts, dict) and kind in of_all_starts:
        return of_all_starts
    return of_last_start if isinstance(of_last_start, dict) else {}


def _read_training_logs(folder: Path, record: RunRecord) -> list[dict[str, Any]]:
    """Epochs and times of nnU-Net's own logs; what a run resumed earlier or started anew has repeated counts once."""
    lines: dict[int, dict[str, Any]] = {}
    epoch: int | None = None
    validated = False
    for path in training_logs(folder):
        for text in path.read_text(errors="replace").splitlines():
            if found := _EPOCH.search(text):
                epoch = int(found[1])
                record.began_after_validation = record.began_after_validation or (validated and epoch == 0)
                lines = {number: line for number, line in lines.items() if number < epoch}
                lines[epoch] = {"epoch": epoch}
            elif "Validation complete" in text:
                validated, record.began_after_validation = True, False
            elif found := _CASE_COUNTS.search(text):
                record.counted_cases = (int(found[1]), int(found[2]))
            elif epoch is None:
                continue
            elif found := _EPOCH_SECONDS.search(text):
                lines[epoch]["seconds"] = {"epoch": float(found[1])}
            elif "train_loss" in text:
                lines[epoch].setdefault("losses", {})["train"] = _last_number(text)
            elif "val_loss" in text:
                lines[epoch].setdefault("losses", {})["validation"] = _last_number(text)
            elif found := _PSEUDO_DICE.search(text):
                lines[epoch]["dice_mean"] = _dice_values(found[1])
    complete = [line for _, line in sorted(lines.items()) if "seconds" in line]
    if complete:
        record.epochs_done = complete[-1]["epoch"] + 1
        record.seconds = sum(line["seconds"]["epoch"] for line in complete)
    return complete


def _dice_values(text: str) -> list[float | None]:
    """Values of a printed list, with or without NumPy's ``np.float32(...)`` around each."""
    numbers = _NUMBER.findall(text.replace("np.float32", "").replace("np.float64", ""))
    return [None if number == "nan" else float(number) for number in numbers]


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text.replace("np.float32", "").replace("np.float64", ""))
    return float(numbers[-1]) if numbers and numbers[-1] != "nan" else None


def epoch_seconds(line: dict[str, Any]) -> float | None:
    """How long an epoch took, from its line of the log."""
    seconds = line.get("seconds")
    value = seconds.get("epoch") if isinstance(seconds, dict) else seconds
    return float(value) if isinstance(value, int | float) else None


def _device(name: Any) -> str | None:
    return re.sub(r"\b1 threads$", "1 thread", str(name)) if name else None


def _mirror_axes(debug: dict[str, Any]) -> str | None:
    """Axes that prediction mirrors, such as "0, 1, 2", or "none"; None where nnU-Net's record doesn't say."""
    if "inference_allowed_mirroring_axes" not in debug:
        return None
    return ", ".join(re.findall(r"\d+", str(debug["inference_allowed_mirroring_axes"]))) or "none"


def _number(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None


def _versions(debug: dict[str, Any]) -> dict[str, str] | None:
    return {"torch": str(debug["torch_version"])} if "torch_version" in debug else None


def json_object(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty where it can't be read or is no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of an epoch only: a running training may be writing the last one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(content, dict) and isinstance(content.get("epoch"), int):
            lines.append(content)
    return lines
