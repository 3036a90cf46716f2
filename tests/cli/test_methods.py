# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc methods`` and ``nnunet_dhc env``."""

from __future__ import annotations

import json
import os
import shlex

import pytest

from nnunet_dhc._autoload import shim_folder
from nnunet_dhc.cli.main import main
from nnunet_dhc.trainers.table import METHODS


def test_table_names_every_trainer(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:1 + len(METHODS)]] == list(METHODS)


def test_json(capsys):
    assert main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["uses_unlabeled"] for row in rows} == {m.name: m.uses_unlabeled for m in METHODS.values()}


def test_env_line_is_what_a_shell_needs(capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "/my trainers")
    assert main(["env", "--shell", "sh"]) == 0
    word, assignment = shlex.split(capsys.readouterr().out)
    assert (word, assignment) == ("export", f"nnUNet_extTrainer=/my trainers{os.pathsep}{shim_folder()}")


@pytest.mark.parametrize(("shell", "start"), [("fish", "set -gx "), ("cmd", 'set "'), ("powershell", "$env:")])
def test_env_for_other_shells(capsys, shell, start):
    assert main(["env", "--shell", shell]) == 0
    assert capsys.readouterr().out.startswith(start)
