# SPDX-License-Identifier: Apache-2.0
"""Patches of unlabeled cases: shapes, sampling as in stock nnU-Net, masks, cascades, pickling and damaged files."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from bring_up_to_date import SPLIT_FOLD, update
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tiny_data import make_scan, write_image

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.unlabeled.unlabeled_loader import HiddenLabelsDataset, UnlabeledDataLoader, UnlabeledDataset

LABELS = LabelManager({"background": 0, "large": 1, "middle": 2, "small": 3}, None)


@pytest.fixture
def pool(tiny_dataset):
    return update(tiny_dataset, SPLIT_FOLD)


class WriteIntoSegmentation:
    """Transforms may write in place: what they get must be theirs."""

    def __call__(self, image, segmentation):
        segmentation += 1
        assert segmentation[0].eq(1).all()
        return {"image": image, "segmentation": segmentation}


def store(folder: Path, cases: dict[str, np.ndarray], masks: dict[str, np.ndarray] | None = None) -> UnlabeledDataset:
    for name, array in cases.items():
        blosc2.asarray(array.astype(np.float32), urlpath=str(folder / f"{name}.b2nd"))
    for name, array in (masks or {}).items():
        blosc2.asarray(array.astype(np.int8), urlpath=str(folder / f"{name}_nonzero.b2nd"))
    return UnlabeledDataset(folder, list(cases), with_nonzero_mask=masks is not None)


def transforms_for(patch_size, *, dummy_2d=False, mask=None, cascaded=False):
    return nnUNetTrainer.get_training_transforms(
        patch_size,
        (-0.5, 0.5),
        None,
        (0, 1),
        dummy_2d,
        use_mask_for_norm=mask,
        is_cascaded=cascaded,
        foreground_labels=[1, 2, 3],
    )


def test_batches_have_images_and_names_only(pool):
    loader = UnlabeledDataLoader(
        UnlabeledDataset(pool.folder, pool.identifiers), 2, (22, 22, 22), (16, 16, 16), LABELS,
        transforms=transforms_for((16, 16, 16)),
    )
    batch = next(loader)
    assert set(batch) == {"data", "keys"}
    assert batch["data"].shape == (2, 1, 16, 16, 16)
    assert batch["data"].dtype == torch.float32
    assert len(batch["keys"]) == 2 and set(batch["keys"]) <= set(pool.identifiers)


def test_samples_the_same_patches_as_stock(pool, tiny_dataset):
    """Same seed, same cases: the stock loader without oversampling draws the very same voxels."""
    cases = list(SPLIT_FOLD.unlabeled)
    stock = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(tiny_dataset.preprocessed / "nnUNetPlans_3d_fullres"), cases),
        3, (20, 20, 40), (16, 16, 16), LABELS,
    )
    ours = UnlabeledDataLoader(UnlabeledDataset(pool.folder, cases), 3, (20, 20, 40), (16, 16, 16), LABELS)
    for _ in range(3):
        np.random.seed(3)
        expected = next(stock)
        np.random.seed(3)
        batch = next(ours)
        assert list(batch["keys"]) == list(expected["keys"])
        torch.testing.assert_close(batch["data"], expected["data"], rtol=0, atol=0)


def test_2d_patches_of_3d_scans(pool):
    loader = UnlabeledDataLoader(
        UnlabeledDataset(pool.folder, pool.identifiers), 4, (22, 22), (16, 16), LABELS,
        transforms=transforms_for((16, 16)),
    )
    assert next(loader)["data"].shape == (4, 1, 16, 16)


def test_dummy_2d_augmentation(pool):
    loader = UnlabeledDataLoader(
        UnlabeledDataset(pool.folder, pool.identifiers), 2, (16, 22, 22), (16, 16, 16), LABELS,
        transforms=transforms_for((16, 16, 16), dummy_2d=True),
    )
    assert next(loader)["data"].shape == (2, 1, 16, 16, 16)


def test_scans_smaller_than_the_patch_are_padded(tmp_path):
    dataset = store(tmp_path, {"a": np.ones((2, 5, 40, 7))})
    batch = next(UnlabeledDataLoader(dataset, 2, (16, 16, 16), (16, 16, 16), LABELS))
    assert batch["data"].shape == (2, 2, 16, 16, 16)
    assert batch["data"].sum() == 2 * 2 * 5 * 16 * 7


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_several_channels_of_which_some_are_masked(tmp_path, dummy_2d):
    image = np.full((2, 20, 20, 20), 5.0)
    mask = np.zeros((1, 20, 20, 20))
    mask[:, :, :10] = -1
    dataset = store(tmp_path, {"a": image}, {"a": mask})
    only_masking = UnlabeledDataLoader(
        dataset, 1, (20, 20, 20), (20, 20, 20), LABELS, transforms=MaskImageTransform([1])
    )
    batch = next(only_masking)["data"][0]
    assert (batch[0] == 5).all()
    assert (batch[1, :, :10] == 0).all() and (batch[1, :, 10:] == 5).all()
    whole = UnlabeledDataLoader(
        dataset, 2, (16 if dummy_2d else 22, 22, 22), (16, 16, 16), LABELS,
        transforms=transforms_for((16, 16, 16), dummy_2d=dummy_2d, mask=[False, True]),
    )
    assert next(whole)["data"].shape == (2, 2, 16, 16, 16)


def test_voxels_outside_of_the_image_count_as_outside_of_the_mask(tmp_path):
    dataset = store(tmp_path, {"a": np.full((1, 8, 8, 8), 5.0)}, {"a": np.zeros((1, 8, 8, 8))})
    _, seg, _, _ = dataset.load_case("a")
    assert seg.shape == (1, 8, 8, 8)
    loader = UnlabeledDataLoader(
        dataset, 1, (16, 16, 16), (16, 16, 16), LABELS, transforms=MaskImageTransform([0], set_outside_to=-3)
    )
    image = next(loader)["data"]
    assert (image == 5).sum() == 512 and (image == -3).sum() == 16**3 - 512


def test_cascade_adds_the_previous_stage_as_channels(tmp_path):
    previous = tmp_path / "previous"
    previous.mkdir()
    segmentation = np.zeros((20, 20, 20), np.uint8)
    segmentation[:10] = 2
    blosc2.asarray(segmentation, urlpath=str(previous / "a.b2nd"))
    store(tmp_path, {"a": np.ones((1, 20, 20, 20))})
    dataset = UnlabeledDataset(tmp_path, ["a"], folder_with_segs_from_previous_stage=previous)
    _, seg, seg_prev, _ = dataset.load_case("a")
    assert seg.strides == (0, 0, 0, 0)  # takes no memory
    crop = UnlabeledDataLoader(dataset, 1, (8, 8, 8), (8, 8, 8), LABELS, transforms=WriteIntoSegmentation())
    assert next(crop)["data"].shape == (1, 1, 8, 8, 8)
    assert seg_prev.shape == (20, 20, 20)
    from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform

    transform = MoveSegAsOneHotToDataTransform(1, [1, 2, 3], remove_channel_from_source=True)
    loader = UnlabeledDataLoader(dataset, 1, (20, 20, 20), (20, 20, 20), LABELS, transforms=transform)
    batch = next(loader)["data"][0]
    assert batch.shape == (4, 20, 20, 20)
    assert (batch[2, :10] == 1).all() and batch[1].sum() == batch[3].sum() == 0
    augmented = UnlabeledDataLoader(
        dataset, 2, (22, 22, 22), (16, 16, 16), LABELS, transforms=transforms_for((16, 16, 16), cascaded=True)
    )
    assert next(augmented)["data"].shape == (2, 4, 16, 16, 16)


def test_an_ignore_label_does_not_matter(pool):
    labels = LabelManager({"background": 0, "large": 1, "ignore": 2}, None)
    loader = UnlabeledDataLoader(UnlabeledDataset(pool.folder, pool.identifiers), 2, (16,) * 3, (16,) * 3, labels)
    assert next(loader)["data"].shape == (2, 1, 16, 16, 16)


def test_one_file_is_opened_per_patch(pool, monkeypatch):
    opened = []
    original = blosc2.open
    monkeypatch.setattr(blosc2, "open", lambda *args, **kw: opened.append(kw["urlpath"]) or original(*args, **kw))
    next(UnlabeledDataLoader(UnlabeledDataset(pool.folder, pool.identifiers), 5, (16,) * 3, (16,) * 3, LABELS))
    assert len(opened) == 5
    assert all(path.endswith(".b2nd") and "_nonzero" not in path for path in opened)


def test_many_cases_are_cheap_to_pickle_and_to_draw_from(tmp_path):
    dataset = UnlabeledDataset(tmp_path, [f"case_{number:06d}" for number in range(100_000)], with_nonzero_mask=False)
    loader = UnlabeledDataLoader(dataset, 2, (16,) * 3, (16,) * 3, LABELS)
    assert len(pickle.dumps(loader)) < 3_000_000
    start = time.process_time()
    for _ in range(100):
        loader.get_indices()
    assert time.process_time() - start < 0.5  # stock turns the list into an array each time: 1.3 s here


def draw_in_another_process(loader: UnlabeledDataLoader) -> tuple[list[int], list[str]]:
    batch = next(loader)
    return list(batch["data"].shape), list(batch["keys"])


@pytest.mark.slow
def test_works_in_a_spawned_process(pool):
    loader = UnlabeledDataLoader(
        UnlabeledDataset(pool.folder, pool.identifiers), 2, (22, 22, 22), (16, 16, 16), LABELS,
        transforms=transforms_for((16, 16, 16)),
    )
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        shape, keys = processes.apply(draw_in_another_process, (loader,))
    assert shape == [2, 1, 16, 16, 16]
    assert set(keys) <= set(pool.identifiers)


def overwritten(content: bytes) -> bytes:
    return content[:900] + b"\0" * 5000 + content[5900:]


@pytest.mark.parametrize(
    ("damage", "needle"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(overwritten(path.read_bytes())), "is damaged"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(pool, damage, needle):
    path = Path(pool.folder) / "scan_1.b2nd"
    damage(path)
    loader = UnlabeledDataLoader(UnlabeledDataset(pool.folder, ["scan_1"]), 1, (28, 26, 24), (28, 26, 24), LABELS)
    with pytest.raises(UserError, match=needle) as error:
        next(loader)
    assert str(path) in str(error.value) and "nnunet_dhc preprocess" in str(error.value)


def test_the_remedy_works(pool, tiny_dataset):
    path = Path(pool.folder) / "scan_1.b2nd"
    whole = path.read_bytes()
    path.unlink()
    update(tiny_dataset, SPLIT_FOLD)
    assert len(path.read_bytes()) == len(whole)


def test_a_damaged_mask_is_named(tmp_path):
    dataset = store(tmp_path, {"a": np.ones((1, 8, 8, 8))}, {"a": np.zeros((1, 8, 8, 8))})
    (tmp_path / "a_nonzero.b2nd").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a_nonzero\.b2nd"):
        dataset.load_case("a")


def damaged_inside(path: Path) -> None:
    """A file that opens; its voxels can't be unpacked."""
    blosc2.asarray(np.random.default_rng(0).integers(0, 3, (20, 20, 20), np.uint8), urlpath=str(path), mode="w")
    path.write_bytes(overwritten(path.read_bytes()))


