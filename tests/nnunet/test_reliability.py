# SPDX-License-Identifier: Apache-2.0
"""The parts that let a training end well, one by one; tests/cli/test_messages.py has them all in the real commands."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import blosc2
import numpy as np
import pytest
import torch

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host import file_locks
from nnunet_dhc.nnunet.reliability import child_watch, graceful_stop
from nnunet_dhc.nnunet.reliability.damaged_files import CaseFolder, find_damage
from nnunet_dhc.nnunet.reliability.explained_errors import explained
from nnunet_dhc.nnunet.reliability.graceful_stop import Stopped, StopSignals, end_processes
from nnunet_dhc.nnunet.reliability.loading_failure import (
    GuardedStream,
    explain_loading_failure,
    killed_while_validating,
)
from nnunet_dhc.nnunet.reliability.output_folder import LOCK_FILE, claimed, remove_unfinished
from nnunet_dhc.nnunet.reliability.resume_command import resume_command
from nnunet_dhc.nnunet.training.checkpoint import save_extended

TRAIN = ["/usr/bin/nnUNetv2_train", "501", "3d_fullres", "0", "-tr", "nnUNetTrainerDHC", "-p", "My Plans"]


def test_resume_command_adds_c_where_there_is_a_checkpoint():
    expected = "nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerDHC -p 'My Plans'"
    assert resume_command(True, TRAIN) == f"{expected} --c"
    assert resume_command(True, [*TRAIN, "--c"]) == f"{expected} --c"
    assert resume_command(False, TRAIN) == expected
    assert resume_command(True, [*TRAIN, "--val"]) == f"{expected} --val"


@pytest.mark.parametrize("given", [["-pretrained_weights", "w.pth"], ["-pretrained_weights=w.pth"]])
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
        runs = context.Event()
        worker = context.Process(target=lambda: (runs.set(), time.sleep(60)), daemon=True)
        worker.start()
        assert runs.wait(30)
        os.kill(worker.pid, signal.SIGINT)
        worker.join(0.3)
        assert worker.is_alive()
        end_processes([], [])
    assert worker.exitcode == -signal.SIGTERM


STUCK = """
import os, signal, sys, time
from nnunet_dhc.nnunet.reliability import graceful_stop
graceful_stop._UNWINDING_LIMIT_S = 0.3
with graceful_stop.StopSignals(lambda stopped: graceful_stop.end_at_once(stopped.exit_code, stopped.name)):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    finally:
        time.sleep(60)  # as a pool whose workers died of the same signal while one held its lock
