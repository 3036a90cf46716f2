# SPDX-License-Identifier: Apache-2.0
"""Files that a kill leaves as they were."""

from __future__ import annotations

import pytest

from nnunet_dhc.nnunet.host import atomic_files
from nnunet_dhc.nnunet.host.atomic_files import replace_file
from nnunet_dhc.nnunet.training import epoch_log
from nnunet_dhc.nnunet.training.epoch_log import EpochLog
from nnunet_dhc.nnunet.training.run_record import RunRecord


def killed(*_):
    raise KeyboardInterrupt


def test_a_kill_leaves_what_was_there(tmp_path, monkeypatch):
    """Before the rename: the split file and the manifests, the log that a resumed run shortens, the record of a run."""
    (tmp_path / "file.json").write_text("old")
    log, record = EpochLog(tmp_path), RunRecord(tmp_path)
    for epoch in range(3):
        log.append({"epoch": epoch})
    record.update(started=1)
    for module in (atomic_files, epoch_log):
        monkeypatch.setattr(module.os, "replace", killed)
    for write in (lambda: replace_file(tmp_path / "file.json", b"new"), lambda: log.keep_before(1),
                  lambda: record.update(started=2)):
        with pytest.raises(KeyboardInterrupt):
            write()
    assert (tmp_path / "file.json").read_text() == "old"
    assert [line["epoch"] for line in log.read()] == [0, 1, 2] and record.read() == {"started": 1}
