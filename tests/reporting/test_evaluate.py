# SPDX-License-Identifier: Apache-2.0
"""Scoring many pairs of files: cache, processes, and a process that dies."""

from __future__ import annotations

import json
import os

import pytest
from made_up import boxes, dataset_json, write_volume

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting import evaluate
from nnunet_dhc.reporting.evaluate import score_pairs
from nnunet_dhc.reporting.protocols import DHC, STANDARD
from nnunet_dhc.reporting.structures import label_space


def test_scores_are_cached_by_file(tmp_path, monkeypatch):
    from nnunet_dhc.reporting import evaluate
    from nnunet_dhc.reporting.structures import label_space

    labels = label_space(dataset_json())
    pair = (write_volume(tmp_path / "p.nii.gz", boxes(1)), write_volume(tmp_path / "r.nii.gz", boxes()))
    first = score_pairs([pair], labels, STANDARD, 1, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "score_files", lambda *_: pytest.fail("scored again"))
        assert score_pairs([pair], labels, STANDARD, 1, tmp_path / "cache") == first
    write_volume(pair[0], boxes(2))
    assert score_pairs([pair], labels, STANDARD, 1, tmp_path / "cache") != first
    cache = tmp_path / "cache" / ".metrics_cache.json"
    assert str(tmp_path) not in cache.read_text()
    score_pairs([pair], labels, DHC, 1, tmp_path / "cache")
    assert len(json.loads(cache.read_text())) == 2  # one a protocol; none of the file that was replaced


def test_files_of_one_name_size_and_time_are_told_apart_by_their_folders(tmp_path):
    labels, reference = label_space(dataset_json()), write_volume(tmp_path / "r.nii", boxes())
    pairs = [(write_volume(tmp_path / f"row{shift}" / "case.nii", boxes(shift)), reference) for shift in (0, 1)]
    for prediction, _ in pairs:
        os.utime(prediction, ns=(0, 0))  # as of copies that keep no parts of seconds
    first, second = score_pairs(pairs, labels, STANDARD, 1, tmp_path / "cache")
    assert first["1"]["dice"] == 1 and second["1"]["dice"] < 1


def test_several_processes_score_alike(tmp_path):
    from nnunet_dhc.reporting.structures import label_space

    pairs = [(write_volume(tmp_path / f"p{shift}.nii.gz", boxes(shift)), write_volume(tmp_path / "r.nii.gz", boxes()))
             for shift in (0, 1, 2)]
    labels = label_space(dataset_json())
    assert score_pairs(pairs, labels, STANDARD, 2) == score_pairs(pairs, labels, STANDARD, 1)


def die(*_):
    os._exit(9)


def test_a_scoring_process_that_dies_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_score_pair", die)
    reference = write_volume(tmp_path / "r.nii.gz", boxes())
    pairs = [(write_volume(tmp_path / f"p{number}.nii.gz", boxes(number)), reference) for number in range(2)]
    with pytest.raises(UserError, match=r"lack of memory.*-np 1\); the scores that are finished are kept"):
        score_pairs(pairs, label_space(dataset_json()), STANDARD, 2, tmp_path)


def test_another_protocol_or_other_labels_are_scored_anew(tmp_path):
    pair = (write_volume(tmp_path / "p.nii.gz", boxes(1)), write_volume(tmp_path / "r.nii.gz", boxes()))
    labels = label_space(dataset_json())
    union = label_space({"labels": {"background": 0, "both": [1, 2], "rare_box": 3}})
    assert "dice" in score_pairs([pair], labels, STANDARD, 1, tmp_path)[0]["1"]
    assert "dice_dhc" in score_pairs([pair], labels, DHC, 1, tmp_path)[0]["1"]
    assert "(1, 2)" in score_pairs([pair], union, STANDARD, 1, tmp_path)[0]
