# SPDX-License-Identifier: Apache-2.0
"""Run steps one after the other, show how far they are, and skip those that are done when run again."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_json

_EPOCH = re.compile(r"\bEpoch (\d+)\b")


STATE_FILE = "steps.json"


class Steps:
    """A list of steps whose state is kept in ``<folder>/steps.json``.

    Args:
        folder: Logs and state go here.
        count: Number of steps, for the numbers in front of the titles.
        environment: Environment of the commands.
    """

    def __init__(self, folder: Path, count: int, environment: Mapping[str, str]) -> None:
        self.folder, self.count, self.environment = folder, count, dict(environment)
        self.number = 0
        self._before = ""
        self._state_file = folder / STATE_FILE
        self._done: dict[str, str] = {}
        if self._state_file.is_file():
            try:
                self._done = json.loads(self._state_file.read_text(encoding="utf-8"))
            except ValueError:
                pass  # torn by a full disk: every step runs again, and each continues by itself
        else:
            replace_json(self._state_file, self._done)  # by which a demo that was stopped in its first step is known

    def call(self, title: str, key: object, function: Callable[[], object]) -> None:
        """Run a function of ours, unless it ran before with the same ``key``."""
        self._step(title, repr(key), lambda: function())

    def show(self, title: str, command: Sequence[str | Path]) -> None:
        """Run a command every time, with its output on the terminal."""
        self.number += 1
        words = [str(word) for word in command]
        print(f"[{self.number}/{self.count}] {title} ...\n      $ {shlex.join(words)}", flush=True)
        if subprocess.run(words, env=self.environment, stdin=subprocess.DEVNULL).returncode:
            raise UserError(f"{title.lower()} failed, see above; then run the same command again: it continues here")

    def command(self, title: str, command: Sequence[str | Path], prepare: Callable[[], Sequence[str]] = tuple,
                epochs: int = 0) -> None:
        """Run a command, unless it was finished before; its output goes to a log file.

        Args:
            title: What it does.
            command: Program and arguments; "python" stands for this interpreter.
            prepare: Called right before the command; what it returns is added to the arguments and doesn't count as a
                change (nnU-Net's ``--c``).
            epochs: For a training, the number of epochs, to show how far it is.
        """
        words = [str(word) for word in command]
        self._step(title, json.dumps(words), lambda: self._run([*words, *prepare()], epochs))

    def _step(self, title: str, key: str, action: Callable[[], object]) -> None:
        self.number += 1
        self._label = f"[{self.number}/{self.count}] {title}"
        signature = hashlib.sha256(key.encode()).hexdigest()[:16]
        if self._done.get(title) == signature:
            print(f"{self._label}: done before", flush=True)
        else:
            started = time.monotonic()
            print(f"{self._label} ...", flush=True)
            self._forget(title)
            action()
            self._remember(title, signature)
            print(f"{self._label}: {time.monotonic() - started:.0f} s", flush=True)
        self._before = title

    def _forget(self, title: str) -> None:
        """Before a step changes anything: what comes later was made from what was here."""
        names = list(self._done)
        if title in names:
            self._done = {name: self._done[name] for name in names[:names.index(title)]}
            replace_json(self._state_file, self._done)

    def _remember(self, title: str, signature: str) -> None:
        """Note a finished step behind the one before it, where an option may have put it between two others."""
        steps = list(self._done.items())
        place = list(self._done).index(self._before) + 1 if self._before in self._done else 0
        self._done = dict([*steps[:place], (title, signature), *steps[place:]])
        replace_json(self._state_file, self._done)

    def _run(self, words: list[str], epochs: int) -> None:
        print(f"      $ {shlex.join(words)}", flush=True)
        log = self.folder / f"{self.number:02d}_{Path(words[0]).name}.log"
        if words[0] == "python":
            words = [sys.executable, *words[1:]]
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(words, env=self.environment, stdout=output, stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL)
            try:
                self._watch(process, log, epochs)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if process.returncode:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            raise UserError(f"{Path(words[0]).name} failed ({lines[-1] if lines else 'no output'}); see {log}, "
                            "then run the same command again: it continues here")

    @staticmethod
    def _watch(process: subprocess.Popen, log: Path, epochs: int) -> None:
        """Wait for the end; on a terminal, show the epoch of a training."""
        shown = ""
        while process.poll() is None:
            time.sleep(0.5)
            if epochs and sys.stdout.isatty():
                seen = _EPOCH.findall(log.read_text(encoding="utf-8", errors="replace"))
                text = f"      epoch {int(seen[-1]) + 1} of {epochs}" if seen else ""
                if text != shown:
                    print(f"\r{text}", end="", flush=True)
                    shown = text
        if shown:
            print(f"\r{' ' * len(shown)}\r", end="", flush=True)
