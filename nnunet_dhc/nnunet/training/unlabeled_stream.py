# SPDX-License-Identifier: Apache-2.0
"""The second data stream: unlabeled patches with nnU-Net's augmentation, from workers of their own."""

from __future__ import annotations

from collections.abc import Iterator

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_dhc.nnunet.reliability.damaged_files import read_without_mapping
from nnunet_dhc.nnunet.unlabeled.unlabeled_loader import HiddenLabelsDataset, UnlabeledDataLoader, UnlabeledDataset


def unlabeled_stream(trainer: nnUNetTrainer, dataset: UnlabeledDataset | HiddenLabelsDataset) -> Iterator[dict]:
    """Endless batches ``{"data": (b, c, *spatial) float32, "keys": identifiers}``.

    Patch and batch size are the trainer's (the plans', divided over DDP ranks), the augmentation is what the trainer
    gives labeled patches. The number of workers is nnU-Net's (``nnUNet_n_proc_DA``).
    """
    rotation, do_dummy_2d, initial_patch_size, mirror_axes = (
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    )
    configuration = trainer.configuration_manager
    transforms = trainer.get_training_transforms(
        configuration.patch_size,
        rotation,
        None,
        mirror_axes,
        do_dummy_2d,
        use_mask_for_norm=configuration.use_mask_for_norm,
        is_cascaded=trainer.is_cascaded,
        foreground_labels=trainer.label_manager.foreground_labels,
        regions=None,
        ignore_label=None,
    )
    loader = UnlabeledDataLoader(
        dataset,
        trainer.batch_size,
        initial_patch_size,
        configuration.patch_size,
        trainer.label_manager,
        transforms=transforms,
    )
    num_workers = get_allowed_n_proc_DA()
    if num_workers == 0:
        read_without_mapping(dataset)
        return SingleThreadedAugmenter(loader, None)
    return NonDetMultiThreadedAugmenter(
        loader,
        None,
        num_workers,
        num_cached=max(6, num_workers // 2),
        seeds=None,
        pin_memory=trainer.device.type == "cuda",
        wait_time=0.002,
    )
