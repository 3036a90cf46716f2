# SPDX-License-Identifier: Apache-2.0
"""Class statistics of one step on the device, against NumPy histograms on the host.

    python scripts/benchmark_class_statistics.py -device cpu --classes 2 14 60

Both compute what the weights of a DHC step need: the voxels per class in the pseudo labels of the unlabeled patches of
both sub-networks, and from labeled patches the true positives, predicted and labeled voxels per class of A. The host
version copies the pseudo labels, int64 as argmax gives them, to the host and makes one `numpy.histogram` per patch and
quantity, as the released code does (code/train_dhc.py, class DistDW). Both are timed in turn; the ratio is the median
over pairs.
"""

from __future__ import annotations

import argparse
import json
from statistics import median

import numpy as np
import torch
from benchmark_step import Clock, environment_of, spread
from benchmark_trainers import make_label_map

from nnunet_dhc.core.label_spaces import ClassLabels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--patch", type=int, nargs=3, default=(128, 128, 128))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, nargs="+", default=(2, 14, 60))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps({"environment": environment_of(args.device)}))
    lines = ["", "| classes | on the device, ms | NumPy on the host, ms | times faster | quartiles |"]
    lines.append("|---|---|---|---|---|")
    for k in args.classes:
        result = compare(args, k)
        print(json.dumps(result))
        lines.append("| {classes} | {device_ms:.2f} | {host_ms:.0f} | {ratio:.0f} | {low:.0f} to {high:.0f} |".format(
            **result, low=result["spread"][0], high=result["spread"][1]))
    print("\n".join(lines))


def compare(args: argparse.Namespace, k: int) -> dict:
    seeds = iter(range(4 * args.batch))
    maps = [torch.stack([make_label_map(tuple(args.patch), k, next(seeds)) for _ in range(args.batch)])[:, None]
            for _ in range(4)]
    target = maps[0].to(args.device)
    pseudo_labeled, pseudo_a, pseudo_b = (label_map.to(args.device, torch.uint8) for label_map in maps[1:])
    as_indices = [label_map.long() for label_map in (pseudo_a, pseudo_b, pseudo_labeled, target)]
    labels, seconds, clock = ClassLabels(k), [], Clock(args.device)
    for _ in range(args.repeats + 1):
        clock.start()
        ours = [labels.count(pseudo_a), labels.count(pseudo_b), *labels.overlap(pseudo_labeled, target)]
        on_device = clock.stop()[0]
        clock.start()
        theirs = on_host(*as_indices, k)
        seconds.append((on_device, clock.stop()[0]))
        assert all(np.array_equal(a.cpu().numpy(), b) for a, b in zip(ours, theirs, strict=True))
    ratios = [host / device for device, host in seconds[1:]]
    return {
        "what": "class statistics", "classes": k, "device_ms": 1e3 * median(s[0] for s in seconds[1:]),
        "host_ms": 1e3 * median(s[1] for s in seconds[1:]), "ratio": median(ratios), "spread": spread(ratios),
    }


def on_host(pseudo_a, pseudo_b, pseudo_labeled, target, k: int) -> list[np.ndarray]:
    """The same five vectors from label maps that are copied to the host."""
    agreed = [p[p == t] for p, t in zip(_host(pseudo_labeled), _host(target), strict=True)]
    groups = (_host(pseudo_a), _host(pseudo_b), agreed, _host(pseudo_labeled), _host(target))
    return [sum(np.histogram(patch, range(k + 1))[0] for patch in patches) for patches in groups]


def _host(label_map: torch.Tensor) -> list[np.ndarray]:
    return [patch.cpu().numpy().reshape(-1) for patch in label_map]


if __name__ == "__main__":
    main()
