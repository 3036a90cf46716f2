# SPDX-License-Identifier: Apache-2.0
"""The page: well-formed, self-contained, safe with any name, complete."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from nnunet_dhc.reporting.charts import Series, line_chart, nice_range, tick, x_ticks
from nnunet_dhc.reporting.collect import Selection, collect_trainings
from nnunet_dhc.reporting.compare import Options, build_comparison
from nnunet_dhc.reporting.output import json_ready
from nnunet_dhc.reporting.overlays import _colors
from nnunet_dhc.reporting.page_scores import short_name, short_names
from nnunet_dhc.reporting.page_training import _alarms, _at, dice_courses
from nnunet_dhc.reporting.pictures import label_colors, label_picture
from nnunet_dhc.reporting.render_html import render_html
from nnunet_dhc.reporting.report import build_report, time_left
from nnunet_dhc.reporting.run_files import RunRecord

_VOID = {"meta", "img", "br", "wbr", "input", "link", "hr"}


class _Checker(HTMLParser):
    """Tags that don't close in order, ids that occur twice, and every address."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.addresses, self.texts, self.labels = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found:
            assert found["id"] not in self.ids, f"id {found['id']} occurs twice"
            self.ids.append(found["id"])
        self.addresses += [found[key] for key in ("src", "href", "action", "data") if key in found]
        if tag == "img":
            assert "alt" in found
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(comparison):
    return render_html(comparison)


def test_the_page_is_well_formed(page):
    _Checker(page)


def test_nothing_comes_from_elsewhere(page):
    for address in _Checker(page).addresses:
        assert address.startswith(("data:image/", "#")), address
    assert not re.search(r"https?://|@import|url\(", page)


def test_an_axis_of_the_protocol_of_the_paper_has_no_second_scale(finished_tree, monkeypatch):
    finished_tree.environment(monkeypatch)
    selection = Selection("901", ("nnUNetTrainer", "nnUNetTrainerDHC"))
    page = render_html(json_ready(build_comparison(collect_trainings(selection), Options("dhc", images=False))))
    assert '<span id="axis-high">100</span>' in page and '"ofDifference":"points"' in page


def test_links_lead_somewhere(page):
    checked = _Checker(page)
    for address in checked.addresses:
        if address.startswith("#"):
            assert address[1:] in checked.ids


def test_what_must_be_on_it(page, comparison):
    text = " ".join(" ".join(_Checker(page).texts).split())
    assert comparison["verdict"]["sentence"] in text
    assert "For research, not for clinical use." in text
    for row in comparison["rows"]:
        assert row["name"].replace("nnUNetTrainer", "") in text.replace(" ", "")
    for rule in comparison["protocol"]["empty_rules"]:
        assert rule["meaning"] in text
    for item in comparison["structures"]:
        assert item["name"] in text
    assert "/somewhere/nnUNetv2_train 901 3d_fullres 0" in text
    assert page.count('class="dot"') == len(comparison["rows"]) * len(comparison["cases"])


def test_names_can_do_no_harm(comparison):
    nasty = "<img src=x onerror=alert(1)></script>"
    changed = json.loads(json.dumps(comparison).replace("patient_01", nasty).replace("large box", nasty))
    page = render_html(changed)
    _Checker(page)
    assert nasty not in page
    assert "<img src=x" not in page


def test_a_page_without_images(comparison):
    plain = copy.deepcopy(comparison)
    plain["overlays"] = []
    page = render_html(plain)
    assert "data:image" not in page
    _Checker(page)


def test_the_report_of_a_training_that_still_runs(tree):
    tree.add_pair("nnUNetTrainerDHC", epochs=3, validated=False)
    report = build_report(collect_trainings(Selection("901", ["nnUNetTrainerDHC"]), unfinished=True), Options())
    sentence = report["verdict"]["sentence"]
    assert "fold 0 is at epoch 3 of 4, about 10 s left, not validated yet" in sentence
    page = render_html(report)
    _Checker(page)
    assert "Class weights" in page
    assert 'id="structures"' not in page


