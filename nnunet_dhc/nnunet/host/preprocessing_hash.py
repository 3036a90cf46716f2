# SPDX-License-Identifier: Apache-2.0
"""Whether two plans preprocess alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def preprocessing_hash(plans_manager: Any, configuration_manager: Any, dataset_json: Mapping[str, Any]) -> str:
    """Hash of what preprocessing reads of the plans; plans that differ in anything else share the folder."""
    configuration = configuration_manager.configuration
    read = {
        "spacing": configuration_manager.spacing,
        "transpose_forward": plans_manager.transpose_forward,
        "normalization_schemes": configuration_manager.normalization_schemes,
        "use_mask_for_norm": configuration_manager.use_mask_for_norm,
        "intensities": plans_manager.foreground_intensity_properties_per_channel,
        "resampling_fn_data": configuration["resampling_fn_data"],
        "resampling_fn_data_kwargs": configuration["resampling_fn_data_kwargs"],
        "resampling_fn_seg": configuration["resampling_fn_seg"],
        "resampling_fn_seg_kwargs": configuration["resampling_fn_seg_kwargs"],
        "image_reader_writer": plans_manager.plans["image_reader_writer"],
        "preprocessor_name": configuration_manager.preprocessor_name,
        "channel_names": dataset_json.get("channel_names", dataset_json.get("modality")),
        "file_ending": dataset_json["file_ending"],
    }
    text = json.dumps(read, sort_keys=True, default=lambda value: value.tolist() if hasattr(value, "tolist") else
                      str(value))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
