# SPDX-License-Identifier: Apache-2.0
"""What the unlabeled data rely on in the installed nnU-Net; a failure here says what to look at after an update."""

from __future__ import annotations

import inspect
import re

import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading import nnunet_dataset
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_preprocessor_takes_a_case_without_a_label_and_asks_the_plans_for_the_reader():
    assert parameters(DefaultPreprocessor.run_case)[1:] == [
        "image_files", "seg_file", "plans_manager", "configuration_manager", "dataset_json",
    ]
    assert "plans_manager.image_reader_writer_class()" in inspect.getsource(DefaultPreprocessor.run_case)
    assert "if seg_file is not None" in inspect.getsource(DefaultPreprocessor.run_case)


def test_blosc2_layout_helpers():
    assert parameters(nnunet_dataset.comp_blosc2_params)[:3] == ["image_size", "patch_size", "bytes_per_pixel"]
    select_filter = nnunet_dataset.nnUNetDatasetBlosc2._select_filter
    assert parameters(select_filter) == ["arr", "blocks", "chunks", "codec", "clevel"]
    defaults = inspect.signature(nnunet_dataset.nnUNetDatasetBlosc2.save_case).parameters
    assert defaults["clevel"].default == 5
    assert "LZ4HC" in str(defaults["codec"].default)


def test_loader_hooks():
    assert parameters(nnUNetDataLoader.get_bbox)[1:4] == ["data_shape", "force_fg", "class_locations"]
    assert parameters(nnUNetDataLoader.__init__)[1:6] == [
        "data", "batch_size", "patch_size", "final_patch_size", "label_manager",
    ]
    source = inspect.getsource(nnUNetDataLoader.get_bbox)
    assert "if not force_fg and not self.has_ignore" in source  # the branch that needs no class_locations


@pytest.mark.parametrize("name", ["foreground_intensity_properties_per_channel", "transpose_forward", "dataset_name"])
def test_plans_attributes(name):
    assert isinstance(getattr(PlansManager, name), property)


@pytest.mark.parametrize(
    "name",
    ["spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name", "data_identifier", "patch_size"],
)
def test_configuration_attributes(name):
    assert isinstance(getattr(ConfigurationManager, name), property)


def test_preprocessing_reads_nothing_of_the_plans_that_the_hash_misses():
    """The names that ``run_case_npy`` and ``_normalize`` read from the managers; a new one belongs into the hash."""
    source = inspect.getsource(DefaultPreprocessor.run_case_npy) + inspect.getsource(DefaultPreprocessor._normalize)
    read = set(re.findall(r"(?:plans_manager|configuration_manager)\.(\w+)", source))
    assert read == {
        "transpose_forward", "spacing", "foreground_intensity_properties_per_channel", "resampling_fn_data",
        "resampling_fn_seg", "normalization_schemes", "use_mask_for_norm", "get_label_manager",
    }
