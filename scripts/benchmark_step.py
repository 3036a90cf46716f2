# SPDX-License-Identifier: Apache-2.0
"""What a training step of this package costs, as a ratio to a stock nnU-Net step in the same process.

    python scripts/benchmark_step.py -device cpu --threads 1
    python scripts/benchmark_step.py -device cuda --patch 128 128 128 --features 32 64 128 256 320 320

Steps of both trainers alternate, so that whatever else the machine does meets both; the ratio is the median over pairs
of neighboring steps, with its quartiles. Results: one JSON line each, then a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any

PARTS = (
    "transfer", "forward A", "forward B", "pseudo labels", "class weights", "losses", "backward", "clip", "optimizer"
)


def main() -> None:
    args = read_arguments()
    os.environ["nnUNet_compile"] = "true" if args.compile else "false"
    if args.peak_of:
        return print(json.dumps(peak_memory(args, args.peak_of)))
    results = []
    for result in measure(args):
        results.append(result)
        print(json.dumps(result), flush=True)
    print(table(results))


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """All results, each as soon as it is known."""
    yield {"environment": environment(args)}
    with tempfile.TemporaryDirectory() as folder:
        for loaders in args.loaders:
            yield from time_steps(args, Path(folder), loaders)
        if not args.no_parts:
            yield from time_parts(args, Path(folder))
    if not args.no_memory:
        yield from compare_peaks(args)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-tr", default="nnUNetTrainerDHC", help="trainer to compare with stock")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each trainer")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=14, help="background included")
    parser.add_argument("--features", type=int, nargs="+", default=(32, 64, 128, 256, 320))
    parser.add_argument("--convolutions", type=int, default=2, help="in each stage")
    parser.add_argument("--threads", type=int, default=None, help="of torch on the CPU")
    parser.add_argument("--loaders", nargs="+", choices=("synthetic", "real"), default=["synthetic"])
    parser.add_argument("--low-memory", action="store_true", help="time the low-memory mode as well")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="settings of the recipe")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True, help="on CUDA")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on CUDA, as nnU-Net does")
    parser.add_argument("--no-parts", action="store_true", help="timing them splits compiled graphs")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile is None:
        args.compile = args.device == "cuda"
    return args


def build(args: argparse.Namespace, folder: Path, mode: str, loaders: str = "synthetic") -> Any:
    """A trainer of one mode: "stock", "normal" or "low memory"."""
    import torch
    from benchmark_trainers import Shape, make_trainer, use_folder, write_preprocessed_cases

    torch.set_num_threads(args.threads or torch.get_num_threads())
    torch.backends.cudnn.benchmark = True  # as in nnUNetv2_train
    use_folder(folder)
    shape = Shape(tuple(args.patch), args.batch, args.classes, tuple(args.features), args.convolutions)
    settings = {"unlabeled_schedule": "always"}  # a step with unlabeled patches is what is timed
    settings |= {name: json.loads(value) for name, value in (text.split("=", 1) for text in args.set)}
    settings["low_memory"] = "on" if mode == "low memory" else "off"
    unlabeled = None
    if loaders == "real":
        unlabeled = folder / "preprocessed" / "Dataset998_Benchmark" / "benchmark_3d_unlabeled"
        if not unlabeled.is_dir():
            write_preprocessed_cases(folder, shape)
    torch.manual_seed(0)
    name = "nnUNetTrainer" if mode == "stock" else args.tr
    if args.compile:
        compile_everywhere()
    with redirect_stdout(sys.stderr):  # nnU-Net's greetings
        trainer = make_trainer(name, shape, torch.device(args.device), settings, unlabeled)
    if args.device == "cuda" and not args.amp:
        switch_amp_off(trainer)
    return trainer


def compile_everywhere() -> None:
    """Also on the CPU, where nnU-Net never compiles whatever nnUNet_compile says."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    nnUNetTrainer._do_i_compile = lambda trainer: True