"""


def test_an_exception_that_does_not_come_out_is_given_up():
    process = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=50)
    assert (process.returncode, process.stderr) == (143, "nnunet_dhc: SIGTERM\n")


def test_an_exception_that_comes_out_is_not_given_up(monkeypatch):
    monkeypatch.setattr(graceful_stop, "_UNWINDING_LIMIT_S", 1.0)
    given_up = []
    for ignores in (True, False):
        with pytest.raises(Stopped), StopSignals(given_up.append) as signals:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            finally:
                if ignores:
                    signals.ignore()
                    time.sleep(1.5)
    time.sleep(1.2)
    assert given_up == []


@pytest.mark.parametrize("ended", [1, 2])
def test_a_worker_that_is_ended_alone_is_noticed(monkeypatch, ended):
    """A pool that ends ends all of its workers."""
    monkeypatch.setattr(child_watch, "_ALL_END_WITHIN_S", 0.1)
    context = multiprocessing.get_context("fork")
    watch = child_watch.ChildWatch(str)
    workers = [context.Process(target=time.sleep, args=(60,), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert watch.died_from() is None
    for worker in workers[:ended]:
        worker.terminate()
        worker.join()
    later = context.Process(target=time.sleep, args=(60,), daemon=True)  # the next pool's
    later.start()
    assert watch.died_from() is None
    time.sleep(0.2)
    assert watch.died_from() == (signal.SIGTERM if ended == 1 else None)
    end_processes([], [])


def test_the_last_line_comes_though_the_reader_of_the_output_has_ended():
    """As tee, which Ctrl-C ends, too; what is still buffered has nowhere to go."""
    code = ("from nnunet_dhc.nnunet.reliability.last_line import say_last; "
            "print('buffered'); say_last('the end'); raise SystemExit(130)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run([sys.executable, "-c", code], env=environment, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (process.returncode, process.stderr) == (130, b"nnunet_dhc: the end\n")


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


def test_damage_is_found_where_the_system_has_no_sigkill(cases, tmp_path, monkeypatch):
    """As on Windows."""
    (tmp_path / "b_seg.b2nd").unlink()
    monkeypatch.delattr(signal, "SIGKILL")
    assert "b_seg.b2nd" in str(explain_loading_failure(RuntimeError("x"), [], [cases], "preprocess", "train --c"))


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
])
def test_no_file_is_blamed_for_what_comes_from_the_device(cases, tmp_path, error):
    (tmp_path / "b_seg.b2nd").unlink()
    assert explain_loading_failure(error, [], [cases], "preprocess", "train --c") is error


def test_unknown_errors_stay_what_they_are(cases):
    error = ValueError("a bug")
    assert explain_loading_failure(error, [], [cases], "preprocess", "train --c") is error

    class Broken:
        def __next__(self):
            raise error

    with pytest.raises(ValueError, match="a bug"):
        next(GuardedStream(Broken(), lambda found, workers: found))


def test_workers_that_the_first_batch_starts_are_known():
    class Starting:
        _processes: ClassVar[list] = []

        def __next__(self):
            self._processes.append("worker")
            raise RuntimeError("background workers")

    found = []
    with pytest.raises(RuntimeError):
        next(GuardedStream(Starting(), lambda error, workers: found.extend(workers) or error))
    assert found == ["worker"]


def test_what_is_explained_already_stays_as_it_is():
    error = UserError("Reading scans ran out of memory: -np 1")
    assert explained(error, "/r", "preprocess", "train --c") is error


@pytest.mark.parametrize(
    ("error", "needle"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/r/x.pth"), "The disk is full: /r/x.pth"),
        (OSError(errno.EROFS, "Read-only file system", "/r/x.pth"), "/r/x.pth can't be written"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/p/D/case.b2nd"), "run nnUNetv2_preprocess"),
        (MemoryError(), "nnUNet_n_proc_DA"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "nnUNet_n_proc_DA"),
        (RuntimeError("CUDA error: launch failure\nSearch for"), "(CUDA error: launch failure),"),
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


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_a_file_system_has_no_locks_training_goes_on(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    for _ in range(2):
        with claimed(str(tmp_path)):
            assert file_locks.awaited_lock(tmp_path / "other.lock", print, "waiting") is None


def test_leftovers_of_a_killed_training_go(tmp_path):
    for name in ("checkpoint_best.pth.stock.tmp", "checkpoint_latest.pth.tmp", "checkpoint_best.pth"):
        (tmp_path / name).touch()
    remove_unfinished(str(tmp_path))
    assert os.listdir(tmp_path) == ["checkpoint_best.pth"]


def test_a_killed_validation_says_whether_there_is_a_model():
    kept, lost = (killed_while_validating(9, "the command", is_kept) for is_kept in (True, False))
    assert "trained model is complete" in kept and kept.endswith("then repeat the validation with: the command")
    assert "--disable_checkpointing" in lost and lost.endswith("then train again with: the command")


@pytest.mark.parametrize(("ended_by", "sent_by_watch", "error", "expected"), [
    (None, False, RuntimeError("a bug"), None), (9, False, RuntimeError("a worker is gone"), 9),
    (9, True, Stopped(15), 9),  # the watch's own SIGTERM
    (15, False, Stopped(15), None),  # of the whole group, by the user or the system
    (None, False, Stopped(2), None),
])
def test_who_ended_a_validation(monkeypatch, ended_by, sent_by_watch, error, expected):
    watch = child_watch.ChildWatch(str)
    monkeypatch.setattr(watch, "died_from", lambda: ended_by)
    watch._has_raised = sent_by_watch
    assert watch.killed_by(error) == expected


def test_a_failed_gpu_is_no_full_disk(tmp_path):
    def save(name):
        Path(name).write_bytes(b"")
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="CUDA error") as raised:
        save_extended(save, str(tmp_path / "checkpoint_latest.pth"), {})
    assert not isinstance(raised.value, UserError) and list(tmp_path.iterdir()) == []
