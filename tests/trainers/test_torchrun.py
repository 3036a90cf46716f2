# SPDX-License-Identifier: Apache-2.0
"""``torchrun -m nnunet_dhc train`` with two nodes of one process each, both on this machine: stop, continue, finish."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from console import Running, configure
from tiny_data import TINY_PLANS, TinyDataset

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.reliability import torchrun
from nnunet_dhc.nnunet.reliability.torchrun import is_launched, process_group
from nnunet_dhc.nnunet.training.checkpoint import read_checkpoint

TRAINER = "nnUNetTrainerSaysItsWeights"
# As a user's own trainer: nnU-Net finds it in a folder of nnUNet_extTrainer.
TRAINER_FILE = f"""
import os
import torch
from nnunet_dhc.trainers.dhc import nnUNetTrainerDHC

class {TRAINER}(nnUNetTrainerDHC):
    def on_train_end(self):
        super().on_train_end()
        torch.save(self.pair.state_dict(), os.path.join(os.environ["WEIGHTS_OF_RANKS"], str(self.local_rank)))
"""
EPOCHS = 4


def free_port() -> int:
    """Below those that the system hands out, which other tests may be given before torchrun takes it."""
    for port in range(20000 + os.getpid() % 10000, 32000):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


class Nodes:
    """Two nodes that train together, each with a torchrun of its own."""

    def __init__(self, dataset: TinyDataset, *more: str) -> None:
        port = free_port()
        variables = {
            "GLOO_SOCKET_IFNAME": "lo", "WEIGHTS_OF_RANKS": str(dataset.root / "weights"),
            "nnUNet_extTrainer": str(dataset.root / "own trainers"), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        }
        self.running = [
            Running(
                dataset,
                ("torchrun", "--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1", "--master-addr",
                 "127.0.0.1", "--master-port", str(port), "-m", "nnunet_dhc", "train", "999", "3d_fullres", "0",
                 "-tr", TRAINER, "-p", TINY_PLANS, "-device", "cpu", *more),
                variables,
            )
            for rank in (0, 1)
        ]


@pytest.fixture(scope="module")
def trained(tiny_dataset_template, tmp_path_factory) -> tuple[TinyDataset, list, list]:
    """A training that both nodes were told to stop in its second epoch, and that went on with --c."""
    dataset = tiny_dataset_template.copied_to(tmp_path_factory.mktemp("torchrun") / "nnunet")
    dataset.write_split([{"train": ["case_0", "case_1"], "val": ["case_2", "case_3"], "unlabeled": ["case_4"]}])
    configure(dataset, num_epochs=EPOCHS, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1)
    (dataset.root / "weights").mkdir()
    (dataset.root / "own trainers").mkdir()
    (dataset.root / "own trainers" / "own_trainer.py").write_text(TRAINER_FILE)

    first = Nodes(dataset)
    first.running[0].wait_for("Epoch 1")
    for node in first.running:
        node.signal(signal.SIGTERM)
    stopped = [node.finish() for node in first.running]
    second = Nodes(dataset, "--c")
    return dataset, stopped, [node.finish() for node in second.running]


def fold_of(dataset: TinyDataset) -> Path:
    return dataset.results / f"{TRAINER}__{TINY_PLANS}__3d_fullres" / "fold_0"


@pytest.mark.slow
def test_stops_and_says_how_to_go_on(trained):
    _, stopped, _ = trained
    assert all(node.code != 0 for node in stopped)
    assert "Stopped by SIGTERM in training; the checkpoint holds every finished epoch" in stopped[0].err
    assert f"torchrun ... -m nnunet_dhc train 999 3d_fullres 0 -tr {TRAINER}" in stopped[0].err
    assert "Stopped by" not in stopped[1].err


@pytest.mark.slow
def test_goes_on_to_the_end_with_the_same_weights_everywhere(trained):
    dataset, _, finished = trained
    assert [node.code for node in finished] == [0, 0], finished[0].err[-3000:] + finished[1].err[-3000:]
    weights = [torch.load(dataset.root / "weights" / str(rank)) for rank in (0, 1)]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    checkpoint = read_checkpoint(str(fold_of(dataset) / "checkpoint_final.pth"), TRAINER)
    assert checkpoint["current_epoch"] == EPOCHS
    torch.testing.assert_close(dict(checkpoint["network_weights"]), dict(weights[0]), rtol=0, atol=0)


@pytest.mark.slow
def test_files_are_those_of_one_process(trained):
    dataset, stopped, finished = trained
    fold = fold_of(dataset)
    log = [json.loads(line) for line in (fold / "dhc_log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == list(range(EPOCHS))
    assert len(list(fold.glob("training_log_*.txt"))) == 2  # one for each of the two commands, not four
    assert sorted(path.name for path in fold.iterdir() if not path.name.startswith("training_log_")) == [
        "checkpoint_best.pth", "checkpoint_final.pth", "debug.json", "dhc_log.jsonl", "dhc_progress.png",
        "dhc_run.json", "progress.png", "validation",
    ]
    assert sorted(path.name for path in (fold / "validation").iterdir()) == [
        "case_2.nii.gz", "case_3.nii.gz", "summary.json",  # each rank has predicted one case
    ]
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    assert "Preprocessing 4 unlabeled cases" in stopped[0].out  # by rank 0, the other found them
    assert "unlabeled cases into" not in stopped[1].out + "".join(node.out for node in finished)


# ---- one process plays a rank ----


@pytest.fixture
def second_of_two(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def test_without_torchrun_nothing_changes(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert not is_launched()
    with process_group(["501", "-num_gpus", "2"]) as (program, arguments):
        assert (program, arguments) == ("nnunet_dhc train", ["501", "-num_gpus", "2"])
        assert not torch.distributed.is_initialized()


def test_a_single_process_of_torchrun_goes_on_after_a_restart(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with process_group(["501", "3d_fullres", "0"]) as (_, arguments):
        assert arguments == ["501", "3d_fullres", "0", "--c"]


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["-num_gpus", "2"], "leave out -num_gpus"),
        (["-device", "mps"], "cuda or cpu only"),
        (["-tr", "nnUNetTrainer", "-device", "cpu"], "nnUNetv2_train -num_gpus"),
        ([], "process 1 of this node, which has 1 GPUs"),
    ],
)
def test_refuses(second_of_two, monkeypatch, arguments, needle):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=needle), process_group(["501", "-tr", "nnUNetTrainerDHC", *arguments]):
        pass
    assert not torch.distributed.is_initialized()


def test_a_gpu_by_the_number_within_the_node(second_of_two, monkeypatch):
    """Rank 5 of a second node of four processes has GPU 1; a restart by torchrun goes on instead of starting anew."""
    chosen = []
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", chosen.append)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 5)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with process_group(["501", "-tr", "nnUNetTrainerDHC", "-pretrained_weights", "w.pth"]) as (_, arguments):
        assert arguments == ["501", "-tr", "nnUNetTrainerDHC", "--c"]
    assert chosen == [torch.device("cuda", 1), "nccl"]


def test_refuses_more_processes_than_patches(monkeypatch):
    trainer = SimpleNamespace(configuration_manager=SimpleNamespace(batch_size=2))
    monkeypatch.setattr(torchrun, "_device", torch.device("cpu"))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(UserError, match=r"3 processes, but the batch of the plans \(2\)"):
        with torchrun.wrapped_by_device(trainer):
            pass


def test_refuses_nodes_without_a_common_results_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(torchrun, "_FILE_APPEARS_S", -1)
    with pytest.raises(UserError, match="shared file system"):
        torchrun._require(str(tmp_path / "training_log.txt"))