def switch_amp_off(trainer: Any) -> None:
    """nnU-Net has no switch for it: no scaler, and autocast that does nothing."""
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as stock
    from nnunetv2.utilities.helpers import dummy_context

    from nnunet_dhc.nnunet.training import whole_step

    trainer.grad_scaler = None
    for module in (stock, whole_step):
        module.autocast = lambda *args, **kwargs: dummy_context()


class Clock:
    """Wall-clock and processor seconds between `start` and `stop`; waits for the device at both."""

    def __init__(self, device: str) -> None:
        self._on_cuda = device == "cuda"

    def _wait(self) -> None:
        if self._on_cuda:
            import torch

            torch.cuda.synchronize()

    def start(self) -> None:
        self._wait()
        self._wall, self._cpu = perf_counter(), process_time()

    def stop(self) -> tuple[float, float]:
        self._wait()
        return perf_counter() - self._wall, process_time() - self._cpu


def time_steps(args: argparse.Namespace, folder: Path, loaders: str) -> list[dict]:
    from benchmark_trainers import finish_workers

    modes = ["stock", "normal", *(["low memory"] if args.low_memory else [])]
    trainers = {mode: build(args, folder, mode, loaders) for mode in modes}
    clock, seconds = Clock(args.device), {mode: [] for mode in modes}
    waited = dict.fromkeys(modes, 0.0)
    for step in range(args.warmup + args.steps):
        for mode, trainer in trainers.items():
            clock.start()
            batch = next(trainer.dataloader_train)
            loaded, _ = clock.stop()
            trainer.train_step(batch)
            if step >= args.warmup:
                seconds[mode].append(clock.stop())
                waited[mode] += loaded
    for trainer in trainers.values():
        finish_workers(trainer.dataloader_train)
    results = []
    for mode in modes:
        wall = [step[0] for step in seconds[mode]]
        result = {"what": "step", "mode": mode, "loaders": loaders, "seconds": median(wall), "spread": spread(wall)}
        result["waiting_for_data"] = waited[mode] / sum(wall)
        for other in modes[: modes.index(mode)]:
            pairs = list(zip(seconds[mode], seconds[other], strict=True))
            ratios = [own[0] / base[0] for own, base in pairs]
            name = {"stock": "ratio_to_stock", "normal": "ratio_to_normal"}[other]
            result[name], result[f"{name}_spread"] = median(ratios), spread(ratios)
            if args.device == "cpu" and loaders == "synthetic":
                result[f"{name}_processor_time"] = median(own[1] / base[1] for own, base in pairs)
        results.append(result)
    return results


def spread(values: Any) -> list[float]:
    """Lower and upper quartile."""
    values = list(values)
    quartiles = quantiles(values, n=4) if len(values) > 1 else values * 3
    return [round(quartiles[0], 4), round(quartiles[2], 4)]


def time_parts(args: argparse.Namespace, folder: Path) -> list[dict]:
    """Seconds of the parts of a normal step, each with a wait for the device at its ends."""
    from benchmark_parts import PartTimer

    modes = ["normal", *(["low memory"] if args.low_memory else [])]
    results = []
    for mode in modes:
        trainer = build(args, folder, mode)
        timer = PartTimer(trainer, Clock(args.device))
        steps = []
        for step in range(args.warmup + args.steps):
            timer.seconds.clear()
            clock = Clock(args.device)
            batch = next(trainer.dataloader_train)
            clock.start()
            trainer.train_step(batch)
            if step >= args.warmup:
                steps.append({"whole": clock.stop()[0], **timer.seconds})
        timer.remove()
        whole = median(step["whole"] for step in steps)
        for part in PARTS:
            values = [step.get(part, 0.0) for step in steps]
            shares = [step.get(part, 0.0) / step["whole"] for step in steps]
            results.append(
                {"what": "part", "mode": mode, "part": part, "seconds": median(values), "share": median(shares)}
            )
        named = [sum(step.get(part, 0.0) for part in PARTS) for step in steps]
        rest = median(step["whole"] - known for step, known in zip(steps, named, strict=True))
        results.append({"what": "part", "mode": mode, "part": "rest", "seconds": rest, "share": rest / whole})
    return results


