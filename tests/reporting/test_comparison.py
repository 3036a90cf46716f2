# SPDX-License-Identifier: Apache-2.0
"""The comparison as a whole: numbers, verdict, attribution, renderings."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
from made_up import boxes, dataset_json, write_json, write_volume

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.training.recipe import Recipe
from nnunet_dhc.reporting import attribution, output
from nnunet_dhc.reporting.collect import Selection, collect_folders, collect_trainings
from nnunet_dhc.reporting.collection import Row, Run, check_comparable
from nnunet_dhc.reporting.compare import Options, build_comparison
from nnunet_dhc.reporting.differences import correct, differences_from, winners
from nnunet_dhc.reporting.output import write_comparison
from nnunet_dhc.reporting.protocols import PROTOCOLS, STANDARD
from nnunet_dhc.reporting.render_markdown import render_markdown
from nnunet_dhc.reporting.render_text import render_text
from nnunet_dhc.reporting.score_tables import RowScores, describe_structures
from nnunet_dhc.reporting.statistics import holm
from nnunet_dhc.reporting.structures import label_space
from nnunet_dhc.reporting.table_cells import number as number_text
from nnunet_dhc.reporting.verdict import caution, verdict

SAME_PLANS = {"planned": "a hash", "configuration": "3d_fullres"}


def _row(comparison, name):
    return next(row for row in comparison["rows"] if row["name"] == name)


def test_means_worked_by_hand(comparison):
    # Stock moves every box by 3 voxels. Large box: 4 x 6 x 3 of 144 in common: 0.5. Small box, 3 wide: 0. Rare box, 2
    # wide: 0 where predicted, 0 where missed; both empty in none (patient_00 has none, but it is predicted: spurious).
    stock = _row(comparison, "nnUNetTrainer")
    scores = stock["scores"]["dice"]
    assert scores["structures"]["1"]["mean"] == pytest.approx(0.5)
    assert scores["structures"]["2"]["mean"] == 0.0
    assert scores["overall"]["mean"] == pytest.approx((0.5 + 0 + 0) / 3)
    assert stock["missed"] == {"1": 0, "2": 0, "3": 4}
    assert stock["spurious"] == {"1": 0, "2": 0, "3": 1}


def test_the_difference_is_the_difference_of_the_means(comparison):
    entry = next(item for item in comparison["differences"] if item["row"] == "nnUNetTrainerDHC")
    means = [_row(comparison, name)["scores"]["dice"]["overall"]["mean"]
             for name in ("nnUNetTrainerDHC", "nnUNetTrainer")]
    found = entry["metrics"]["dice"]["overall"]
    assert found["mean"] == pytest.approx(means[0] - means[1])
    assert found["low"] <= found["mean"] <= found["high"]
    assert found["comparisons"] == 3


def test_verdict_and_attribution(comparison):
    assert comparison["baseline"] == "nnUNetTrainer"
    assert comparison["verdict"]["row"] == "nnUNetTrainerDHC"
    assert comparison["verdict"]["sentence"].startswith(
        "nnUNetTrainerDHC (best of 3 compared with nnUNetTrainer) is better than nnUNetTrainer on these 8 cases")
    parts = {part["what"]: (part["row"], part["against"]) for part in comparison["attribution"]["parts"]}
    assert parts == {
        "unlabeled data": ("nnUNetTrainerDHC", "nnUNetTrainerPairSupervised"),
        "two networks and class weights": ("nnUNetTrainerPairSupervised", "nnUNetTrainer"),
        "everything together, at equal steps": ("nnUNetTrainerDHC", "nnUNetTrainer"),
        "everything together, at equal wall-clock": ("nnUNetTrainerDHC", "nnUNetTrainer_16epochs"),
        "longer training of stock nnU-Net": ("nnUNetTrainer_16epochs", "nnUNetTrainer"),
    }
    assert comparison["attribution"]["missing"] == []


def test_what_mixed_patches_give_is_told_from_what_unlabeled_scans_add(tree):
    recipe = {"paste_side": 0.67}
    tree.add_stock(epochs=4, shift=3).add_pair("nnUNetTrainerPairSupervised", shift=2, unlabeled=0)
    tree.add_pair("nnUNetTrainerDHC", shift=1, recipe=recipe)
    trainers = ["nnUNetTrainer", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC"]
    found = _build(tree, *trainers)["attribution"]
    assert found["parts"][0]["what"] == "unlabeled data and mixed patches"
    assert found["sentence"].startswith("The unlabeled data and mixed patches change nnUNetTrainerDHC by ")
    assert any(text.startswith("nnUNetTrainerPairMixed with the same plans and ") for text in found["missing"])
    tree.add_pair("nnUNetTrainerPairMixed", shift=1, unlabeled=0, recipe=recipe)
    found = _build(tree, *trainers, "nnUNetTrainerPairMixed")["attribution"]
    parts = {part["what"]: (part["row"], part["against"]) for part in found["parts"]}
    assert parts["unlabeled data"] == ("nnUNetTrainerDHC", "nnUNetTrainerPairMixed")
    assert parts["mixed patches of labeled scans"] == ("nnUNetTrainerPairMixed", "nnUNetTrainerPairSupervised")
    assert parts["two networks and class weights"] == ("nnUNetTrainerPairSupervised", "nnUNetTrainer")
    assert not any("nnUNetTrainerPair" in text for text in found["missing"])
    assert "mixed patches of labeled scans change the pair by" in found["sentence"]


def test_a_control_with_another_recipe_is_said(tree):
    tree.add_stock().add_pair("nnUNetTrainerDHC", recipe={"dice_pooled_over_batch": True, "counts_from": "unlabeled"})
    tree.add_pair("nnUNetTrainerPairSupervised", recipe={"dice_pooled_over_batch": None, "counts_from": "labeled"})
    names = "nnUNetTrainer", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC"
    said = _build(tree, *names)["attribution"]["sentence"]
    assert "against a pair without them whose recipe differs, too (in dice_pooled_over_batch)" in said
    tree.add_pair("nnUNetTrainerPairSupervised", recipe={"dice_pooled_over_batch": True, "counts_from": "labeled"})
    assert "against the same pair without them" in _build(tree, *names)["attribution"]["sentence"]


def test_a_control_from_before_there_was_abstaining_predicts_otherwise(tree):
    tree.add_stock().add_pair("nnUNetTrainerDHC", recipe={"abstain_below": 0.25, "supervised_ce": 1.0})
    tree.add_pair("nnUNetTrainerPairSupervised", recipe={"supervised_ce": 1.0})
    said = _build(tree, "nnUNetTrainer", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC")["attribution"]["sentence"]
    assert "recipe differs, too (in abstain_below)" in said


def test_a_recipe_that_follows_the_labels_of_each_fold_is_compared_fold_by_fold(tree):
    follows = [{"weight_exponent_final": 0.0}, {"weight_exponent_final": 0.5}]
    names = "nnUNetTrainer", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC"
    tree.add_stock().add_pair("nnUNetTrainerDHC", recipe=follows)
    tree.add_pair("nnUNetTrainerPairSupervised", recipe=follows)
    assert "against the same pair without them" in _build(tree, *names)["attribution"]["sentence"]
    tree.add_pair("nnUNetTrainerPairSupervised", recipe=[follows[0], follows[0]])  # the second fold alone differs
    assert "recipe differs, too (in weight_exponent_final)" in _build(tree, *names)["attribution"]["sentence"]


def test_each_setting_concerns_training_on_labels_or_does_not():
    """A new setting belongs in one of the three lists: a control that differs in one of the first is no control."""
    of_unlabeled_patches = {
        "counts_from", "unsupervised_ce", "unsupervised_dice", "unsupervised_on", "teacher", "teacher_momentum",
        "unsupervised_deep_supervision", "confidence_threshold", "lambda_max", "ramp_length", "ramp_lag_epochs",
        "unlabeled_schedule", "unlabeled_minimum_rate", "paste_side",
    }
    on_labels, of_the_run = set(attribution.SETTINGS_ON_LABELS), set(attribution.SETTINGS_OF_THE_RUN)
    assert on_labels.isdisjoint(of_unlabeled_patches | of_the_run) and of_the_run.isdisjoint(of_unlabeled_patches)
    assert on_labels | of_unlabeled_patches | of_the_run == {setting.name for setting in fields(Recipe)}


RECIPE = {"paste_side": 0.67, "lambda_max": 0.1, "supervised_ce": 1.0, "counts_from": "unlabeled", "num_epochs": 4}
OF_SUPERVISED = {**RECIPE, "counts_from": "labeled"}


def _made_up_row(name, role, recipe=None, **facts):
    runs = [{"fold": "0", "recipe": recipe}]
    return {"name": name, "role": role, "facts": {"steps": 40, "seconds": 40.0, **facts}, "runs": runs, **SAME_PLANS}


def _attribution_of(*rows):
    def contrast(*_):
        return {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 20, "p": 0.001}

    return attribution.attribution(rows, contrast, STANDARD.metrics[0], None)


@pytest.mark.parametrize(("of_mixed", "of_supervised", "said"), [
    ({"num_epochs": 8}, {}, ["the same pair without them", "scans change the pair by", "class weights change stock"]),
    ({"lambda_max": 0.2}, {"lambda_max": 0.3}, [
        "a pair without them whose recipe differs, too (in lambda_max)", "scans change the pair by",
        "class weights change stock"]),
    ({}, {"supervised_ce": 0.5}, [
        "the same pair without them", "scans change a pair whose recipe differs, too (in supervised_ce), by",
        "class weights (of a pair that differs from dhc in supervised_ce) change stock"]),
    ({"supervised_ce": 0.5}, {"supervised_ce": 0.5}, [
        "a pair without them whose recipe differs, too (in supervised_ce)", "scans change the pair by",
        "class weights (of a pair that differs from dhc in supervised_ce) change stock"]),
])
def test_each_part_names_the_settings_in_which_its_pairs_differ(of_mixed, of_supervised, said):
    found = _attribution_of(
        _made_up_row("stock", "stock"), _made_up_row("dhc", "semi-supervised", RECIPE),
        _made_up_row("mixed", "pair mixed", {**RECIPE, **of_mixed}),
        _made_up_row("supervised", "pair supervised", {**OF_SUPERVISED, **of_supervised}))
    assert [text for text in said if text not in found["sentence"]] == []


def test_missing_controls_are_named(tree):
    tree.add_stock(epochs=2).add_pair("nnUNetTrainerDHC")
    found = _build(tree, "nnUNetTrainer", "nnUNetTrainerDHC")["attribution"]
    assert [text.split(" ")[0] for text in found["missing"]] == ["nnUNetTrainerPairSupervised", "stock", "stock"]


def test_four_cases_are_too_few_for_a_claim(tree):
    tree.add_stock(shift=3).add_pair("nnUNetTrainerDHC", shift=0)
    found = _build(tree, "nnUNetTrainer", "nnUNetTrainerDHC", folds=["0"])
    assert found["verdict"]["sentence"].startswith("No claim: 4 cases are too few (6 are needed).")
    assert all(winner is None for scopes in found["winners"].values() for winner in scopes.values())


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
    against_stock = _build(tree, "nnUNetTrainer", "nnUNetTrainerDHC")
    assert against_stock["verdict"]["caution"].startswith(
        "nnUNetTrainer mirrors scans along the axes 0, 1, 2, nnUNetTrainerDHC doesn't mirror scans: the difference")
    fair = _build(tree, "nnUNetTrainerNoMirroring", "nnUNetTrainerDHC")
    assert fair["verdict"]["caution"] == ""
    both = _build(tree, "nnUNetTrainer", "nnUNetTrainerNoMirroring", "nnUNetTrainerDHC")
    parts = {part["what"]: part["against"] for part in both["attribution"]["parts"]}
    assert parts["everything together, at equal steps"] == "nnUNetTrainerNoMirroring"
    assert any("nnUNetTrainer_<N>epochs_NoMirroring take" in text for text in both["attribution"]["missing"])


def test_trainers_of_nnunet_count_as_stock():
    names = ["", "NoMirroring", "_8epochs", "_1epoch", "_2000epochs_NoMirroring", "_onlyMirror01", "PairSupervised"]
    roles = [attribution.role(f"nnUNetTrainer{name}", 0) for name in names]
    assert roles == ["stock"] * 5 + ["other", "pair supervised"]


def test_equal_rows_have_no_winner(tree):
    tree.add_stock(shift=2).add_stock("nnUNetTrainer_8epochs", shift=2, epochs=8)
    found = _build(tree, "nnUNetTrainer", "nnUNetTrainer_8epochs")
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


def test_seeds_are_averaged_within_a_case(tree, tmp_path):
    other = tmp_path / "seed2"
    tree.add_stock(shift=0).add_stock(shift=3, results=other)
    selection = Selection("901", ["nnUNetTrainer"], results_roots=(tree.results, other))
    row = build_comparison(collect_trainings(selection), Options(images=False))["rows"][0]
    # 1 without a shift, 0.5 with one of 3 voxels; still 8 cases, not 16.
    assert row["scores"]["dice"]["structures"]["1"]["mean"] == pytest.approx(0.75)
    assert row["scores"]["dice"]["structures"]["1"]["n"] == 8
    assert row["scores"]["dice"]["over_repeats"]["n"] == 2
    assert row["missed"]["3"] == 4


@pytest.mark.parametrize(("protocol", "over_repeats"), [("standard", 0.1 / 2**0.5), ("dhc", 0.05)])
def test_spread_over_seeds_and_folds_is_that_of_means_over_structures(protocol, over_repeats):
    """By hand, with the sample's deviation, or the population's as in the paper; one case a fold, and two seeds."""
    of_cases = {(0, "a"): (0.8, 0.4), (0, "b"): (0.6, None), (1, "a"): (1.0, 0.0), (1, "b"): (0.2, 0.6)}
    metrics = PROTOCOLS[protocol].metrics
    row, scored = Row("x"), []
    for (repeat, case), values in of_cases.items():
        row.runs.append(Run(repeat, {"a": "0", "b": "1"}[case], {}))
        scores = {key: {metric.key: value for metric in metrics} for key, value in zip("12", values, strict=True)}
        scored.append((row.runs[-1], {case: scores}))
    found = RowScores(row, scored, ["a", "b"], ["1", "2"]).summary(PROTOCOLS[protocol], ["all", "all"])
    found = found[metrics[0].key]
    # seeds: (0.7 + 0.4) / 2 and (0.6 + 0.3) / 2; folds: (0.9 + 0.2) / 2 and (0.4 + 0.6) / 2
    assert found["over_repeats"] == {"mean": pytest.approx(0.5), "standard_deviation": pytest.approx(over_repeats),
                                     "n": 2}
    assert found["over_folds"]["mean"] == pytest.approx(0.525)
    assert found["over_folds"]["standard_deviation"] == pytest.approx(over_repeats / 2)


def test_rows_with_other_numbers_of_repeats_say_so(tree, tmp_path):
    other = tmp_path / "seed2"
    tree.add_stock().add_stock(results=other).add_pair("nnUNetTrainerDHC")
    selection = Selection("901", ["nnUNetTrainer", "nnUNetTrainerDHC"], results_roots=(tree.results, other))
    notes = build_comparison(collect_trainings(selection), Options(images=False))["notes"]
    assert any(note.startswith("One training of nnUNetTrainerDHC: the intervals hold") for note in notes)
    assert "Rows have different numbers of repeats (results folders): nnUNetTrainer 2, nnUNetTrainerDHC 1." in notes


def test_protocol_of_the_paper_averages_cases_then_classes(tmp_path):
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    for case, reference, prediction in (("a", boxes(), boxes()), ("b", boxes(rare=False), boxes(rare=False)),
                                        ("c", boxes(), boxes(rare=False))):
        write_volume(tmp_path / "reference" / f"{case}.nii.gz", reference)
        write_volume(tmp_path / "prediction" / f"{case}.nii.gz", prediction)
    collection = collect_folders([("x", tmp_path / "prediction")], tmp_path / "reference", djfile)
    scores = build_comparison(collection, Options(protocol="dhc", images=False))["rows"][0]["scores"]
    # Rare box: 100, 1 (absent in both) and 0 (missed); distances 0, 0 and 128.
    assert scores["dice_dhc"]["structures"]["3"]["mean"] == pytest.approx(101 / 3)
    assert scores["asd_voxels"]["structures"]["3"]["mean"] == pytest.approx(128 / 3)
    assert scores["dice_dhc"]["overall"]["mean"] == pytest.approx((100 + 100 + 101 / 3) / 3)
    assert scores["asd_voxels"]["overall"]["mean"] == pytest.approx(128 / 9)


def test_unknown_protocol_baseline_and_double_rows(tree):
    tree.add_stock()
    collection = collect_trainings(Selection("901", ["nnUNetTrainer"]))
    with pytest.raises(UserError, match="no protocol"):
        build_comparison(collection, Options(protocol="other"))
    with pytest.raises(UserError, match="--baseline"):
        build_comparison(collection, Options(baseline="nnUNetTrainerX", images=False))
    with pytest.raises(UserError, match="twice"):
        collect_trainings(Selection("901", ["nnUNetTrainer", "nnUNetTrainer"]))


def test_the_table_of_fixed_numbers(comparison):
    text = render_text(comparison)
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "Dice [%], higher is better n nnUNetTrainer nnUNetTrainer 16ep PairSupervised DHC" in lines
    assert "large box 8 50.0 66.7 75.0 91.7" in lines  # moved by 3; 2; 2 and 1; 1 and 0 of 6 voxels
    assert "all 4 / 1 4 / 1 0 / 1 0 / 1" in lines
    assert "training time 10 s 40 s 40 s 40 s" in lines
    assert "labeled / unlabeled cases 3 / 0 3 / 0 3 / 0 3 / 2" in lines
    for rule in STANDARD.rules:
        assert rule.meaning in text
    assert text.rstrip().endswith("For research, not for clinical use.")


def test_markdown_tables_are_whole(comparison):
    text = render_markdown(comparison)
    assert comparison["verdict"]["sentence"] in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 40
    for first, second in pairwise(rows):
        if second.startswith("| ---"):
            assert first.count("|") == second.count("|")


def test_anonymised_comparisons_name_nobody(comparison, finished_tree, monkeypatch):
    finished_tree.environment(monkeypatch)
    collection = collect_trainings(Selection("901", ["nnUNetTrainer", "nnUNetTrainerDHC"]))
    manifest = collection.rows[1].runs[0].record.manifest
    manifest["warnings"] = ["1 unlabeled scan looks unlike the labeled ones: patient_x"]
    removed = next(iter(collection.rows[1].runs[0].predictions))
    del collection.rows[1].runs[0].predictions[removed]
    collection.notes = check_comparable(collection.rows, allow_different=True)
    assert any(removed in note.text for note in collection.notes)
    text = json.dumps(build_comparison(collection, Options(anonymise=True)))
    assert "patient_" not in text
    assert "/somewhere" not in text
    assert str(finished_tree.root) not in text
    assert "case 1" in text
    assert "was evaluated on other cases" in text
    assert "patient_00" in json.dumps(comparison)


def test_numbers_as_identifiers_change_no_figure(tmp_path):
    """Identifiers such as 1 or 20 occur in every table; numbering the cases must touch nothing else."""
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    for index in range(1, 8):
        write_volume(tmp_path / "reference" / f"{index}.nii.gz", boxes())
        for name, shift in (("one", 2), ("two", index % 2)):
            write_volume(tmp_path / name / f"{index}.nii.gz", boxes(shift))
    pages = [build_comparison(collect_folders([("one", tmp_path / "one"), ("two", tmp_path / "two")],
                                              tmp_path / "reference", djfile), Options(anonymise=anonymise))
             for anonymise in (False, True)]
    assert pages[1]["cases"] == [f"case {number}" for number in range(1, 8)]
    for key in ("verdict", "differences", "structures", "winners"):
        assert pages[0][key] == pages[1][key]
    assert list(pages[0]["rows"][0]["per_case"].values()) == list(pages[1]["rows"][0]["per_case"].values())


def test_a_structure_missed_in_every_fold_counts_once(tmp_path):
    """Folds with the same validation cases, as three draws of one labeled set have."""
    row = Row("stock")
    missed = {key: {"missed": key == "3"} for key in ("1", "2", "3")}
    found = {key: {"missed": False} for key in ("1", "2", "3")}
    scored = [(Run(0, str(fold), {}), {"a": missed, "b": found}) for fold in range(3)]
    row.runs = [run for run, _ in scored]
    assert RowScores(row, scored, ["a", "b"], ["1", "2", "3"]).count("missed") == {"1": 0, "2": 0, "3": 1}


def test_json_has_everything_and_no_nan(comparison, tmp_path):
    paths = write_comparison(comparison, tmp_path)
    assert [path.name for path in paths] == ["comparison.json", "comparison.md", "comparison.html"]
    read = json.loads(paths[0].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read == comparison
    values = read["rows"][0]["per_run"][0]["cases"]["patient_00"]["3"]
    assert values["spurious"] is True
    assert values["dice"] == 0.0


def test_no_images_when_asked(finished_tree, monkeypatch, comparison):
    assert len(comparison["overlays"]) == 3
    assert [plane["plane"] for plane in comparison["overlays"][0]["planes"]] == ["axial", "coronal", "sagittal"]
    assert len(comparison["overlays"][0]["planes"][0]["rows"]) == 4
    finished_tree.environment(monkeypatch)
    assert _build(finished_tree, "nnUNetTrainer")["overlays"] == []


def test_every_metric_says_what_it_is():
    for metric in (metric for protocol in PROTOCOLS.values() for metric in protocol.metrics):
        assert metric.definition
        assert math.isfinite(metric.scale)


def _build(tree, *trainers, folds=None, allow_different=False):
    selection = Selection("901", list(trainers), folds=folds)
    return build_comparison(collect_trainings(selection, allow_different), Options(images=False))


def test_2d_color_pictures(tmp_path):
    """Natural images in nnU-Net: one slice, three channels, no millimeters."""
    from PIL import Image

    djfile = write_json(tmp_path / "dataset.json", dataset_json(file_ending=".png"))
    for folder, shift in (("reference", 0), ("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        for case in ("a", "b"):
            Image.fromarray(boxes(shift)[2]).save(tmp_path / folder / f"{case}.png")
    (tmp_path / "images").mkdir()
    for case in ("a", "b"):
        Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "images" / f"{case}_0000.png")
    collection = collect_folders([("one", tmp_path / "one"), ("two", tmp_path / "two")], tmp_path / "reference", djfile,
                                 tmp_path / "images")
    found = build_comparison(collection, Options())
    # 6 x 6 pixels, 5 of 6 columns in common.
    assert found["rows"][0]["scores"]["dice"]["structures"]["1"]["mean"] == pytest.approx(5 / 6)
    assert [plane["plane"] for plane in found["overlays"][0]["planes"]] == ["slice"]


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


@pytest.mark.parametrize(("also", "part"), [
    ([_made_up_row("mixed", "pair mixed", RECIPE)], "mixed patches"), ([], "the unlabeled data"),
])
def test_a_missing_pair_on_labels_alone_is_named_beside_one_with_mixed_patches_too(also, part):
    found = _attribution_of(_made_up_row("stock", "stock"), _made_up_row("dhc", "semi-supervised", RECIPE), *also)
    assert found["missing"][0] == ("nnUNetTrainerPairSupervised with the same plans and number of steps: without it, "
                                   f"the part of {part} can't be told from that of two networks")
    assert any(text.startswith("nnUNetTrainerPairMixed") for text in found["missing"]) == (not also)


def test_a_control_with_the_same_recipe_but_fewer_steps_is_not_taken_before_one_with_as_many():
    rows = [_made_up_row("dhc", "semi-supervised", RECIPE), _made_up_row("short", "pair mixed", RECIPE, steps=20),
            _made_up_row("other", "pair mixed", {**RECIPE, "lambda_max": 0.2})]
    found = _attribution_of(*rows)
    assert [(part["against"], part["differing_settings"]) for part in found["parts"]] == [("other", ["lambda_max"])]
    alike = _made_up_row("alike", "pair mixed", RECIPE, steps=41)  # and of two with as many, the one with the recipe
    assert [part["against"] for part in _attribution_of(*rows, alike)["parts"]] == ["alike"]


def test_an_upper_bound_is_no_control(tree):
    tree.add_stock().add_stock("nnUNetTrainer_16epochs", epochs=16).add_pair("nnUNetTrainerDHC")
    tree.add_pair("nnUNetTrainerPairSupervised", labeled=[*tree.labeled, "another"], unlabeled=0)
    found = _build(tree, "nnUNetTrainer", "nnUNetTrainer_16epochs", "nnUNetTrainerPairSupervised", "nnUNetTrainerDHC",
                   allow_different=True)
    assert "unlabeled data" not in [part["what"] for part in found["attribution"]["parts"]]
    assert found["attribution"]["missing"][0].startswith("nnUNetTrainerPairSupervised with the same plans and ")


def test_a_training_with_other_plans_is_no_control(tree):
    """Plans that differ in their name and in our settings alone are the same plans."""
    tree.add_stock().add_pair("nnUNetTrainerPairSupervised", shift=3, unlabeled=0).add_pair("nnUNetTrainerDHC")

    def add_plans(trainer, name, **planned):
        folder = tree.model(trainer).with_name(f"{trainer}__{name}__3d_fullres")
        shutil.copytree(tree.model(trainer), folder)
        write_json(folder / "plans.json", {"plans_name": name, **planned})

    def parts(*more):
        rows = "nnUNetTrainer", "nnUNetTrainerPairSupervised", "half=nnUNetTrainerDHC@nnUNetPlansHalf", *more
        found = _build(tree, *rows)["attribution"]
        return {part["what"]: part["against"] for part in found["parts"]}, found["missing"]

    add_plans("nnUNetTrainerDHC", "nnUNetPlansHalf", configurations={"3d_fullres": {"batch_size": 1}})
    of_parts, missing = parts()
    assert of_parts == {}
    assert missing[0].startswith("nnUNetTrainerPairSupervised with the same plans")
    add_plans("nnUNetTrainerPairSupervised", "nnUNetPlansControl", nnunet_dhc={"supervised_ce": 1},
              configurations={"3d_fullres": {"batch_size": 1}})
    of_parts, _ = parts("control=nnUNetTrainerPairSupervised@nnUNetPlansControl")
    assert of_parts == {"unlabeled data": "control"}


def test_references_that_no_row_predicted_are_noted(tmp_path):
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    for case in ("a", "b", "c"):
        write_volume(tmp_path / "reference" / f"{case}.nii.gz", boxes())
    for case in ("a", "b"):
        write_volume(tmp_path / "one" / f"{case}.nii.gz", boxes())
    notes = collect_folders([("one", tmp_path / "one")], tmp_path / "reference", djfile).notes
    assert [note.text for note in notes] == [
        "1 of 3 references have no prediction in any row and count nowhere: c ..."]
    assert "c ..." not in notes[0].anonymous


def test_a_folder_given_twice_is_refused(tmp_path):
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    for folder in ("reference", "one"):
        write_volume(tmp_path / folder / "a.nii.gz", boxes())
    with pytest.raises(UserError, match="given twice"):
        collect_folders([("one", tmp_path / "one"), ("one", tmp_path / "reference" / ".." / "one")],
                        tmp_path / "reference", djfile)


def test_protocol_of_the_paper_warns_of_an_empty_row(tmp_path):
    """There absent structures that nobody paints have a score, too; they are none that a row could find."""
    for case in range(8):
        write_volume(tmp_path / "reference" / f"c{case}.nii.gz", boxes(small=False, rare=False))
        write_volume(tmp_path / "empty" / f"c{case}.nii.gz", boxes() * 0)
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    collection = collect_folders([("empty", tmp_path / "empty")], tmp_path / "reference", djfile)
    found = build_comparison(collection, Options(protocol="dhc", images=False))
    assert "empty leaves 8 of 8 structures empty" in found["verdict"]["caution"]


def test_structures_come_in_the_order_of_nnunets_logs():
    labels = {"background": 0, "spleen": 2, "liver": 1}
    assert [structure.name for structure in label_space({"labels": labels}).structures] == ["liver", "spleen"]
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    assert [structure.name for structure in label_space({"labels": regions}).structures] == ["whole", "core"]


def test_label_maps_of_floating_point_numbers_are_shown(tree):
    tree.add_stock().add_stock("nnUNetTrainer_8epochs", epochs=8, shift=1)
    for folder in (tree.preprocessed, tree.model("nnUNetTrainer")):
        for path in folder.rglob("patient_*.nii.gz"):
            write_volume(path, sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float32))
    collection = collect_trainings(Selection("901", ["nnUNetTrainer", "nnUNetTrainer_8epochs"]))
    comparison = build_comparison(collection, Options())
    assert len(comparison["overlays"]) > 0 and not any("No picture" in note for note in comparison["notes"])


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


def test_a_row_named_stock_is_stock(tmp_path):
    for case in range(8):
        for name, shift in (("reference", 0), ("Stock", 2), ("nnUNetTrainerDHC", 1)):
            write_volume(tmp_path / name / f"c{case}.nii.gz", boxes(shift))
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    rows = [(name, tmp_path / name) for name in ("nnUNetTrainerDHC", "Stock")]
    found = build_comparison(collect_folders(rows, tmp_path / "reference", djfile), Options(images=False))
    assert found["baseline"] == "Stock" and found["rows"][1]["role"] == "stock"
    assert [text for text in found["attribution"]["missing"] if text.startswith("stock")] == [
        "stock nnU-Net with the same wall-clock (of nnU-Net's trainers nnUNetTrainer_<N>epochs take the one that "
        "trains about as long)"]
    assert "paired by case" not in found["verdict"]["sentence"]


def test_what_rounds_to_0_has_no_sign():
    metric = vars(STANDARD.metrics[0])
    assert [number_text(value, metric, signed=True) for value in (-0.0001, 0.0001, 0.001, -0.001)] == [
        "0.0", "0.0", "+0.1", "\N{MINUS SIGN}0.1"]


def test_units_of_values_and_differences():
    units = {metric.unit: (metric.unit_of_value, metric.unit_of_difference)
             for protocol in PROTOCOLS.values() for metric in protocol.metrics}
    assert units == {"%": ("%", "points"), "0-100": ("", "points"), "mm": ("mm", "mm"), "voxels": ("voxels", "voxels")}


def test_one_case_is_no_cases(tmp_path):
    for name in ("reference", "one"):
        write_volume(tmp_path / name / "c.nii.gz", boxes())
    djfile = write_json(tmp_path / "dataset.json", dataset_json())
    found = build_comparison(collect_folders([("one", tmp_path / "one")], tmp_path / "reference", djfile),
                             Options(images=False))
    assert ": 1 case, protocol" in render_text(found)


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


def test_stock_with_other_labels_is_no_control():
    def row(name, role, labeled):
        facts = {"labeled_cases": labeled, "steps": 40, "seconds": 40.0}
        return {"name": name, "role": role, "facts": facts, "runs": [], **SAME_PLANS}

    def contrast(*_):
        return {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 20, "p": 0.01}

    for labeled, found in ((4, True), (20, False)):
        rows = [row("stock", "stock", labeled), row("pair", "semi-supervised", 4)]
        parts = attribution.attribution(rows, contrast, STANDARD.metrics[0], "pair")["parts"]
        assert ("everything together, at equal steps" in [part["what"] for part in parts]) == found


@pytest.mark.parametrize(("steps", "seconds", "found"), [
    (42, 10.0, ["everything together, at equal steps"]), (44, 10.0, []),
    (10, 46.0, ["everything together, at equal wall-clock"]), (10, 47.0, []),
])
def test_steps_are_equal_within_5_and_times_within_15_percent(steps, seconds, found):
    def row(name, role, **facts):
        return {"name": name, "role": role, "facts": facts, "runs": [], **SAME_PLANS}

    def contrast(*_):
        return {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 20, "p": 0.01}

    rows = [row("stock", "stock", steps=steps, seconds=seconds), row("pair", "semi-supervised", steps=40, seconds=40.0)]
    judged = attribution.attribution(rows, contrast, STANDARD.metrics[0], "pair")
    assert [part["what"] for part in judged["parts"]] == found


def test_the_parts_of_a_gain_are_corrected_together():
    def row(name, role, steps):
        return {"name": name, "role": role, "facts": {"steps": steps, "seconds": 40.0}, "runs": [], **SAME_PLANS}

    found = {("pair", "control"): 0.019, ("control", "stock"): 0.019, ("pair", "stock"): 0.019}

    def contrast(name, against):
        return {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 20, "p": found[name, against]}

    rows = [row("stock", "stock", 40), row("control", "pair supervised", 40), row("pair", "semi-supervised", 40)]
    judged = attribution.attribution(rows, contrast, STANDARD.metrics[0], "pair")
    assert {part["what"]: part["p_holm"] for part in judged["parts"]}["unlabeled data"] == pytest.approx(3 * 0.019)
    assert {part["claim"] for part in judged["parts"]} == {"no claim"}
    assert judged["sentence"].count("(no claim)") == 3


def test_volume_of_a_structure_is_that_where_it_is():
    volumes = np.array([[9.0, 5.0, 4.0], [9.0, 0.0, 4.0], [9.0, 0.0, 4.0]])
    found = describe_structures([("1", "a"), ("2", "b"), ("3", "c")], volumes)
    assert [item["mean_volume_ml"] for item in found] == [9, 5, 4]
    assert [item["group"] for item in found] == ["frequent", "medium", "rare"]
    assert [item["cases_present"] for item in found] == [3, 1, 3]


def test_a_kill_leaves_the_old_comparison(comparison, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    (tmp_path / "comparison.json").write_text("old")
    monkeypatch.setattr(output.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_comparison(comparison, tmp_path)
    assert (tmp_path / "comparison.json").read_text() == "old"


def test_a_region_may_hold_the_background():
    labels = label_space({"labels": {"background": 0, "all": [0, 1, 2], "core": 2}})
    assert [structure.name for structure in labels.structures] == ["all", "core"] and labels.covers_background
