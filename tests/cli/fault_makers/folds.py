# SPDX-License-Identifier: Apache-2.0
"""Faults of the split file."""

from __future__ import annotations

import numpy as np
from console import configure
from tiny_data import TinyDataset, make_scan

USUAL = {"train": ["case_0", "case_1"], "val": ["case_2"], "unlabeled": ["case_3", "case_4"]}


def usual(dataset: TinyDataset) -> None:
    """No fault: two labeled cases, one for validation, two unlabeled ones."""
    dataset.write_split([USUAL])


def no_labeled(dataset: TinyDataset) -> None:
    dataset.write_split([{**USUAL, "train": []}])


def no_validation(dataset: TinyDataset) -> None:
    dataset.write_split([{**USUAL, "val": []}])


def unknown_case(dataset: TinyDataset) -> None:
    dataset.write_split([{**USUAL, "train": ["case_0", "case_77"]}])


def overlapping(dataset: TinyDataset) -> None:
    dataset.write_split([{**USUAL, "val": ["case_0", "case_2"]}])


def leaking(dataset: TinyDataset) -> None:
    dataset.write_split([{**USUAL, "unlabeled": ["case_1", "case_3"]}])


def broken_json(dataset: TinyDataset) -> None:
    (dataset.preprocessed / "splits_final.json").write_text('[{"train": ["case_0",')


def three_labeled(dataset: TinyDataset) -> None:
    """Three cases and no split file: nnU-Net's own five folds would fail."""
    for case in dataset.labeled[3:]:
        for path in (dataset.preprocessed / "nnUNetPlans_3d_fullres").glob(f"{case}*"):
            path.unlink()
    _short(dataset)


def class_without_labels(dataset: TinyDataset) -> None:
    """Take the class "small" out of the preprocessed labels of the training cases."""
    import blosc2

    usual(dataset)
    for case in USUAL["train"]:
        path = dataset.preprocessed / "nnUNetPlans_3d_fullres" / f"{case}_seg.b2nd"
        array = blosc2.open(str(path))
        content, chunks, blocks = np.where(array[:] == 3, 0, array[:]).astype(array.dtype), array.chunks, array.blocks
        path.unlink()
        blosc2.asarray(content, urlpath=str(path), chunks=chunks, blocks=blocks)
    assert (make_scan(0)[1] == 3).any()
    _short(dataset)


def _short(dataset: TinyDataset) -> None:
    configure(dataset, num_epochs=1000, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1)
