# SPDX-License-Identifier: Apache-2.0
"""What a run says of its duration and of waiting, and how often it draws its curves; nothing is trained."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from nnunet_dhc.nnunet.training import run_files
from nnunet_dhc.nnunet.training.run_files import RunFiles, seconds_per_step, waiting_warning


def test_duration_of_a_step_by_what_it_draws():
    ends = [(0.0, True), (9.0, False), (10.0, False), (11.0, False), (15.0, True)]
    assert seconds_per_step(ends, 0.25) == (1.75, 1.0)
    assert seconds_per_step(ends[:4], 0.25) == (1.25, 1.0)  # of one kind alone: the other has twice or half the patches
    assert seconds_per_step([(0.0, True), (4.0, True)], 1.0) == (4.0, 2.0)
    assert seconds_per_step([(0.0, True)], 1.0) == (0.0, 0.0)


def test_the_duration_of_a_run_counts_a_validation_step_as_the_forward_pass_of_a_labeled_one(tmp_path, monkeypatch):
    printed: list[str] = []
    trainer = SimpleNamespace(
        device=torch.device("cpu"), print_to_log_file=printed.append, current_epoch=0, num_epochs=3600,
        num_iterations_per_epoch=3, num_val_iterations_per_epoch=2, schedule=lambda epoch: (0.0, 0.0),
    )
    files = RunFiles(str(tmp_path))
    now = iter((0.0, 3.0, 6.0))
    monkeypatch.setattr(run_files, "time", lambda: next(now))
    for _ in range(3):
        files.estimate_duration(trainer, has_unlabeled=False)
    assert "about 11.0 h, on average 3.00 s a step" in printed[0]  # an epoch: 3 x 3 s, and 2 x 1 s of validation


def test_drawing_curves_takes_a_small_part_of_a_training(tmp_path, monkeypatch):
    files, now, drawn = RunFiles(str(tmp_path)), [1000.0], []

    def draw(*_):
        drawn.append(now[0])
        now[0] += 5.0

    monkeypatch.setattr(run_files, "monotonic", lambda: now[0])
    monkeypatch.setattr(run_files, "plot_progress", draw)
    for epoch in range(100):
        now[0] += 60.0
        if files._plot_is_due(is_last=epoch == 99):
            files._plot([], [])
    assert drawn[0] == 1060.0 and drawn[-1] == now[0] - 5.0
    assert 5 * len(drawn) <= 0.025 * (now[0] - 1000.0)


def test_warns_when_gpu_waits_for_data():
    assert waiting_warning({"epoch": 100.0, "loading": 24.0}, 12) is None
    assert waiting_warning({"epoch": 0.0, "loading": 0.0}, 12) is None
    warning = waiting_warning({"epoch": 100.0, "loading": 40.0}, 12)
    assert "40%" in warning and "nnUNet_n_proc_DA, now 12 for" in warning


def test_warns_once_and_not_while_workers_start(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_n_proc_DA", "3")
    slow = {"epoch": 10.0, "loading": 5.0}
    for device, warnings in (("cuda", 1), ("cpu", 0)):
        printed: list[str] = []
        trainer = SimpleNamespace(device=torch.device(device), print_to_log_file=printed.append)
        files = RunFiles(str(tmp_path))
        for after_epoch in range(3):
            files.warn_of_waiting(trainer, slow)
            assert len(printed) == (warnings if after_epoch else 0)
