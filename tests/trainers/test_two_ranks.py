# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes against one process on the joined batch (weights, gradients, class weights), and a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def outcome(tiny_dataset_template, tmp_path_factory):
    """What both ranks and the single process computed, and the folder of the run."""
    root = tmp_path_factory.mktemp("ranks")
    tiny_dataset_template.copied_to(root / "nnunet")
    preprocessed = root / "nnunet" / "preprocessed" / tiny_dataset_template.name
    fold = {"train": ["case_0", "case_1"], "val": ["case_2"], "unlabeled": ["case_3"]}
    (preprocessed / "splits_final.json").write_text(json.dumps([fold]))
    environment = {**os.environ, "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
                   **{f"nnUNet_{name}": str(root / "nnunet" / name) for name in ("raw", "preprocessed", "results")}}
    ranks = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), str(root)], env=environment, cwd=SCRIPT.parent,
                         stdout=open(root / f"rank_{rank}.txt", "w"), stderr=subprocess.STDOUT)
        for rank in (0, 1)
    ]
    try:
        codes = [rank.wait(timeout=400) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0, 0], "\n".join((root / f"rank_{rank}.txt").read_text()[-3000:] for rank in (0, 1))
    loaded = [torch.load(root / f"rank_{rank}.pt", weights_only=False) for rank in (0, 1)]
    return loaded, torch.load(root / "joined.pt", weights_only=False), root / "nnunet" / "results"


@pytest.mark.parametrize(
    "setting",
    ["mixed", "mixed, low memory", "plain", "pooled", "per sample", "low memory", "counts of all"],
)
def test_steps_equal_those_on_the_joined_batch(outcome, setting):
    ranks, joined, _ = outcome
    for number, expected in enumerate(joined["pooled" if setting == "low memory" else setting]):
        got = [rank["steps"][setting][number] for rank in ranks]
        loss = sum(one["loss"] for one in got) / 2
        assert loss == pytest.approx(expected["loss"], rel=1e-7)
        for one in got:
            torch.testing.assert_close(one["gradients"], expected["gradients"], rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(one["weights"], expected["weights"], rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(one["weightings"], expected["weightings"], rtol=0, atol=0)
            assert one["shares"] == expected["shares"]
        torch.testing.assert_close(got[0]["weights"], got[1]["weights"], rtol=0, atol=0)


def test_non_finite_loss_of_one_rank_is_skipped_by_both(outcome):
    for rank in outcome[0]:
        result = rank["non_finite"]
        assert result["skipped"] == 1
        before, skipped, after = result["states"]
        torch.testing.assert_close(skipped, before, rtol=0, atol=0)
        assert any(not torch.equal(after["weights"][key], value) for key, value in before["weights"].items())
    torch.testing.assert_close(outcome[0][0]["non_finite"], outcome[0][1]["non_finite"], rtol=0, atol=0)


def test_patches_are_drawn_around_foreground_as_often_as_on_one_device(outcome):
    assert [rank["foreground_probability"] for rank in outcome[0]] == [0.33, 0.33]


def test_whole_training_keeps_the_ranks_alike(outcome):
    ranks, _, results = outcome
    torch.testing.assert_close(ranks[0]["whole"], ranks[1]["whole"], rtol=0, atol=0, equal_nan=True)
    whole = ranks[0]["whole"]
    assert any(not torch.equal(whole["weights"][key], value) for key, value in whole["first"].items())
    fold = next(results.glob("*/CpuReleased__*")) / "fold_0"
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    torch.testing.assert_close(dict(checkpoint["network_weights"]), whole["weights"], rtol=0, atol=0)
    assert len((fold / "dhc_log.jsonl").read_text().splitlines()) == 2
    assert len(list(fold.glob("training_log_*.txt"))) == 1
