# SPDX-License-Identifier: Apache-2.0
"""Every verb answers -h, an error is one line with exit code 2, and nnU-Net's entry points get their arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_dhc import __version__
from nnunet_dhc._autoload import shim_folder
from nnunet_dhc.cli import main as command
from nnunet_dhc.errors import UserError


@pytest.mark.parametrize("verb", command.VERBS)
def test_verb_answers_help(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([verb, "-h"])
    assert stopped.value.code == 0
    assert f"usage: nnunet_dhc {verb}" in capsys.readouterr().out


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit):
        command.main(["-h"])
    printed = capsys.readouterr().out
    assert all(f"\n    {verb}" in printed for verb in command.VERBS)


@pytest.mark.parametrize(("words", "message"), [
    ([], "nnunet_dhc: the following arguments are required: VERB; see nnunet_dhc -h"),
    (["split"], "nnunet_dhc split: the following arguments are required: -d; see nnunet_dhc split -h"),
    (["compare", "-d", "501", "--foo"], "nnunet_dhc compare: unrecognized arguments: --foo; see nnunet_dhc compare -h"),
    (["split", "-d", "501", "-np", "-3"],
     "nnunet_dhc split: argument -np: -3 is no number of processes (0, 1, 2 ...); see nnunet_dhc split -h"),
    (["--debug", "compare", "-d", "501"],
     "nnunet_dhc: unrecognized arguments: --debug; options stand behind the verb; see nnunet_dhc -h"),
    (["--debug", "train", "501"],
     "nnunet_dhc: unrecognized arguments: --debug; options stand behind the verb; see nnunet_dhc -h"),
])
def test_wrong_arguments_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_verbs_and_files_match():
    files = {path.stem.rstrip("_") for path in Path(command.__file__).parent.glob("[!_]*.py")} - {"main"}
    assert files == set(command.VERBS)


def test_console_script():
    script = Path(sys.executable).parent / "nnunet_dhc"
    process = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == f"nnunet_dhc {__version__}"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_prints_a_minus_where_the_terminal_has_none(encoding):
    code = ("import sys; from nnunet_dhc.cli import methods, main; "
            "methods.run = lambda _: print('\N{MINUS SIGN}1.5 \N{GREEK SMALL LETTER BETA}\N{EN DASH}'); "
            "sys.exit(main.main(['methods']))")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    printed = process.stdout.decode(encoding).strip()
    assert printed in ("-1.5 \\u03b2-", "-1.5 \\u03b2\N{EN DASH}")


@pytest.mark.parametrize("arguments", [["methods"], ["split", "-h"], ["env"]])
def test_a_pipe_that_is_closed_early_is_no_error(arguments):
    """As ``| true`` does; with buffering, the failure comes when the last of it is written."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "nnunet_dhc", *arguments], env=environment, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (1, b"")


def test_trainers_are_found_by_verbs_that_load_them_though_torchs_hook_is_off():
    code = ("import os; from nnunet_dhc.cli import methods, main; "
            "methods.run = lambda _: print(os.environ.get('nnUNet_extTrainer')); main.main(['methods'])")
    environment = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}
    environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == shim_folder()


@pytest.fixture
def failing(monkeypatch):
    def fail(_):
        raise UserError("some file\n   is bad: repair it")
    monkeypatch.setattr("nnunet_dhc.cli.methods.run", fail)


def test_error_is_one_line(failing, capsys):
    assert command.main(["methods"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "nnunet_dhc methods: some file is bad: repair it\n")


def test_debug_shows_the_traceback(failing):
    with pytest.raises(UserError):
        command.main(["methods", "--debug"])


@pytest.mark.parametrize(("error", "text"), [
    (FileNotFoundError(2, "No such file or directory", "some.json"), "some.json: No such file or directory; "),
    (OSError("the disk\nis gone"), "the disk is gone; "),
    (TimeoutError(), "TimeoutError; "),
])
def test_error_of_the_system_is_one_line(monkeypatch, capsys, error, text):
    def fail(_):
        raise error
    monkeypatch.setattr("nnunet_dhc.cli.methods.run", fail)
    monkeypatch.setattr("nnunet_dhc.cli.predict.run", fail)
    assert command.main(["methods"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"nnunet_dhc methods: {text}") and printed.count("\n") == 1
    for arguments in (["methods", "--debug"], ["predict"]):  # nnU-Net's own commands keep their traceback
        with pytest.raises(OSError):
            command.main(arguments)


@pytest.mark.parametrize(("verb", "arguments", "entry"), [
    ("train", ["501", "3d_fullres", "0", "-tr", "nnUNetTrainerDHC", "--c", "-device", "cpu"],
     "nnunetv2.run.run_training.run_training_entry"),
    ("predict", ["-i", "a", "-o", "b", "-d", "501", "-c", "3d_fullres"],
     "nnunetv2.inference.predict_from_raw_data.predict_entry_point"),
    ("predict", ["-i", "a", "-o", "b", "-m", "model"],
     "nnunetv2.inference.predict_from_raw_data.predict_entry_point_modelfolder"),
])
def test_arguments_are_handed_over(monkeypatch, verb, arguments, entry):
    seen = []
    monkeypatch.setattr(entry, lambda: seen.append(list(sys.argv)))
    before = list(sys.argv)
    assert command.main([verb, *arguments]) == 0
    assert seen == [[f"nnunet_dhc {verb}", *arguments]]
    assert sys.argv == before
