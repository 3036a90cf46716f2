# SPDX-License-Identifier: Apache-2.0
"""The comparison as a whole: numbers, verdict, attribution, renderings."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
from made_up import boxes, build_from, dataset_json, write_json, write_volume

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting import output
from nnunet_dhc.reporting.collect import Selection, collect_folders, collect_trainings
from nnunet_dhc.reporting.collection import Row, Run, check_comparable
from nnunet_dhc.reporting.compare import Options, build_comparison
from nnunet_dhc.reporting.output import write_comparison
from nnunet_dhc.reporting.protocols import PROTOCOLS, STANDARD
from nnunet_dhc.reporting.render_markdown import render_markdown
from nnunet_dhc.reporting.render_text import render_text
from nnunet_dhc.reporting.score_tables import RowScores, describe_structures
from nnunet_dhc.reporting.structures import label_space
from nnunet_dhc.reporting.table_cells import number as number_text


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
    assert build_from(finished_tree, "nnUNetTrainer")["overlays"] == []


def test_every_metric_says_what_it_is():
    for metric in (metric for protocol in PROTOCOLS.values() for metric in protocol.metrics):
        assert metric.definition
        assert math.isfinite(metric.scale)


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
