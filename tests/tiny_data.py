# SPDX-License-Identifier: Apache-2.0
"""A tiny dataset in nnU-Net's formats, planned and preprocessed in this process, without a process pool."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

DATASET_ID = 999
DATASET_NAME = "Dataset999_Tiny"
PLANS = "nnUNetPlans"
TINY_PLANS = "nnUNetPlansTiny"
NUM_LABELED = 6
NUM_UNLABELED = 3


@dataclass(frozen=True)
class TinyDataset:
    """Folders and names of the tiny dataset; environment variables point at it while a test uses it."""

    root: Path
    dataset_id: int = DATASET_ID
    name: str = DATASET_NAME
    plans: str = PLANS
    tiny_plans: str = TINY_PLANS

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.name

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.name

    @property
    def results(self) -> Path:
        return self.root / "results" / self.name

    @property
    def images_un(self) -> Path:
        return self.raw / "imagesUn"

    def point_nnunet_here(self, patch: pytest.MonkeyPatch, num_workers: int = 0) -> None:
        """Set nnU-Net's three paths, and how many data workers it starts."""
        for folder in ("raw", "preprocessed", "results"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            patch.setenv(f"nnUNet_{folder}", str(self.root / folder))
        patch.setenv("nnUNet_n_proc_DA", str(num_workers))

    def copied_to(self, root: Path, patch: pytest.MonkeyPatch | None = None) -> TinyDataset:
        """A copy in a new folder; with ``patch`` nnU-Net's paths point at it."""
        shutil.copytree(self.root, root)
        copy = replace(self, root=root)
        if patch is not None:
            copy.point_nnunet_here(patch)
        return copy

    @property
    def dataset_json(self) -> dict:
        return json.loads((self.preprocessed / "dataset.json").read_text())

    def plans_content(self, identifier: str = TINY_PLANS) -> dict:
        return json.loads((self.preprocessed / f"{identifier}.json").read_text())

    @property
    def labeled(self) -> list[str]:
        return [f"case_{number}" for number in range(NUM_LABELED)]

    @property
    def unlabeled(self) -> list[str]:
        return [f"scan_{number}" for number in range(NUM_UNLABELED)]

    def write_split(self, folds: list[dict]) -> None:
        (self.preprocessed / "splits_final.json").write_text(json.dumps(folds))


def make_scan(seed: int, shape: tuple[int, int, int] = (28, 26, 24)) -> tuple[np.ndarray, np.ndarray]:
    """An image (int16) and its segmentation: a large, a middle and a small ball at places drawn from the seed."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"))
    image = rng.normal(100, 12, shape)
    segmentation = np.zeros(shape, np.uint8)
    for label, radius in ((1, 6.5), (2, 4.0), (3, 2.2)):
        center = [rng.uniform(radius + 1, size - radius - 1) for size in shape]
        inside = sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)) <= radius**2
        image[inside] += 70.0 * label
        segmentation[inside] = label
    return np.clip(image, 1, None).astype(np.int16), segmentation


def write_image(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    """Write an array (axes as nnU-Net sees them) with a spacing given in the same order."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(value) for value in spacing[::-1]])
    SimpleITK.WriteImage(image, str(path), True)


def write_raw_dataset(raw: Path, num_labeled: int = NUM_LABELED, num_unlabeled: int = NUM_UNLABELED) -> None:
    """Write the raw folder of the tiny dataset."""
    for folder in ("imagesTr", "labelsTr", "imagesTs", "imagesUn"):
        (raw / folder).mkdir(parents=True)
    for number in range(num_labeled):
        image, segmentation = make_scan(number)
        write_image(raw / "imagesTr" / f"case_{number}_0000.nii.gz", image)
        write_image(raw / "labelsTr" / f"case_{number}.nii.gz", segmentation)
    for number in range(num_unlabeled):
        write_image(raw / "imagesUn" / f"scan_{number}_0000.nii.gz", make_scan(100 + number)[0])
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "large": 1, "middle": 2, "small": 3},
        "numTraining": num_labeled,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))


def plan_and_preprocess(raw: Path, preprocessed: Path, configurations: tuple[str, ...] = ("3d_fullres", "2d")) -> None:
    """nnU-Net's fingerprint, plans and preprocessing in this process; ``nnUNet_*`` must point at the folders."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    preprocessed.mkdir(parents=True, exist_ok=True)
    dataset_json = json.loads((raw / "dataset.json").read_text())
    ending = dataset_json["file_ending"]
    cases = sorted(path.name[: -len(ending)] for path in (raw / "labelsTr").iterdir())
    files = {case: sorted(str(path) for path in (raw / "imagesTr").glob(f"{case}_????{ending}")) for case in cases}
    analyzed = [
        DatasetFingerprintExtractor.analyze_case(
            files[case], str(raw / "labelsTr" / f"{case}{ending}"), SimpleITKIO, 1000
        )
        for case in cases
    ]
    intensities = {}
    for channel in range(len(dataset_json["channel_names"])):
        values = np.concatenate([case[2][channel] for case in analyzed])
        low, median, high = (float(value) for value in np.percentile(values, (0.5, 50, 99.5)))
        intensities[str(channel)] = {
            "mean": float(values.mean()), "median": median, "std": float(values.std()), "min": float(values.min()),
            "max": float(values.max()), "percentile_99_5": high, "percentile_00_5": low,
        }
    fingerprint = {
        "spacings": [[float(value) for value in case[1]] for case in analyzed],
        "shapes_after_crop": [[int(value) for value in case[0]] for case in analyzed],
        "foreground_intensity_properties_per_channel": intensities,
        "median_relative_size_after_cropping": float(np.median([case[4] for case in analyzed])),
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    plans = ExperimentPlanner(preprocessed.name).plan_experiment()
    plans = json.loads((preprocessed / f"{plans['plans_name']}.json").read_text())
    (preprocessed / f"{TINY_PLANS}.json").write_text(json.dumps(tiny_plans(plans)))
    shutil.copytree(raw / "labelsTr", preprocessed / "gt_segmentations", dirs_exist_ok=True)
    plans_manager = PlansManager(plans)
    for name in configurations:
        if name not in plans_manager.available_configurations:
            continue
        configuration = plans_manager.get_configuration(name)
        folder = preprocessed / configuration.data_identifier
        folder.mkdir()
        for case in cases:
            configuration.preprocessor_class(verbose=False).run_case_save(
                str(folder / case), files[case], str(raw / "labelsTr" / f"{case}{ending}"), plans_manager,
                configuration, dataset_json,
            )


def tiny_plans(plans: dict) -> dict:
    """Plans that share the preprocessed data but have small patches and a network of a few thousand parameters."""
    plans = json.loads(json.dumps(plans))
    plans["plans_name"] = TINY_PLANS
    for name, dimensions in (("2d", 2), ("3d_fullres", 3)):
        configuration = plans["configurations"].get(name)
        if configuration is None:
            continue
        configuration["patch_size"] = [16] * dimensions
        configuration["batch_size"] = 2
        arguments = configuration["architecture"]["arch_kwargs"]
        arguments.update(
            n_stages=3,
            features_per_stage=[4, 8, 8],
            kernel_sizes=[[3] * dimensions] * 3,
            strides=[[1] * dimensions, [2] * dimensions, [2] * dimensions],
            n_conv_per_stage=[1, 1, 1],
            n_conv_per_stage_decoder=[1, 1],
        )
    return plans
