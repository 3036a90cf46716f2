# SPDX-License-Identifier: Apache-2.0
"""``nnunet_dhc rank`` from the command line, and its page from made-up numbers."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from shortcuts import leave_out_curves
from tiny_data import TINY_PLANS
from tiny_training import make_trainer

from nnunet_dhc.cli.main import main
from nnunet_dhc.reporting.rank_page import finish_ranking, render_rank_text, write_ranking


def made_up(tmp_path, cases=("patient_a", "patient_b", "patient_c")) -> dict:
    """A ranking with pictures of the first scan."""
    a, b = np.zeros((2, 12, 10), np.uint16)
    a[2:8, 2:8], b[3:9, 2:8] = 1, 1
    (tmp_path / ".cases").mkdir(parents=True)
    np.savez(tmp_path / ".cases" / "first.npz", **{"0_image": np.full((12, 10), 90, np.uint8), "0_a": a, "0_b": b})
    planes = [{"plane": "axial", "slice": 4, "slices": 9, "spacing": [1.0, 2.0], "subject": 1}]

    def value(disagreement) -> dict:
        return {"disagreement": disagreement, "entropy": disagreement, "value": disagreement, "volume_ml": 2.5}

    lines = [{
        "rank": rank, "case": case, "chosen": rank <= 1, "score": 0.5 / rank, "rank_by_score": rank, "novelty": 1.0,
        "disagreement": 0.4 / rank, "entropy": 0.2 / rank,
        "structures": {"1": value(0.4 / rank), "2": value(None), "(1, 2)": value(None if rank == 3 else 0.1)},
        "planes": planes if rank == 1 else [], "picture_file": ".cases/first.npz" if rank == 1 else None,
    } for rank, case in enumerate(cases, 1)]
    return {
        "cases": list(cases), "ranking": lines,
        "structures": [
            {"key": "1", "name": "left | <kidney>", "labels": [1], "found_in": 3, "disagreement": 0.3, "entropy": 0.1,
             "of_one_network": False},
            {"key": "2", "name": "gland", "labels": [2], "found_in": 0, "disagreement": None, "entropy": None,
             "of_one_network": False},
            {"key": "(1, 2)", "name": "both", "labels": [1, 2], "found_in": 2, "disagreement": 0.1, "entropy": 0.1,
             "of_one_network": False},
        ],
        "settings": {"diversity": 0.5, "budget": 1}, "source": f"scans of the folder {cases[1]}",
        "left_out": [{"case": "patient_d", "reason": "has NaN voxels"}],
        "model": {"dataset": "Dataset901_Made", "trainer": "nnUNetTrainerDHC", "plans": "nnUNetPlans",
                  "configuration": "3d_fullres", "folds": [0], "checkpoint": "checkpoint_final.pth",
                  "sha256": ["a" * 64], "mirroring": True},
    }


def test_files_agree_and_need_no_network(tmp_path):
    ranking = finish_ranking(made_up(tmp_path), tmp_path)
    written = write_ranking(ranking, tmp_path)
    assert [path.name for path in written] == ["rank.json", "rank.csv", "rank.md", "rank.html"]
    content = json.loads((tmp_path / "rank.json").read_text())
    assert content["verdict"]["sentence"] == "Label next: patient_a (of 3 unlabeled scans)."
    assert "gland" in content["notes"][0]
    rows = list(csv.DictReader((tmp_path / "rank.csv").open()))
    assert [row["case"] for row in rows] == ["patient_a", "patient_b", "patient_c"]
    assert rows[2]["both disagreement"] == ""
    page = (tmp_path / "rank.html").read_text()
    assert "<kidney>" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:image|#)", page)
    assert page.count("data:image") == 7  # image alone, and image with a layer three times
    text = render_rank_text(ranking)
    for shown in (page, text, (tmp_path / "rank.md").read_text()):
        assert "research" in shown
        assert "random" in shown
        assert "patient_d" in shown
    lines = [line for line in (tmp_path / "rank.md").read_text().splitlines() if line.startswith("| 1 |")]
    assert "40.0" in lines[0]


def test_anonymised_without_images(tmp_path):
    write_ranking(finish_ranking(made_up(tmp_path), tmp_path, images=False, anonymise=True), tmp_path / "out")
    for name in ("rank.json", "rank.csv", "rank.md", "rank.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "patient_" not in text
        assert "data:image" not in text
        assert "case 1" in text


def test_an_order_by_hardly_trained_networks_says_so_and_a_long_one_is_folded(tmp_path):
    ranking = made_up(tmp_path, [f"patient_{number}" for number in range(30)])
    assert "Read with care" not in render_rank_text(finish_ranking(ranking, tmp_path))
    for line in ranking["ranking"]:
        line["disagreement"] = 0.9
    written = write_ranking(finish_ranking(ranking, tmp_path), tmp_path)
    for path in written[2:]:
        assert "Read with care: A and B differ by 90.0 % on average" in path.read_text()
    assert "The other 19 scans" in written[-1].read_text()


@pytest.mark.slow
def test_from_training_to_page(tiny_dataset, tmp_path, capsys, monkeypatch):
    leave_out_curves(monkeypatch)
    make_trainer(tiny_dataset, num_epochs=1, abstain_below=0).run_training()
    out = tmp_path / "out"
    arguments = ["rank", "-d", "999", "-p", TINY_PLANS, "-f", "0", "-np", "1", "-device", "cpu", "--disable_tta",
                 "-o", str(out)]
    capsys.readouterr()
    assert main([*arguments, "--budget", "2"]) == 0
    printed = capsys.readouterr().out
    assert "Label next: " in printed
    page = (out / "rank.html").read_text()
    assert "data:image" in page
    assert str(tmp_path) not in page
    order = json.loads((out / "rank.json").read_text())["cases"]
    assert main([*arguments, "--anonymise", "--no-images"]) == 0
    assert order[0] in capsys.readouterr().out  # the terminal tells which scan is case 1
    assert all(case not in (out / "rank.html").read_text() for case in order)
    assert main([*arguments[:-1], str(out), "-i", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is not a folder" in error
