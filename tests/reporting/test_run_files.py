# SPDX-License-Identifier: Apache-2.0
"""What runs leave behind, whole or in part."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_up import log_line, stock_log, write_json

from nnunet_dhc.demo.pipeline import training_seconds
from nnunet_dhc.reporting.checkpoint_sizes import parameter_count
from nnunet_dhc.reporting.run_files import case_count, case_list, read_run, training_logs
from nnunet_dhc.reporting.training_curves import training_curves


def test_a_stock_run(tmp_path):
    (tmp_path / "training_log_2026_1_1_00_00_00.txt").write_text(stock_log(3))
    write_json(tmp_path / "debug.json", {"num_iterations_per_epoch": "250", "num_epochs": "1000", "gpu_name": "a GPU"})
    record = read_run(tmp_path)
    facts = record.facts()
    assert (facts["epochs"], facts["planned_epochs"], facts["steps"], facts["seconds"]) == (3, 1000, 750, 7.5)
    assert facts["device"] == "a GPU"
    assert facts["labeled_cases"] == 3
    assert facts["parameters"] is None
    assert record.epochs[0]["dice_mean"] == [0.5, 0.25, None]
    assert record.epochs[0]["losses"] == {"train": -0.25, "validation": -0.5}


def test_parameters_of_a_stock_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    network = torch.nn.ModuleDict({"encoder": torch.nn.Conv2d(3, 4, 3)})  # 3 x 4 x 9 + 4 weights
    network["decoder"] = torch.nn.ModuleDict({"encoder": network["encoder"], "head": torch.nn.Linear(4, 2)})  # + 10
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    content = {"network_weights": network.state_dict(), "optimizer_state": optimizer.state_dict(), "logging": {"a": []},
               "trainer_name": "nnUNetTrainer", "init_args": {"folder": tmp_path}, "_best_ema": np.float32(0.5)}
    path = tmp_path / "checkpoint_final.pth"
    torch.save(content, path)
    assert parameter_count(path) == 122
    content["network_weights"]["votes"] = torch.zeros(2, 14)  # of a pair: no weights
    torch.save(content, path)
    assert parameter_count(path) == 122
    assert read_run(tmp_path).facts()["parameters"] == 122
    path.write_bytes(path.read_bytes()[:300])
    assert parameter_count(path) is None


def test_one_thread(tmp_path):
    write_json(tmp_path / "dhc_run.json", {"device": "cpu: 1 threads"})
    assert read_run(tmp_path).facts()["device"] == "cpu: 1 thread"


def test_an_epoch_repeated_after_a_resume_counts_once(tmp_path):
    (tmp_path / "training_log_2026_1_1_00_00_00.txt").write_text(stock_log(3))
    (tmp_path / "training_log_2026_1_2_00_00_00.txt").write_text(stock_log(4))
    assert read_run(tmp_path).facts()["seconds"] == 10.0


def test_an_empty_folder(tmp_path):
    record = read_run(tmp_path)
    assert record.facts()["epochs"] is None
    assert training_curves(record, "x", "0", 0) is None


def test_a_log_that_is_being_written(tmp_path):
    import json

    (tmp_path / "dhc_log.jsonl").write_text(json.dumps(log_line(0)) + "\n" + json.dumps({"epoch": 1}) + '\n{"epoch": 2')
    record = read_run(tmp_path)
    assert record.epochs_done == 2
    curves = training_curves(record, "x", "0", 0)
    assert curves["epochs"] == [0, 1]
    assert curves["agreement"] == [0.9, None]
    assert curves["class_weights_b"][3] == [None, None]


def test_long_logs_are_thinned_and_keep_their_end(tmp_path):
    import json

    (tmp_path / "dhc_log.jsonl").write_text("".join(json.dumps(log_line(epoch)) + "\n" for epoch in range(1000)))
    curves = training_curves(read_run(tmp_path), "x", "0", 0)
    assert len(curves["epochs"]) <= 102
    assert curves["epochs"][-1] == 999
    assert curves["counters"]["skipped_steps"] == 1


def test_cases_however_they_are_listed():
    assert case_list({"cases": {"labeled": ["b", "a"]}}, "labeled") == ["a", "b"]
    assert case_list({"cases": {"labeled": {"count": 1, "identifiers": ["a"]}}}, "labeled") == ["a"]
    assert case_count({"cases": {"unlabeled": 5}}, "unlabeled") == 5
    assert case_count({"cases": {"num_unlabeled": 5}}, "unlabeled") == 5
    assert case_count({}, "unlabeled") is None


def test_what_an_earlier_start_was_trained_on_stays_in_the_weights(tmp_path):
    """Ten labels, then continued with two of them: no model of two labels."""
    last = {"labeled": ["a", "b"], "unlabeled": ["u"], "validation": ["y"]}
    of_all = {"labeled": [*"abcdefghij"], "unlabeled": ["u", "v"], "validation": ["y", "z"]}
    manifest = {"cases": last, "cases_of_all_starts": of_all}
    assert case_list(manifest, "labeled") == of_all["labeled"]
    assert case_list(manifest, "validation") == ["y"]
    write_json(tmp_path / "dhc_run.json", manifest)
    facts = read_run(tmp_path).facts()
    assert (facts["labeled_cases"], facts["unlabeled_cases"]) == (10, 2)


def test_a_number_in_scientific_notation(tmp_path):
    """NumPy prints 0.0001 so, which a rare structure has early on."""
    (tmp_path / "training_log_2026_1_1_00_00_00.txt").write_text(
        "x: Epoch 0 \nx: train_loss -1e-04 \nx: Pseudo dice [np.float32(0.5), np.float32(1e-04), nan, "
        "np.float32(0.0), np.float32(1.0)] \nx: Epoch time: 2.5 s \n")
    epoch, = read_run(tmp_path).epochs
    assert epoch["dice_mean"] == [0.5, 0.0001, None, 0.0, 1.0]
    assert epoch["losses"] == {"train": -0.0001}


def test_logs_come_in_the_order_of_their_dates(tmp_path):
    """nnU-Net writes no leading zeros, so by name the 10th of a month comes before the 9th."""
    names = ["training_log_2025_9_30_9_05_00.txt", "training_log_2025_10_9_23_00_00.txt",
             "training_log_2025_10_10_01_00_00.txt"]
    for name, (epochs, seconds) in zip(names, ((3, 1), (6, 100), (4, 10)), strict=True):
        lines = [f"x: This split has {epochs} training and 2 validation cases."]
        for epoch in range(epochs):
            lines += [f"x: Epoch {epoch} ", f"x: Epoch time: {seconds}.0 s "]
        (tmp_path / name).write_text("\n".join(lines))
    assert [path.name for path in training_logs(tmp_path)] == names
    record = read_run(tmp_path)
    assert (record.epochs_done, record.seconds, record.counted_cases) == (4, 40.0, (4, 2))
    assert training_seconds(tmp_path) == 40.0


def test_steps_and_hours_at_the_end_of_an_epoch(tmp_path):
    write_json(tmp_path / "dhc_run.json", {"iterations_per_epoch": 250})
    lines = [{"epoch": epoch, "seconds": {"epoch": 1800.0}} for epoch in range(3)]
    (tmp_path / "dhc_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = training_curves(read_run(tmp_path), "x", "0", 0)
    assert curves["steps_done"] == [250, 500, 750] and curves["hours_done"] == [0.5, 1.0, 1.5]
