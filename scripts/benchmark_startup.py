# SPDX-License-Identifier: Apache-2.0
"""What many unlabeled cases cost before the first step and in every step.

    python scripts/benchmark_startup.py --cases 100 1000 100000

The cases are hard links to one tiny image and its preprocessed form, with a manifest line each. Every number of cases
runs in a process of its own, several times in turn. "listing" is what the number of cases decides: the scan of
imagesUn, the manifest and the comparison of both; "first step" is everything from the trainer to the end of its first
step. Files are counted in steps that load in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

STEPS = 5
MOST_LINKS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=(100, 1000, 100_000))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="nnUNet_n_proc_DA; 0 loads in the process itself")
    parser.add_argument("--folder", help="where to put the files, for example on a network file system")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(start(Path(args.one[0]), int(args.one[1]), args.workers)))
    from benchmark_step import environment_of

    results: list[dict] = [{"environment": environment_of("cpu")}]
    print(json.dumps(results[0]))
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        for number in args.cases:
            make_cases(Path(root) / str(number), number)
        measured: dict[int, list[dict]] = {number: [] for number in args.cases}
        for _ in range(args.repeats):
            for number in args.cases:
                command = [sys.executable, __file__, "--workers", str(args.workers)]
                command += ["--one", str(Path(root) / str(number)), str(number)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                measured[number].append(json.loads(done.stdout.splitlines()[-1]))
    for number in args.cases:
        result = {"cases": number, **{key: median(m[key] for m in measured[number]) for key in measured[number][0]}}
        results.append(result)
        print(json.dumps(result))
    print(table(results[1:]))


def make_cases(root: Path, number: int) -> None:
    """A dataset with so many unlabeled cases, as a finished `nnunet_dhc preprocess` leaves it."""
    from benchmark_trainers import CONFIGURATION, DATASET, dataset_json, plans, use_folder, write_preprocessed_cases
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_dhc.nnunet.host.preprocessing_hash import preprocessing_hash
    from nnunet_dhc.nnunet.host.raw_images import IMAGES_UN, list_image_folder
    from nnunet_dhc.nnunet.unlabeled.unlabeled_store import READY, StoreEntry, UnlabeledStore, case_files

    shape = small_shape()
    use_folder(root)
    store = write_preprocessed_cases(root, shape)
    images = root / "raw" / DATASET / IMAGES_UN
    images.mkdir()
    first, *others = sorted(store.glob("*.b2nd"))
    for path in others:
        path.unlink()
    manager = PlansManager(plans(shape))
    made_with = preprocessing_hash(manager, manager.get_configuration(CONFIGURATION), dataset_json(shape))
    for index in range(number):
        image = images / f"scan_{index:06d}_0000.nii.gz"
        preprocessed = store / case_files(f"scan_{index:06d}")["image"]
        if index % MOST_LINKS == 0:  # file systems limit the links to one file
            image.write_bytes(b"never opened: the manifest knows it by size and time")
            shutil.copy(first, preprocessed)
            linked = image, preprocessed
        else:
            os.link(linked[0], image)
            os.link(linked[1], preprocessed)
    first.unlink()
    for name in ("dataset_fingerprint.json", "dataset.json"):  # nnU-Net copies both to the results
        (store.parent / name).write_text("{}")
    entry = StoreEntry("", READY, IMAGES_UN, (), preprocessing=made_with, spacing=(1.0,) * 3, channels=1)
    cases = list_image_folder(images, dataset_json(shape))
    UnlabeledStore(store).append(
        entry._replace(identifier=name, sources=case.sources, voxels=f"{index:032x}")
        for index, (name, case) in enumerate(cases.items())
    )


def small_shape() -> Any:
    from benchmark_trainers import Shape

    return Shape(patch=(32, 32, 32), batch=2, classes=4, features=(4, 8, 16), convolutions=1)


def start(root: Path, number: int, workers: int) -> dict[str, float]:
    """Start a training and do a few steps."""
    os.environ["nnUNet_n_proc_DA"] = str(workers)
    os.environ["nnUNet_compile"] = "false"
    import torch
    from benchmark_step import resident_bytes
    from benchmark_trainers import CONFIGURATION, dataset_json, finish_workers, plans, use_folder

    from nnunet_dhc.nnunet.training import preparation
    from nnunet_dhc.trainers.dhc import nnUNetTrainerDHC

    torch.set_num_threads(1)
    use_folder(root)
    shape = small_shape()
    seconds: dict[str, float] = {}
    with redirect_stdout(sys.stderr), timed(preparation, "bring_store_up_to_date", seconds):
        before, begin, processor = resident_bytes("VmRSS"), perf_counter(), process_time()
        content = {**plans(shape, {"num_epochs": 2}), "continue_training": False}
        trainer = nnUNetTrainerDHC(content, CONFIGURATION, 0, dataset_json(shape), torch.device("cpu"))
        trainer.initialize()
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        trainer.train_step(next(trainer.dataloader_train))
        first_step, first_step_processor = perf_counter() - begin, process_time() - processor
        assert len(trainer.data.unlabeled) == number
        grown = resident_bytes("VmRSS") - before
        with FileCounter() as files:
            for _ in range(STEPS):
                trainer.train_step(next(trainer.dataloader_train))
        record = perf_counter()
        trainer.files.start(trainer, trainer.data)
        record = perf_counter() - record
        finish_workers(trainer.dataloader_train)
    return {
        "listing_s": seconds["bring_store_up_to_date"],
        "listing_processor_s": seconds["processor"],
        "first_step_s": first_step,
        "first_step_processor_s": first_step_processor,
        "record_s": record,
        "grown_mb": grown / 1e6,
        "opened_in_a_step": files.opened / STEPS,
        "stats_in_a_step": files.stats / STEPS,
    }


@contextmanager
def timed(owner: Any, name: str, seconds: dict[str, float]):
    """Measure one function of a module."""
    function = getattr(owner, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        begin, processor = perf_counter(), process_time()
        result = function(*args, **kwargs)
        seconds[name], seconds["processor"] = perf_counter() - begin, process_time() - processor
        return result

    setattr(owner, name, measured)
    try:
        yield
    finally:
        setattr(owner, name, function)


class FileCounter:
    """Files that this process opens and stats that it asks for, in Python and through blosc2."""

    opened = stats = 0

    def __enter__(self) -> FileCounter:
        import blosc2

        self._blosc2, self._open, self._stat = blosc2, blosc2.open, os.stat
        active = [True]

        def opens(*args: Any, **kwargs: Any) -> Any:
            self.opened += 1
            return self._open(*args, **kwargs)

        def stats(*args: Any, **kwargs: Any) -> Any:
            self.stats += 1
            return self._stat(*args, **kwargs)

        def event(name: str, args: tuple) -> None:
            if active[0] and name == "open":
                self.opened += 1

        self._active = active
        sys.addaudithook(event)
        blosc2.open, os.stat = opens, stats
        return self

    def __exit__(self, *error: Any) -> None:
        self._blosc2.open, os.stat = self._open, self._stat
        self._active[0] = False


def table(results: list[dict]) -> str:
    head = "unlabeled cases | listing, s | processor, s | to the end of the first step, s | processor, s"
    head += " | record of the run, s | memory, MB | files opened in a step | stats in a step"
    lines = ["", f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for r in results:
        seconds = ("listing_s", "listing_processor_s", "first_step_s", "first_step_processor_s", "record_s")
        cells = [f"{r['cases']:,}", *(f"{r[name]:.2f}" for name in seconds), f"{r['grown_mb']:.0f}"]
        cells += [f"{r[name]:.1f}" for name in ("opened_in_a_step", "stats_in_a_step")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
