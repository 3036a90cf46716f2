# SPDX-License-Identifier: Apache-2.0
"""Run the real console commands on a copy of the tiny dataset, as a user's shell does: own session, captured output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tiny_data import DATASET_ID, TINY_PLANS, TinyDataset

TRAINER = "nnUNetTrainerDHC"
TIMEOUT_S = 600  # far more than any command needs: a machine may be busy, but a hang must end
TRAIN = (
    "nnUNetv2_train", str(DATASET_ID), "3d_fullres", "0", "-tr", TRAINER, "-p", TINY_PLANS, "-device", "cpu",
)
PREPROCESS = ("nnunet_dhc", "preprocess", "-d", str(DATASET_ID), "-c", "3d_fullres", "-p", TINY_PLANS, "-np", "0")


@dataclass(frozen=True)
class Outcome:
    """What a command left on the screen."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        lines = self.err.replace("\r", "\n").rstrip().splitlines()
        return lines[-1] if lines else ""


class Running:
    """A console command that has been started."""

    def __init__(self, dataset: TinyDataset, command: tuple[str, ...], variables: dict[str, str] | None = None) -> None:
        logs = dataset.root / "console"
        logs.mkdir(exist_ok=True)
        number = len(list(logs.iterdir()))
        self.dataset = dataset
        self._out, self._err = logs / f"{number}.out", logs / f"{number}.err"
        program = Path(sys.executable).parent / command[0]
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                [str(program), *command[1:]],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=environment(dataset, variables or {}),
                start_new_session=True,  # its own process group, as in a terminal
                preexec_fn=_as_in_a_terminal,
            )

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = TIMEOUT_S) -> None:
        """Wait until standard output has this text, or the command has ended."""
        end = time.monotonic() + timeout
        while text not in self.out and self.process.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"no {text!r} within {timeout} s:\n{self.out[-3000:]}\n{self.err[-3000:]}")
            time.sleep(0.05)

    def finish(self, timeout: float = TIMEOUT_S) -> Outcome:
        """Wait for the end; a command that hangs is killed and reported."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"hangs:\n{self.out[-3000:]}\n{self.err[-3000:]}") from None
        return Outcome(code, self.out, self.err)

    def signal(self, number: int, group: bool = False) -> None:
        """Send a signal to the command, or, as a terminal does, to its whole process group."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL for the whole process group."""
        for pid in self.members():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def members(self) -> list[int]:
        """Living processes of its session."""
        found = []
        for entry in os.listdir("/proc"):
            fields = _stat(entry) if entry.isdigit() else None
            if fields and int(fields[3]) == self.process.pid and fields[0] not in "ZX":
                found.append(int(entry))
        return found

    def left_over(self, grace: float = 30.0) -> list[int]:
        """Processes of its session that outlive the command by more than this many seconds.

        Python's resource tracker ends only when it notices that its parent is gone.
        """
        end = time.monotonic() + grace
        while (left := self.members()) and time.monotonic() < end:
            time.sleep(0.05)
        return left

    def workers(self) -> list[int]:
        """Data workers: forked from the command, so that they have its command line."""
        own = _command_line(self.process.pid)
        return [pid for pid in self.members() if pid != self.process.pid and _command_line(pid) == own]

    def spawned(self) -> list[int]:
        """Processes of pools that were started by spawn."""
        return [pid for pid in self.members() if b"spawn_main" in (_command_line(pid) or b"")]


def run(dataset: TinyDataset, command: tuple[str, ...], variables: dict[str, str] | None = None) -> Outcome:
    """Run a command to its end."""
    return Running(dataset, command, variables).finish()


def environment(dataset: TinyDataset, variables: dict[str, str]) -> dict[str, str]:
    """The environment of a user: nnU-Net's three paths, and few threads and processes because it is a test."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("nnUNet_") and name not in ("TORCH_DEVICE_BACKEND_AUTOLOAD", "PYTHONPATH")
    }
    return {
        **inherited,
        "nnUNet_raw": str(dataset.root / "raw"),
        "nnUNet_preprocessed": str(dataset.root / "preprocessed"),
        "nnUNet_results": str(dataset.root / "results"),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **variables,
    }


def configure(dataset: TinyDataset, plans: str = TINY_PLANS, **settings) -> None:
    """Put settings into the tiny plans."""
    path = dataset.preprocessed / f"{plans}.json"
    content = json.loads(path.read_text())
    content["nnunet_dhc"] = {**content.get("nnunet_dhc", {}), **settings}
    path.write_text(json.dumps(content))


def fold_folder(dataset: TinyDataset, fold: int | str = 0, trainer: str = TRAINER) -> Path:
    return dataset.results / f"{trainer}__{TINY_PLANS}__3d_fullres" / f"fold_{fold}"


def _as_in_a_terminal() -> None:
    """A test run in the background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _command_line(pid: int) -> bytes | None:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None


def _stat(pid: int | str) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on: state, parent, group, session ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