@pytest.mark.parametrize(("rate", "said"), [(0.5, "at least 2 min"), (1.0, "about 2 min"), (None, "about 2 min")])
def test_time_left_is_that_of_newest_epochs_and_a_lower_bound_while_they_get_longer(rate, said, tmp_path):
    seconds = [1.0] * 5 + [20.0, 20.0, 600.0, 20.0, 20.0]
    epochs = [{"epoch": epoch, "unlabeled_rate": rate, "seconds": {"epoch": value}}
              for epoch, value in enumerate(seconds)]
    assert time_left(RunRecord(tmp_path, epochs=epochs), 6) == said
    without = [{"epoch": line["epoch"], "unlabeled_rate": rate} for line in epochs]
    assert time_left(RunRecord(tmp_path, epochs=without, epochs_done=10, seconds=200.0), 6) == said


def test_the_report_of_a_validated_training(tree):
    tree.add_pair("nnUNetTrainerDHC")
    report = build_report(collect_trainings(Selection("901", ["nnUNetTrainerDHC"]), unfinished=True), Options())
    page = render_html(report)
    _Checker(page)
    assert report["verdict"]["sentence"].startswith("nnUNetTrainerDHC: mean Dice")
    assert "rare_box: none predicted" in page
    assert 'id="structures"' in page
    assert 'id="differences"' not in page


def test_the_report_of_a_stock_training(tree):
    tree.add_stock()
    collection = collect_trainings(Selection("901", ["nnUNetTrainer"]), unfinished=True)
    report = build_report(collection, Options(images=False))
    _Checker(render_html(report))


def test_short_names():
    assert short_name("nnUNetTrainer") == "nnUNetTrainer"
    assert short_name("nnUNetTrainer_250epochs") == "nnUNetTrainer 250ep"
    assert short_name("nnUNetTrainerDHC_1epoch · plansA") == "DHC 1ep · plansA"
    assert short_name("my folder") == "my folder"
    rows = [{"name": name} for name in ("DHC", "nnUNetTrainerDHC", "nnUNetTrainerCPS")]
    assert list(short_names({"rows": rows}).values()) == ["DHC", "nnUNetTrainerDHC", "CPS"]


def test_charts():
    assert line_chart("empty", [0, 1], [Series("x", [None, None], "a")]) == ""
    broken = line_chart("gap <&>", [0, 1, 2, 3], [Series("x", [1.0, None, 2.0, 3.0], "a")])
    assert broken.count("<polyline") == 1  # and one point by itself
    assert broken.count("<circle") == 1
    assert "gap &lt;&amp;&gt;" in broken
    assert nice_range(0.0, 0.97) == (0.0, 1.0)
    low, high = nice_range(3.0, 3.0)
    assert low < 3.0 < high
    assert [tick(value) for value in (0, 0.5, 12345.0, 0.00012)] == ["0", "0.5", "1e+04", "1e-04"]


