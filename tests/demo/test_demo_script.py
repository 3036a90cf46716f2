# SPDX-License-Identifier: Apache-2.0
"""scripts/demo.sh: where relative paths and the default folder lead to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_relative_paths_are_those_of_the_caller(tmp_path):
    programs = tmp_path / "environment" / "bin"
    programs.mkdir(parents=True)
    # The interpreter only says where the environment is; nothing is installed.
    for name, script in (("python", f'echo "{tmp_path}"'), ("nnunet_dhc", 'pwd -P; printf "%s\\n" "$@"')):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    caller = tmp_path / "elsewhere"
    caller.mkdir()
    process = subprocess.run(
        ["bash", str(ROOT / "scripts" / "demo.sh"), "--data", "Dataset123_Mine"], cwd=caller, capture_output=True,
        text=True, check=True, env={**os.environ, "VIRTUAL_ENV": str(programs.parent)})
    assert process.stdout.splitlines()[-6:] == [
        str(caller.resolve()), "demo", "-o", str(ROOT / ".demo"), "--data", "Dataset123_Mine"]
