# SPDX-License-Identifier: Apache-2.0
"""Which differences are claimed, which numbers are bold, and what is said beside them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from made_up import boxes, build_from, dataset_json, write_json, write_volume

from nnunet_dhc.reporting.collect import collect_folders
from nnunet_dhc.reporting.collection import Row
from nnunet_dhc.reporting.compare import Options, build_comparison
from nnunet_dhc.reporting.differences import correct, differences_from, winners
from nnunet_dhc.reporting.output import write_comparison
from nnunet_dhc.reporting.protocols import STANDARD
from nnunet_dhc.reporting.render_markdown import render_markdown
from nnunet_dhc.reporting.render_text import render_text
from nnunet_dhc.reporting.statistics import holm
from nnunet_dhc.reporting.verdict import caution, verdict


def test_four_cases_are_too_few_for_a_claim(tree):
    tree.add_stock(shift=3).add_pair("nnUNetTrainerDHC", shift=0)
    found = build_from(tree, "nnUNetTrainer", "nnUNetTrainerDHC", folds=["0"])
    assert found["verdict"]["sentence"].startswith("No claim: 4 cases are too few (6 are needed).")
    assert all(winner is None for scopes in found["winners"].values() for winner in scopes.values())


def test_seven_cases_carry_a_claim_about_four_rows_but_not_about_five():
    found = {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 7}

    def judged(num_rows):
        family = [{**found, "p": 2 / 2**7} for _ in range(num_rows - 1)]
        correct(family, STANDARD.metrics[0])
        scores = {"scores": {"dice": {"overall": {"mean": 0.5}}}}
        differences = [{"row": f"r{i}", "against": "r0", "metrics": {"dice": {"overall": entry}}}
                       for i, entry in enumerate(family, 1)]
        return verdict([{"name": f"r{i}", **scores} for i in range(num_rows)], differences, STANDARD.metrics[0], 7)

    assert judged(4)["claim"] == "better"
    assert judged(5)["claim"] == "no claim"
    assert judged(5)["sentence"].endswith(
        "; 7 cases are too few for a test to confirm it (8 are needed with 4 comparisons).")


def test_a_row_that_finds_next_to_nothing_is_no_yardstick():
    rows = [{"name": "stock", "missed": {"1": 5, "2": 4}, "facts": {}},
            {"name": "pair", "missed": {"1": 5, "2": 0}, "facts": {}}]
    judged = {"row": "pair", "against": "stock"}
    assert caution(rows, judged, 10).startswith("Read with care: stock leaves 9 of 10 structures empty, ")
    assert caution(rows[1:], {"row": "pair", "against": None}, 10) == ""
    assert caution(rows[:1], {"row": "stock", "against": None}, 10) == (
        "Read with care: stock leaves 9 of 10 structures empty, as after too short or failed training.")


def test_a_difference_in_mirroring_is_said_and_stock_without_it_preferred(tree):
    tree.add_stock().add_stock("nnUNetTrainerNoMirroring", mirroring="None")
    tree.add_pair("nnUNetTrainerDHC", mirroring="None")
    against_stock = build_from(tree, "nnUNetTrainer", "nnUNetTrainerDHC")
    assert against_stock["verdict"]["caution"].startswith(
        "nnUNetTrainer mirrors scans along the axes 0, 1, 2, nnUNetTrainerDHC doesn't mirror scans: the difference")
    fair = build_from(tree, "nnUNetTrainerNoMirroring", "nnUNetTrainerDHC")
    assert fair["verdict"]["caution"] == ""
    both = build_from(tree, "nnUNetTrainer", "nnUNetTrainerNoMirroring", "nnUNetTrainerDHC")
    parts = {part["what"]: part["against"] for part in both["attribution"]["parts"]}
    assert parts["everything together, at equal steps"] == "nnUNetTrainerNoMirroring"
    assert any("nnUNetTrainer_<N>epochs_NoMirroring take" in text for text in both["attribution"]["missing"])


def test_equal_rows_have_no_winner(tree):
    tree.add_stock(shift=2).add_stock("nnUNetTrainer_8epochs", shift=2, epochs=8)
    found = build_from(tree, "nnUNetTrainer", "nnUNetTrainer_8epochs")
    assert "No difference" in found["verdict"]["sentence"]
    assert all(winner is None for scopes in found["winners"].values() for winner in scopes.values())


class MadeUpScores:
    """Scores of a row; values of each case, for one structure or a list of them for several."""

    def __init__(self, name, values):
        self.row, self._values = Row(name), np.array(values).reshape(len(values), -1)
        self.keys = tuple(str(column + 1) for column in range(self._values.shape[1]))

    def matrix(self, _):
        return self._values

    def matrix_beside(self, *_):
        return self._values

    def part_with_value(self, _):
        return (~np.isnan(self._values)).astype(float)


def test_a_row_that_beats_only_some_of_the_others_is_not_bold():
    best = [0.8 + 0.01 * case for case in range(8)]
    close = [value + (0.02 if case % 2 else -0.03) for case, value in enumerate(best)]
    rows = [MadeUpScores("far", [value - 0.3 for value in best]), MadeUpScores("best", best)]
    protocol = replace(STANDARD, metrics=STANDARD.metrics[:1])
    assert winners(rows, protocol, ["all"], [])["dice"]["overall"] == "best"
    assert winners([*rows, MadeUpScores("close", close)], protocol, ["all"], [])["dice"]["overall"] is None


def test_a_row_whose_distances_leave_structures_out_is_never_bold():
    metric = next(metric for metric in STANDARD.metrics if not metric.higher_is_better)
    complete = [5.0 + 0.1 * case for case in range(8)]
    for missed, bold in (([], "near"), ([7], None)):
        near = MadeUpScores("near", [np.nan if case in missed else value - 2 for case, value in enumerate(complete)])
        found = winners([near, MadeUpScores("far", complete)], replace(STANDARD, metrics=(metric,)), ["all"], [])
        assert found[metric.key]["overall"] == found[metric.key]["1"] == bold


def test_distances_that_one_seed_of_two_lacks_are_no_complete_ones(tmp_path):
    """Row x is perfect in one seed and empty in the other; y is off by a voxel in both."""
    for case in range(8):
        write_volume(tmp_path / "reference" / f"c{case}.nii.gz", boxes())
        for name, voxels in (("y1", boxes(1)), ("y2", boxes(1)), ("x1", boxes()), ("x2", boxes() * 0)):
            write_volume(tmp_path / name / f"c{case}.nii.gz", voxels)
    inputs = [(name[0], tmp_path / name) for name in ("y1", "y2", "x1", "x2")]
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    found = build_comparison(collect_folders(inputs, tmp_path / "reference", djfile), Options(images=False))
    assert found["winners"]["hd95_mm"]["overall"] is None
    assert [row["scores"]["hd95_mm"]["scored"] for row in found["rows"]] == [24, 12]
    assert "12 of 24" in render_text(found)


@pytest.mark.parametrize(("of_a", "of_b", "expected", "is_that_of_the_means"), [
    (1, 0, -1 / 3, False), (3, 0, -1.0, True), (1, 3, 2 / 3, False), (0, 0, None, True),
])
def test_painting_an_absent_structure_in_some_seeds(tmp_path, of_a, of_b, expected, is_that_of_the_means):
    for case in range(8):
        write_volume(tmp_path / "reference" / f"c{case}.nii.gz", boxes(rare=False))
        for name, seeds_that_paint in (("a", of_a), ("b", of_b)):
            for seed in range(3):
                write_volume(tmp_path / f"{name}{seed}" / f"c{case}.nii.gz", boxes(rare=seed < seeds_that_paint))
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    rows = [(name, tmp_path / f"{name}{seed}") for name in ("b", "a") for seed in range(3)]
    found = build_comparison(collect_folders(rows, tmp_path / "reference", djfile), Options(images=False))
    of_dice = found["differences"][0]["metrics"]["dice"]
    assert of_dice["structures"]["3"]["mean"] == (None if expected is None else pytest.approx(expected))
    reason = " %, " if is_that_of_the_means else "; paired by case "
    assert reason in found["verdict"]["sentence"]
    of_dice["overall"] |= {"n": 4, "claim": "too few cases"}
    few = verdict(found["rows"], found["differences"], STANDARD.metrics[0], 4)["sentence"]
    assert few.startswith("No claim") and reason.replace(" %, ", " %: ") in few


def test_better_in_the_mean_of_structures_and_worse_in_most_cases_is_no_claim():
    """One structure is a little worse in all cases, the other, which few have, much better."""
    draw = np.random.default_rng(0)
    before = np.full((60, 2), 0.5)
    before[6:, 1] = np.nan
    after = before + np.stack([draw.normal(-0.01, 0.005, 60), draw.normal(0.3, 0.05, 60)], axis=1)
    entry, = differences_from(MadeUpScores("b", before), [MadeUpScores("a", after)], STANDARD, ["all", "all"])
    overall = entry["metrics"]["dice"]["overall"]
    assert overall["low"] > 0 and overall["claim"] == "no claim"


def test_painting_an_absent_structure_is_paid_for_in_the_difference(tmp_path):
    """The organ is a little better in "paints"; the rare box is absent from eight of ten cases, and it paints it."""
    for number in range(10):
        has_rare = number < 2
        write_volume(tmp_path / "reference" / f"c{number}.nii.gz", boxes(rare=has_rare))
        write_volume(tmp_path / "paints" / f"c{number}.nii.gz", boxes())
        leaves = boxes(rare=has_rare)
        leaves[1, 1:3, 1] = 0
        write_volume(tmp_path / "leaves" / f"c{number}.nii.gz", leaves)
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    rows = [(name, tmp_path / name) for name in ("leaves", "paints")]
    found = build_comparison(collect_folders(rows, tmp_path / "reference", djfile), Options(images=False))
    difference = found["differences"][0]["metrics"]["dice"]
    assert difference["structures"]["3"]["mean"] == pytest.approx(-0.8)
    assert difference["structures"]["3"]["claim"] == difference["overall"]["claim"] == "worse"
    assert difference["structures"]["1"]["claim"] == "better"
    assert found["winners"]["dice"]["3"] == found["winners"]["dice"]["overall"] == "leaves"
    assert "paints is worse than leaves" in found["verdict"]["sentence"]
    assert re.search(r"rare box +2 to 10 ", render_text(found)) and "| rare box | 2 to 10 |" in render_markdown(found)


def test_p_values_are_corrected_for_all_rows_and_structures(comparison):
    metrics = [item["metrics"]["dice"] for item in comparison["differences"]]
    for family in ([item["overall"] for item in metrics],
                   [entry for item in metrics for entry in item["structures"].values()]):
        p_values = [entry["p"] for entry in family]
        assert [entry["p_holm"] for entry in family] == holm(p_values) != p_values


def test_a_difference_without_a_test_is_no_comparison():
    family = [{"mean": 0.1, "low": 0.05, "high": 0.15, "n": 10, "p": p} for p in (0.01, None, 0.02)]
    correct(family, STANDARD.metrics[0])
    assert [(entry["p_holm"], entry["comparisons"]) for entry in family] == [(0.02, 2), (None, 2), (0.02, 2)]
    assert [entry["claim"] for entry in family] == ["better", "no claim", "better"]


def test_a_difference_that_is_not_claimed_is_never_bold():
    metric = next(metric for metric in STANDARD.metrics if not metric.higher_is_better)
    far = [5.0 + 0.1 * case for case in range(8)]
    rows = [MadeUpScores("near", [value - 2 for value in far]), MadeUpScores("far", far)]
    scopes = {"overall": {"claim": "no claim"}, "groups": {}, "structures": {"1": {"claim": "better"}}}
    differences = [{"row": "near", "metrics": {metric.key: scopes}}]
    found = winners(rows, replace(STANDARD, metrics=(metric,)), ["all"], differences)
    assert found[metric.key] == {"overall": None, "1": "near"}


@pytest.mark.parametrize(("of_last", "bold"), [("worse", "baseline"), ("no claim", None)])
def test_a_baseline_is_bold_only_where_every_other_row_is_claimed_to_be_worse(of_last, bold):
    best = [0.6 + 0.01 * case for case in range(8)]
    rows = [MadeUpScores("baseline", best), *(MadeUpScores(name, [value - 0.2 for value in best]) for name in "ab")]
    differences = [{"row": name, "metrics": {"dice": {"overall": {"claim": claimed}, "groups": {},
                                                      "structures": {"1": {"claim": "worse"}}}}}
                   for name, claimed in (("a", "worse"), ("b", of_last))]
    found = winners(rows, replace(STANDARD, metrics=STANDARD.metrics[:1]), ["all"], differences)
    assert found["dice"] == {"overall": bold, "1": "baseline"}


def test_a_structure_of_a_single_case_leaves_no_interval_and_no_claim(tmp_path):
    """The rare box is in one of eight cases; row b is better in every case, and most of all there."""
    for case in range(8):
        for name, shift in (("reference", 0), ("b", 1 if case else 0), ("a", 2)):
            write_volume(tmp_path / name / f"c{case}.nii.gz", boxes(shift, rare=case == 0))
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    rows = [(name, tmp_path / name) for name in "ab"]
    found = build_comparison(collect_folders(rows, tmp_path / "reference", djfile), Options(images=False))
    overall = found["differences"][0]["metrics"]["dice"]["overall"]
    assert (overall["n"], overall["low"], overall["high"], overall["claim"]) == (8, None, None, "no claim")
    assert found["verdict"]["sentence"].endswith("; no interval can be given: some structures have too few cases.")
    assert found["winners"]["dice"]["overall"] is None and found["winners"]["dice"]["1"] == "b"
    write_comparison(found, tmp_path / "pages")
    assert "None" not in render_text(found) + render_markdown(found)