def peak_memory(args: argparse.Namespace, mode: str) -> dict:
    """Peak of a few steps of one mode, in a process of its own; on the CPU what the trainer adds to the process."""
    import torch

    from nnunet_dhc.trainers.lookup import trainer_class

    trainer_class(args.tr)  # what importing takes is no trainer's memory
    on_cuda = args.device == "cuda"
    before = None if on_cuda else resident_bytes("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(args, Path(folder), mode)
        if not on_cuda:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        for _ in range(3):
            trainer.train_step(next(trainer.dataloader_train))
    if on_cuda:
        return {"what": "memory", "mode": mode, "peak_bytes": torch.cuda.max_memory_allocated()}
    return {"what": "memory", "mode": mode, "peak_bytes": resident_bytes("VmHWM") - before}


def resident_bytes(field: str) -> int:
    """Memory of this process, now ("VmRSS") or at most ("VmHWM"); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def compare_peaks(args: argparse.Namespace) -> list[dict]:
    modes = ["stock", "normal", *(["low memory"] if args.low_memory else [])]
    results = []
    for mode in modes:
        # glibc keeps small freed pieces otherwise, and the peak would hold them
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        command = [sys.executable, *sys.argv, "--peak-of", mode]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        result = json.loads(done.stdout.splitlines()[-1])
        results.append(result)
        result["ratio_to_stock"] = result["peak_bytes"] / results[0]["peak_bytes"]
    return results


def environment(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    on_cuda = args.device == "cuda"
    return environment_of(args.device) | {"amp": on_cuda and args.amp, "compile": args.compile}


def environment_of(device: str) -> dict[str, Any]:
    """What a figure needs to be understood."""
    import torch

    from nnunet_dhc.nnunet.training.run_record import device_name, installed_versions

    return {
        "command": "python " + " ".join(sys.argv),
        "device": device_name(torch.device(device)),
        "processor": processor(),
        "versions": {name: installed_versions()[name] for name in ("python", "torch", "nnunetv2", "nnunet_dhc")},
        "cuda": torch.version.cuda if device == "cuda" else None,
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def table(results: list[dict]) -> str:
    """The results for a reader, in Markdown."""
    lines = ["", "| step | loaders | s | quartiles | to stock | quartiles | to normal | waiting for data |",
             "|---|---|---|---|---|---|---|---|"]
    for r in (r for r in results if r.get("what") == "step"):
        stock, normal = (f"{r[n]:.3f}" if n in r else "" for n in ("ratio_to_stock", "ratio_to_normal"))
        low, high = r["spread"]
        quartiles = "{:.3f} to {:.3f}".format(*r["ratio_to_stock_spread"]) if stock else ""
        lines.append(
            f"| {r['mode']} | {r['loaders']} | {r['seconds']:.3f} | {low:.3f} to {high:.3f} | {stock} | {quartiles} "
            f"| {normal} | {100 * r['waiting_for_data']:.1f} % |"
        )
    parts = [r for r in results if r.get("what") == "part"]
    if parts:
        lines += ["", "| part | mode | s | share |", "|---|---|---|---|"]
        lines += [f"| {r['part']} | {r['mode']} | {r['seconds']:.4f} | {100 * r['share']:.2f} % |" for r in parts]
    memory = [r for r in results if r.get("what") == "memory"]
    if memory:
        lines += ["", "| peak memory | MB | to stock |", "|---|---|---|"]
        lines += [f"| {r['mode']} | {r['peak_bytes'] / 1e6:.0f} | {r['ratio_to_stock']:.3f} |" for r in memory]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
