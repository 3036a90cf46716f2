# SPDX-License-Identifier: Apache-2.0
"""The manifest survives torn lines, and no case name leaves the folder or takes another's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_dhc.nnunet.host.preprocessing_hash import preprocessing_hash
from nnunet_dhc.nnunet.unlabeled.unlabeled_store import (
    EXCLUDED,
    READY,
    StoreEntry,
    UnlabeledStore,
    case_files,
    file_stem,
)

SOURCES = (("a_0000.nii.gz", 12, 34),)


def entry(identifier: str, **changes) -> StoreEntry:
    fields = {"identifier": identifier, "status": READY, "origin": "imagesUn", "sources": SOURCES, **changes}
    return StoreEntry(**fields)


def test_round_trip_and_last_line_wins(tmp_path):
    store = UnlabeledStore(tmp_path)
    store.append([entry("a", spacing=(1.0, 2.0, 3.0), shape=(1, 2, 3, 4)), entry("ü b")])
    store.append([entry("a", status=EXCLUDED, reason="NaN")])
    again = UnlabeledStore(tmp_path)
    assert again.entries == store.entries
    assert again.entries["a"].status == EXCLUDED
    assert again.entries["ü b"].sources == SOURCES


@pytest.mark.parametrize("cut", [2, 20, 60])
def test_a_torn_last_line_is_ignored_and_repaired(tmp_path, cut):
    store = UnlabeledStore(tmp_path)
    store.append([entry("a"), entry("b")])
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    torn = UnlabeledStore(tmp_path)
    assert set(torn.entries) == {"a"}
    torn.append([entry("c")])
    assert set(UnlabeledStore(tmp_path).entries) == {"a", "c"}


def test_lines_that_lack_a_field_count_as_absent(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"identifier": "a"}\nnonsense\n[1]\n')
    assert UnlabeledStore(tmp_path).entries == {}


def test_what_a_later_version_says_more_of_a_case_is_passed_over(tmp_path):
    UnlabeledStore(tmp_path).append([entry("a")])
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": 1}) + "\n")
    assert UnlabeledStore(tmp_path).entries == {"a": entry("a")}


@pytest.mark.parametrize(
    "identifier",
    ["../evil", "/etc/passwd", "a/b", "..", ".", ".hidden", "a\\b", "C:x", "nul\0", "a%2Fb", "x" * 400, "ü" * 200, "a.",
     "a ", "labeled_cases", "manifest", "bad_cases", "labeled_hashes", "scan_nonzero", ".writing-1"],
)
def test_file_names_stay_in_the_folder(tmp_path, identifier):
    own = {"manifest.jsonl", "labeled_cases.json", "bad_cases.json", "labeled_hashes.json", "preprocessing.lock"}
    for name in case_files(identifier).values():
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert len(name.encode()) < 250
        assert name not in own
        assert not name.startswith(".")
        (tmp_path / name).touch()


def test_ordinary_names_are_kept():
    for identifier in ("case_0001", "Patient 7", "ä-1", "liver.2", "BraTS2021_00000", "x" * 150):
        assert file_stem(identifier) == identifier


def test_different_cases_never_share_files():
    identifiers = ["a", "a_nonzero", "a%5Fnonzero", "a_nonzer%6F", "a/b", "a%2Fb", "x" * 300, "x" * 301, ".a", "%2Ea",
                   "manifest", "manifes%74"]
    names = [name for identifier in identifiers for name in case_files(identifier).values()]
    assert len(names) == len(set(names))


def test_temporary_files_get_their_names_before_the_line(tmp_path):
    store = UnlabeledStore(tmp_path)
    (tmp_path / "t1").write_bytes(b"image")
    (tmp_path / "a_nonzero.b2nd").write_bytes(b"left over from plans with a mask")
    (tmp_path / "t2").write_bytes(b"{}")
    store.add_ready(entry("a"), {"image": str(tmp_path / "t1"), "properties": str(tmp_path / "t2")})
    assert (tmp_path / "a.b2nd").read_bytes() == b"image"
    assert not (tmp_path / "a_nonzero.b2nd").exists()
    assert store.complete_cases(["a", "b"]) == {"a"}
    (tmp_path / "a.b2nd").unlink()
    assert store.complete_cases(["a"]) == set()


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    store = UnlabeledStore(tmp_path)
    store.append([entry("a")])
    before = (tmp_path / "manifest.jsonl").read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnunet_dhc.nnunet.unlabeled.unlabeled_store.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.append([entry("b")])
    assert (tmp_path / "manifest.jsonl").read_bytes() == before


def test_hash_depends_on_what_preprocessing_reads_only(tiny_dataset_template):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    def hashed(plans, dataset_json=tiny_dataset_template.dataset_json):
        manager = PlansManager(plans)
        return preprocessing_hash(manager, manager.get_configuration("3d_fullres"), dataset_json)

    plans = tiny_dataset_template.plans_content("nnUNetPlans")
    reference = hashed(plans)
    assert hashed(tiny_dataset_template.plans_content("nnUNetPlansTiny")) == reference
    assert hashed(tiny_dataset_template.plans_content("nnUNetPlans") | {"nnunet_dhc": {"lambda_max": 0.2}}) == reference
    changes = {
        "spacing": [1.0, 1.0, 1.5],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [True],
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "preprocessor_name": "OtherPreprocessor",
    }
    seen = {reference}
    for key, value in changes.items():
        plans = tiny_dataset_template.plans_content("nnUNetPlans")
        plans["configurations"]["3d_fullres"][key] = value
        seen.add(hashed(plans))
    plans = tiny_dataset_template.plans_content("nnUNetPlans")
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] += 1
    seen.add(hashed(plans))
    seen.add(hashed(tiny_dataset_template.plans_content("nnUNetPlans") | {"transpose_forward": [1, 0, 2]}))
    seen.add(hashed(tiny_dataset_template.plans_content("nnUNetPlans") | {"image_reader_writer": "NibabelIO"}))
    seen.add(hashed(plans, {**tiny_dataset_template.dataset_json, "channel_names": {"0": "CT"}}))
    assert len(seen) == len(changes) + 5


@pytest.mark.parametrize("kind", ["image", "nonzero", "properties"])
def test_a_case_without_one_of_its_files_is_not_complete(tmp_path, kind):
    store = UnlabeledStore(tmp_path)
    store.append([entry("a", nonzero_mask=True)])
    files = case_files("a")
    for name in files.values():
        (tmp_path / name).touch()
    assert store.complete_cases(["a"]) == {"a"}
    (tmp_path / files[kind]).unlink()
    assert store.complete_cases(["a"]) == set()


def test_a_case_that_was_excluded_later_is_not_complete(tmp_path):
    store = UnlabeledStore(tmp_path)
    for name in case_files("a").values():
        (tmp_path / name).touch()
    store.append([entry("a")])
    assert store.complete_cases(["a"]) == {"a"}
    store.append([entry("a", status=EXCLUDED, reason="NaN")])
    assert store.complete_cases(["a"]) == set()


def test_missing_folder_is_an_empty_store(tmp_path: Path):
    store = UnlabeledStore(tmp_path / "none")
    assert store.entries == {}
    assert store.complete_cases(["a"]) == set()
