# SPDX-License-Identifier: Apache-2.0
"""The parts that let a training end well, one by one; tests/cli/test_messages.py has them all in the real commands."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time

import blosc2
import numpy as np
import pytest

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.reliability.damaged_files import CaseFolder, find_damage
from nnunet_dhc.nnunet.reliability.explained_errors import explained
from nnunet_dhc.nnunet.reliability.graceful_stop import Stopped, StopSignals, end_processes
from nnunet_dhc.nnunet.reliability.loading_failure import GuardedStream, explain_loading_failure
from nnunet_dhc.nnunet.reliability.output_folder import LOCK_FILE, claimed, remove_unfinished
from nnunet_dhc.nnunet.reliability.resume_command import resume_command

TRAIN = ["/usr/bin/nnUNetv2_train", "501", "3d_fullres", "0", "-tr", "nnUNetTrainerDHC", "-p", "My Plans"]


def test_resume_command_adds_c_where_there_is_a_checkpoint():
    expected = "nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerDHC -p 'My Plans'"
    assert resume_command(True, TRAIN) == f"{expected} --c"
    assert resume_command(True, [*TRAIN, "--c"]) == f"{expected} --c"
    assert resume_command(False, TRAIN) == expected
    assert resume_command(True, [*TRAIN, "--val"]) == f"{expected} --val"


@pytest.mark.parametrize("given", [["-pretrained_weights", "w.pth"], ["-pretrained_weights=w.pth"], ["-pre", "w.pth"]])
def test_resume_command_drops_what_c_forbids(given):
    assert "w.pth" not in resume_command(True, [*TRAIN, *given])


def test_resume_command_of_our_own_program():
    assert resume_command(True, ["nnunet_dhc train", "501"]) == "nnunet_dhc train 501 --c"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_become_an_exception_and_are_given_back(number, code):
    around = signal.signal(number, signal.default_int_handler)  # a shell's background job ignores SIGINT
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, StopSignals():
        os.kill(os.getpid(), number)
        time.sleep(1)
    after = signal.signal(number, around)
    assert stopped.value.exit_code == code
    assert after is before


def test_held_work_is_finished_first():
    done = False
    with pytest.raises(Stopped), StopSignals():
        with StopSignals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            done = True
        done = "too late"
    assert done is True


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_forked_workers_die_from_sigterm_and_leave_ctrl_c_to_their_parent():
    context = multiprocessing.get_context("fork")
    with StopSignals():
        worker = context.Process(target=time.sleep, args=(60,), daemon=True)
        worker.start()
        time.sleep(0.2)
        os.kill(worker.pid, signal.SIGINT)
        worker.join(0.3)
        assert worker.is_alive()
        end_processes([], [])
    assert worker.exitcode == -signal.SIGTERM


def test_processes_of_others_are_left_alone():
    context = multiprocessing.get_context("fork")
    other = context.Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    end_processes(multiprocessing.active_children(), [])
    assert other.is_alive()
    other.kill()
    other.join()


@pytest.fixture
def cases(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 4, (1, 40, 40, 40)).astype(np.int16)  # compresses well
    for case in ("a", "b"):
        for suffix in ("", "_seg"):
            blosc2.asarray(voxels, urlpath=str(tmp_path / f"{case}{suffix}.b2nd"))
        (tmp_path / f"{case}.pkl").write_bytes(b"x")
    return CaseFolder(str(tmp_path), ["a", "b"])


def test_finds_no_damage_where_there_is_none(cases):
    assert find_damage([cases]) is None


@pytest.mark.parametrize("how", ["truncated", "inside", "missing", "empty"])
def test_finds_the_damaged_file(cases, tmp_path, how):
    path = tmp_path / "b_seg.b2nd"
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        half = len(content) // 2
        noise = np.random.default_rng(1).bytes(200)
        damaged = {"truncated": content[:half], "empty": b"", "inside": content[:half] + noise + content[half + 200 :]}
        path.write_bytes(damaged[how])
    damage = find_damage([cases])
    assert damage.path == str(path) and damage.identifier == "b"


def test_a_folder_that_is_gone(cases, tmp_path):
    gone = CaseFolder(str(tmp_path / "gone"), ["a"], unlabeled=True)
    error = explain_loading_failure(RuntimeError("x"), [], [cases, gone], "preprocess", "train --c")
    assert isinstance(error, UserError) and "gone" in str(error) and str(error).endswith("train --c")


def test_unknown_errors_stay_what_they_are(cases):
    error = ValueError("a bug")
    assert explain_loading_failure(error, [], [cases], "preprocess", "train --c") is error

    class Broken:
        def __next__(self):
            raise error

    with pytest.raises(ValueError, match="a bug"):
        next(GuardedStream(Broken(), lambda found, workers: found))


@pytest.mark.parametrize(
    ("error", "needle"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/r/x.pth"), "The disk is full: /r/x.pth"),
        (OSError(errno.EROFS, "Read-only file system", "/r/x.pth"), "/r/x.pth can't be written"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/p/D/case.b2nd"), "run nnUNetv2_preprocess"),
        (MemoryError(), "nnUNet_n_proc_DA"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "nnUNet_n_proc_DA"),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), "low_memory=on"),
    ],
)
def test_errors_of_the_system_get_a_remedy(monkeypatch, error, needle):
    monkeypatch.setenv("nnUNet_preprocessed", "/p")
    known = explained(error, "/r", "nnUNetv2_preprocess -d 501", "nnUNetv2_train 501 --c")
    assert isinstance(known, UserError) and needle in str(known) and "nnUNetv2_train 501 --c" in str(known)


def test_one_training_at_a_time_in_a_folder(tmp_path):
    with claimed(str(tmp_path)):
        with pytest.raises(UserError, match="Another training is writing to"), claimed(str(tmp_path)):
            raise AssertionError
        with claimed(str(tmp_path), rank=1):
            pass
    assert not (tmp_path / LOCK_FILE).exists()
    with claimed(str(tmp_path)):
        pass


def test_leftovers_of_a_killed_training_go(tmp_path):
    for name in ("checkpoint_best.pth.stock.tmp", "checkpoint_latest.pth.tmp", "checkpoint_best.pth"):
        (tmp_path / name).touch()
    remove_unfinished(str(tmp_path))
    assert os.listdir(tmp_path) == ["checkpoint_best.pth"]
