# SPDX-License-Identifier: Apache-2.0
"""Every fault, made on disk or in a live process and met by the real console commands: one line, nothing lost."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from console import TRAINER, fold_folder
from faults import FAULTS, Fault
from tiny_data import TinyDataset

from nnunet_dhc.nnunet.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow
UNFINISHED = re.compile(r"\.writing-|\.tmp$")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_message(fault: Fault, tiny_dataset):
    with fault.made(tiny_dataset):
        before, old_checkpoints = what_users_own(tiny_dataset), checkpoints(tiny_dataset)
        outcome = fault.meet(tiny_dataset)
        assert before == {path: now for path, now in what_users_own(tiny_dataset).items() if path in before}
        assert not [path for path in tiny_dataset.root.rglob("*") if UNFINISHED.search(path.name)]
        for path in checkpoints(tiny_dataset) - old_checkpoints:
            read_checkpoint(str(path), TRAINER)  # whole
        assert ("--c" in outcome.last_line.split()) <= bool(checkpoints(tiny_dataset)) or "--c:" in outcome.last_line
    message = fault.message(outcome)
    assert message and all(needle in message for needle in fault.needles), outcome.err[-3000:] + outcome.out[-3000:]
    assert outcome.code == fault.code


def what_users_own(dataset: TinyDataset) -> dict[Path, str]:
    """Hashes of raw data, plans and split file."""
    files = [*dataset.raw.rglob("*"), *dataset.preprocessed.glob("*.json")]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


def checkpoints(dataset: TinyDataset) -> set[Path]:
    return set(fold_folder(dataset).glob("checkpoint_*.pth"))
