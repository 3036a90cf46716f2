# SPDX-License-Identifier: Apache-2.0
"""Measure what many unlabeled cases cost at the start of a training: listing, manifest, comparison, pickling.

No scan is opened: ``imagesUn`` gets links to one small file, the store gets empty files and manifest lines.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import tempfile
from pathlib import Path
from time import perf_counter, process_time

from nnunet_dhc.nnunet.unlabeled.case_preprocessing import CaseJob
from nnunet_dhc.nnunet.unlabeled.raw_images import list_image_folder
from nnunet_dhc.nnunet.unlabeled.store_update import StoreUpdate
from nnunet_dhc.nnunet.unlabeled.unlabeled_store import READY, StoreEntry, UnlabeledStore, case_files

DATASET_JSON = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}


def make_store(root: Path, num_cases: int) -> tuple[Path, Path]:
    """A folder of links, and a store that says all of them are ready."""
    images, folder = root / "imagesUn", root / "store"
    images.mkdir()
    folder.mkdir()
    (root / "scan.nii.gz").write_bytes(b"x")
    for number in range(num_cases):
        os.symlink(root / "scan.nii.gz", images / f"case_{number:06d}_0000.nii.gz")
    entries = []
    for identifier, case in list_image_folder(images, DATASET_JSON).items():
        (folder / case_files(identifier)["image"]).touch()
        voxels = f"{hash(identifier):064x}"
        made_from = (None, voxels, "plans", (1.0, 1.0, 1.0), (1, 100, 200, 200), 1)
        entries.append(StoreEntry(identifier, READY, "imagesUn", case.sources, *made_from))
    UnlabeledStore(folder).append(entries)
    return images, folder


def measure(images: Path, folder: Path) -> dict[str, float]:
    """Seconds (wall and CPU) and bytes of one start."""
    update = StoreUpdate(CaseJob({}, "3d_fullres", DATASET_JSON, str(folder), False), "plans", [], 0, False, print)
    wall, cpu = perf_counter(), process_time()
    cases = list_image_folder(images, DATASET_JSON)
    listed = perf_counter()
    store = UnlabeledStore(folder)
    read = perf_counter()
    stale = update.stale_cases(store, cases, store.complete_cases(cases))
    if stale:
        raise RuntimeError(f"{len(stale)} cases are stale")
    return {
        "cases": len(cases),
        "listing_s": listed - wall,
        "manifest_s": read - listed,
        "comparison_s": perf_counter() - read,
        "total_s": perf_counter() - wall,
        "total_cpu_s": process_time() - cpu,
        "pickled_identifiers_bytes": len(pickle.dumps(list(cases))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, nargs="+", default=[100, 100_000], help="numbers of cases")
    arguments = parser.parse_args()
    for num_cases in arguments.n:
        with tempfile.TemporaryDirectory() as root:
            print(json.dumps(measure(*make_store(Path(root), num_cases))))


if __name__ == "__main__":
    main()