def test_a_damaged_prediction_of_the_previous_stage_is_named(tmp_path):
    previous = tmp_path / "previous"
    previous.mkdir()
    damaged_inside(previous / "a.b2nd")
    store(tmp_path, {"a": np.ones((1, 20, 20, 20))})
    dataset = UnlabeledDataset(tmp_path, ["a"], folder_with_segs_from_previous_stage=previous)
    with pytest.raises(UserError, match=r"previous/a\.b2nd of the case a is damaged.* with --c, which predicts"):
        next(UnlabeledDataLoader(dataset, 1, (20, 20, 20), (20, 20, 20), LABELS))


def test_a_damaged_labeled_case_is_no_file_of_the_store(tmp_path):
    """Its remedy is nnU-Net's preprocessing, which the training names."""
    blosc2.asarray(np.ones((1, 20, 20, 20), np.float32), urlpath=str(tmp_path / "a.b2nd"))
    damaged_inside(tmp_path / "a_seg.b2nd")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({}))
    dataset = HiddenLabelsDataset(nnUNetDatasetBlosc2(str(tmp_path), ["a"]), with_nonzero_mask=True)
    with pytest.raises(RuntimeError) as error:
        next(UnlabeledDataLoader(dataset, 1, (20, 20, 20), (20, 20, 20), LABELS))
    assert not isinstance(error.value, UserError)


def test_whole_way_from_scan_to_batch_with_a_mask(tiny_dataset):
    image = make_scan(60)[0]
    image[:, :13] = 0
    write_image(tiny_dataset.images_un / "half_0000.nii.gz", image)
    plans = tiny_dataset.plans_content("nnUNetPlans")
    plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True]
    pool = update(tiny_dataset, plans=plans)
    dataset = UnlabeledDataset(pool.folder, ["half", "scan_0"], with_nonzero_mask=pool.with_nonzero_mask)
    loader = UnlabeledDataLoader(
        dataset, 2, (22, 22, 22), (16, 16, 16), LABELS, transforms=transforms_for((16, 16, 16), mask=[True])
    )
    assert torch.isfinite(next(loader)["data"]).all()