def test_courses_of_all_rows_in_one_chart():
    runs = [
        {"row": "stock", "epochs": [0, 1, 3], "steps_done": [100, 200, 400], "hours_done": [0.1, 0.2, 0.4],
         "dice_mean_foreground": [0.1, 0.2, 0.4], "dice_mean": [[0.2, 0.3, 0.5], [0.0, 0.1, 0.3]]},
        {"row": "stock", "epochs": [0, 1, 3], "steps_done": [100, 200, 400], "hours_done": [0.3, 0.4, 0.6],
         "dice_mean_foreground": [0.3, 0.4, 0.6], "dice_mean": [[0.4, 0.5, 0.7], [0.2, 0.3, 0.5]]},
        {"row": "pair", "epochs": [0], "steps_done": [200], "hours_done": [0.4], "dice_mean_foreground": [0.5],
         "dice_mean": [[0.9], [None]]},
        {"row": "without a log"},
    ]
    comparison = {"training": runs, "baseline": "stock", "verdict": {"row": "pair"},
                  "rows": [{"name": "stock"}, {"name": "pair"}],
                  "structures": [{"name": "liver", "mean_volume_ml": 1500.0}, {"name": "gland", "mean_volume_ml": 3.0}]}
    courses = dice_courses(comparison)
    assert [course["title"] for course in courses] == [
        "against training steps", "against training time in minutes"]
    assert [(entry["label"], entry["style"]) for entry in courses[0]["legend"]] == [
        ("stock", "baseline"), ("pair", "subject")]
    # Three points of the first row, the mean of two runs, up to the last epoch; one of the second.
    assert [course["svg"].count("<circle") for course in courses] == [4, 4]
    assert ">400</text>" in courses[0]["svg"] and ">30</text>" in courses[1]["svg"]
    for course in courses:
        assert [chart["name"] for chart in course["structures"]] == ["gland", "liver"]  # small to large
        assert [chart["svg"].count("<polyline") for chart in course["structures"]] == [1, 1]
        assert [chart["svg"].count("<circle") for chart in course["structures"]] == [0, 1]  # pair: liver, in one epoch
    of_regions = [{**run, "dice_mean": run["dice_mean"][:1]} if "dice_mean" in run else run for run in runs]
    assert [course["structures"] for course in dice_courses({**comparison, "training": of_regions})] == [[], []]
    assert dice_courses({**comparison, "training": runs[:2]}) == []  # one row has its curves further down


def test_values_at_other_epochs():
    assert _at([0, 2, 4], [0.1, 0.3, None], [0, 1, 2, 3, 4, 5]) == pytest.approx([0.1, 0.2, 0.3, None, None, None])
    assert _at([1, 2], [0.1, 0.2], [0, 1, 2]) == [None, 0.1, 0.2]


def test_ticks_of_the_x_axis():
    assert [value for value, _ in x_ticks(0, 1250, 4)] == [0, 500, 1000, 1250]
    assert [value for value, _ in x_ticks(0, 4, 4)] == [0, 1, 2, 3, 4]
    assert [value for value, _ in x_ticks(0, 999, 1)] == [0, 999]
    assert [value for value, _ in x_ticks(3, 3, 4)] == [3, 3]


def test_an_alarm_of_several_classes_is_said_once():
    text = "Class '{}' has not appeared."
    alarms = [{"epoch": 3, "text": text.format("left_kidney")}, {"epoch": 3, "text": text.format("liver")},
              {"epoch": 4, "text": text.format("liver")}, {"epoch": 4, "text": "A and B agree everywhere."}]
    assert _alarms(alarms) == [
        {"epoch": 3, "classes": ["left kidney", "liver"], "text": "Has not appeared."},
        {"epoch": 4, "classes": ["liver"], "text": "Has not appeared."},
        {"epoch": 4, "classes": [], "text": "A and B agree everywhere."}]


def test_the_reference_is_outlined_in_white_on_a_prediction():
    prediction, reference = np.zeros((2, 8, 8), np.uint8)
    reference[2:6, 2:6] = 1
    uri = label_picture(prediction, {1: "#E69F00"}, (1.0, 1.0), 8, reference)
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))
    white = (pixels == 255).all(axis=-1)
    assert white[2:6, 2:6].sum() == white.sum() == 12  # the edge of 4 x 4, and nothing else


def test_a_structure_keeps_its_color_from_slice_to_slice():
    first = _colors({1: 1.0, 2: 1.0}, np.zeros((2, 2), int))
    second = _colors({2: 1.0, 9: 1.0}, np.zeros((2, 2), int))
    assert first[1] != first[2] == second[2]
    assert second[9] != second[2]  # 9 would have the color of 2
    assert len(label_colors(range(1, 20))) == len(set(label_colors(range(1, 20)).values())) == 7
