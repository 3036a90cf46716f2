# SPDX-License-Identifier: Apache-2.0
"""Time the scoring of large cases, and how much the crops save: python scripts/benchmark_compare.py --shape 512 512 300

Cases are synthetic: classes of the sizes of abdominal organs (the largest 4 % of the body, the smallest a few hundred
voxels), with a prediction that is moved, ragged, and sprinkled with stray voxels far away. The plain computation is
what most published evaluation scripts do: per class, two erosions and two distance transforms of the whole volume.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from scipy import ndimage

from nnunet_dhc.reporting.evaluate import score_pairs
from nnunet_dhc.reporting.image_files import simple_itk
from nnunet_dhc.reporting.metrics import score_arrays
from nnunet_dhc.reporting.protocols import STANDARD
from nnunet_dhc.reporting.structures import label_space

SPACING_ZYX = (2.5, 0.8, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300), metavar=("X", "Y", "Z"))
    parser.add_argument("--classes", type=int, default=15)
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("-np", type=int, default=1, help="processes that score the files")
    parser.add_argument("--plain", type=int, default=1, help="classes that the plain computation is timed on, 0: none")
    args = parser.parse_args()
    shape = tuple(args.shape[::-1])
    labels = label_space({"labels": {"background": 0, **{f"class_{k}": k for k in range(1, args.classes + 1)}}})
    print(f"{args.cases} cases of {' x '.join(map(str, args.shape))} voxels with {args.classes} classes, "
          f"{args.np} processes, {os.cpu_count()} cores, {platform.processor() or platform.machine()}")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(min(args.np, args.cases)) as pool:
        jobs = [pool.submit(write_case, Path(folder), seed, shape, args.classes) for seed in range(args.cases)]
        pairs = [job.result() for job in jobs]
        started = time.perf_counter()
        score_pairs(pairs, labels, STANDARD, args.np)
        seconds = time.perf_counter() - started
        print(f"files to scores: {seconds / args.cases:.1f} s per case, {seconds:.1f} s in all")
    prediction, reference = make_case(0, shape, args.classes)
    simple_itk().ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    started = time.process_time()  # processor time: other work on the machine doesn't count
    scores = score_arrays(prediction, reference, SPACING_ZYX, labels, STANDARD)
    cropped = time.process_time() - started
    print(f"arrays to scores: {cropped:.1f} s per case of one core")
    if args.plain:
        timed = [plain_assd(prediction == label, reference == label) for label in range(1, args.plain + 1)]
        for label, (value, _) in enumerate(timed, 1):
            np.testing.assert_allclose(value, scores[str(label)]["assd_mm"], rtol=1e-6)
        plain = sum(spent for _, spent in timed) / args.plain * args.classes
        print(f"plain computation: {plain:.0f} s per case of one core (from {args.plain} of {args.classes} classes), "
              f"{plain / cropped:.0f} times as long")


def write_case(folder: Path, seed: int, shape: tuple[int, ...], classes: int) -> tuple[Path, Path]:
    """Files of one case, compressed as nnU-Net's are."""
    sitk = simple_itk()
    paths = []
    for name, voxels in zip(("prediction", "reference"), make_case(seed, shape, classes), strict=True):
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(SPACING_ZYX[::-1])
        paths.append(folder / f"{name}_{seed}.nii.gz")
        sitk.WriteImage(image, str(paths[-1]))
    return paths[0], paths[1]


def make_case(seed: int, shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a reference."""
    rng = np.random.default_rng(seed)
    reference = np.zeros(shape, dtype=np.uint8)
    body = float(np.prod(shape)) * 0.45
    for label in range(1, classes + 1):
        volume = body * 0.04 * (2e-4 ** ((label - 1) / max(1, classes - 1)))  # frequent to rare, geometrically
        radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
        stretch = rng.uniform(0.7, 1.3, size=3)
        radii = np.maximum(radius * stretch / stretch.prod() ** (1 / 3) * np.array([0.6, 1.29, 1.29]), 2.0)
        center = [rng.uniform(r, max(r + 1, length - r)) for r, length in zip(radii, shape, strict=True)]
        low = [max(0, int(c - r) - 1) for c, r in zip(center, radii, strict=True)]
        high = [min(length, int(c + r) + 2) for c, r, length in zip(center, radii, shape, strict=True)]
        grid = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, center, radii, strict=True))
        part = reference[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        part[distance + 0.1 * rng.random(part.shape) < 1.0] = label
    prediction = np.roll(reference, (1, 3, -2), axis=(0, 1, 2))
    stray = [rng.integers(0, length, size=4 * classes) for length in shape]
    prediction[tuple(stray)] = rng.integers(1, classes + 1, size=4 * classes)
    return prediction, reference


def plain_assd(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Mean surface distance without any crop, and the seconds it took."""
    started = time.process_time()
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    total = [ndimage.distance_transform_edt(~other, sampling=SPACING_ZYX)[own]
             for own, other in (edges, edges[::-1])]
    return float(np.concatenate(total).mean()), time.process_time() - started


if __name__ == "__main__":
    main()
