# SPDX-License-Identifier: Apache-2.0
"""The files that a run leaves beside nnU-Net's own, and the lines it prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from time import monotonic, time
from typing import TYPE_CHECKING

from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_dhc.nnunet.training.checkpoint import without_epochs
from nnunet_dhc.nnunet.training.epoch_log import EpochLog
from nnunet_dhc.nnunet.training.preparation import TrainingData
from nnunet_dhc.nnunet.training.progress_plot import FILE_NAME as PLOT_NAME
from nnunet_dhc.nnunet.training.progress_plot import plot_progress
from nnunet_dhc.nnunet.training.run_record import (
    RunRecord,
    content_hash,
    device_name,
    installed_versions,
    peak_memory_bytes,
)

if TYPE_CHECKING:
    from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer

_STEPS_MEASURED = 10
_FORWARD_PART = 1 / 3  # of a step: a backward pass costs about two forward passes
_UNLABELED_STEP = 2  # times a step on labeled patches: as many unlabeled ones beside them (mixed ones: 2.3)
_LONG_WAIT = 0.25  # of an epoch
_PLOTTING_PART = 0.02  # of the time of a training, at most


class RunFiles:
    """Writes ``dhc_run.json``, ``dhc_log.jsonl`` and ``dhc_progress.png`` of one fold.

    Args:
        folder: Output folder of the fold, None where nnUNet_results is not set.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = folder
        self._first_steps: list[tuple[float, bool]] | None = []
        self._epochs_of_this_process = 0
        self._said_that_gpu_waits = False
        self._plotted_at = self._seconds_of_plot = 0.0

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    @property
    def has_epochs(self) -> bool:
        """Whether a training in this folder has finished an epoch."""
        return bool(EpochLog(self.folder).read())

    @property
    def record(self) -> RunRecord:
        return RunRecord(self.folder)

    def start(self, trainer: PairTrainer, data: TrainingData) -> None:
        """Before the first step: the record of the run and one line for the reader."""
        cases = data.by_role
        counts = {name: len(identifiers) for name, identifiers in cases.items()}
        recipe = trainer.recipe
        used = f"{counts['unlabeled']} unlabeled" if trainer.uses_unlabeled else "no unlabeled"
        schedule = f"lambda up to {recipe.lambda_max:g}; " if trainer.has_unsupervised_patches else ""
        first, final = recipe.weight_exponent, recipe.weight_exponent_final
        exponent = "" if final in (None, first) else f", exponent {first:g} to {final:g}"
        trainer.print_to_log_file(
            f"{type(trainer).__name__}: {counts['labeled']} labeled, {used}, {counts['validation']} validation cases; "
            f"A weighted by {recipe.weighting_a}, B by {recipe.weighting_b} ({recipe.weighting_mode}{exponent}); "
            f"{schedule}{trainer.num_epochs} epochs of {trainer.num_iterations_per_epoch} steps on "
            f"{device_name(trainer.device)}"
        )
        if trainer.local_rank != 0:
            return
        EpochLog(self.folder).keep_before(trainer.current_epoch)
        record = self.record
        earlier = record.read() if trainer.current_epoch else {}
        before = record.cases_of_all_starts if trainer.current_epoch else {}
        record.update(
            trainer=type(trainer).__name__,
            plans=trainer.plans_manager.plans_name,
            configuration=trainer.configuration_name,
            fold=trainer.fold,
            versions=installed_versions(),
            recipe=recipe.to_json(),
            plans_hash=content_hash(trainer.plans_manager.plans),
            seed=trainer.seed,
            device=device_name(trainer.device),
            cases=cases,
            cases_of_all_starts={role: sorted({*now, *before.get(role, ())}) for role, now in cases.items()},
            counts=counts,
            excluded_cases={} if data.pool is None else data.pool.excluded,
            odd_cases={} if data.pool is None else data.pool.odd,
            class_names=trainer.class_names,
            labeled_voxel_counts=[int(n) for n in data.labeled_counts],
            num_epochs=trainer.num_epochs,
            iterations_per_epoch=trainer.num_iterations_per_epoch,
            batch_size=trainer.configuration_manager.batch_size,
            patch_size=list(trainer.configuration_manager.patch_size),
            parameters=sum(p.numel() for p in trainer.pair.parameters()),
            command=sys.argv,
            started=earlier.get("started", time()),
            seconds_total=earlier.get("seconds_total", 0.0),
            finished=None,
            warnings=list(data.warnings),
            **data.fingerprint,
        )

    def estimate_duration(self, trainer: PairTrainer, has_unlabeled: bool) -> None:
        """After the first steps of a run, one line that says what it will take."""
        if self._first_steps is None:
            return
        self._first_steps.append((time(), has_unlabeled))
        if len(self._first_steps) <= max(1, min(_STEPS_MEASURED, trainer.num_iterations_per_epoch - 1)):
            return
        rates = [trainer.schedule(epoch)[1] for epoch in range(trainer.current_epoch, trainer.num_epochs)]
        per_step, of_labeled = seconds_per_step(self._first_steps, sum(rates) / max(len(rates), 1))
        of_training = per_step * trainer.num_iterations_per_epoch
        # a validation step is the forward pass of both networks on as many patches as a step on labeled ones has
        of_validation = of_labeled * _FORWARD_PART * trainer.num_val_iterations_per_epoch
        hours = len(rates) * (of_training + of_validation) / 3600
        checkpoint = self.path("checkpoint_latest.pth")
        disk = 2 * os.path.getsize(checkpoint) / 1e9 if os.path.isfile(checkpoint) else 0.0
        name = without_epochs(type(trainer).__name__)
        trainer.print_to_log_file(
            f"This run will take about {hours:.1f} h, on average {per_step:.2f} s a step (final validation left out), "
            f"{peak_memory_bytes(trainer.device) / 1e9:.1f} GB of memory "
            f"and {disk:.1f} GB of disk for its checkpoints. A shorter one: -tr {name}_<N>epochs"
        )
        self._first_steps = None

    def log_epoch(self, trainer: PairTrainer, epoch: int) -> None:
        """After an epoch: one line of the log, the alarms, the curves."""
        training = trainer.statistics.read()
        seconds = trainer.timer.read()
        validation = trainer.validation
        labels_contain = [bool(n > 0) for n in trainer.data.labeled_counts[1:]]
        alarms = trainer.monitor.observe(
            labels_contain,
            (training["pseudo_label_share_a"][1:], training["pseudo_label_share_b"][1:]),
            validation["dice_mean"],
            validation["relative_logit_gap"],
        )
        starts, ends = (trainer.logger.get_value(f"epoch_{edge}_timestamps", step=-1) for edge in ("start", "end"))
        weights_a, weights_b = trainer.objective.loss_weights
        line = {
            "epoch": epoch,
            "lambda": trainer.loss_weight,
            "learning_rate": trainer.optimizer.param_groups[0]["lr"],
            **training,
            **validation,
            "class_weights_a": weights_a.tolist(),
            "class_weights_b": weights_b.tolist(),
            "unlabeled_rate": trainer.unlabeled_rate,
            "votes_a": votes_of_a(trainer),
            "seconds": {"epoch": ends - starts, "loading": trainer.dataloader_train.waited_s, **seconds},
            "peak_memory_bytes": peak_memory_bytes(trainer.device),
            "alarms": alarms,
        }
        log = EpochLog(self.folder)
        log.append(line)
        if self._plot_is_due(is_last=epoch + 1 >= trainer.num_epochs):
            self._plot(log.read(), trainer.class_names)
        self._print(trainer, line)
        self.warn_of_waiting(trainer, line["seconds"])
        record = self.record
        record.update(
            seconds_total=record.read().get("seconds_total", 0.0) + line["seconds"]["epoch"],
            peak_memory_bytes=line["peak_memory_bytes"],
        )

    def _plot_is_due(self, is_last: bool) -> bool:
        """All GPUs wait for the drawing, which takes seconds with many epochs and classes."""
        return is_last or monotonic() - self._plotted_at >= self._seconds_of_plot / _PLOTTING_PART

    def _plot(self, lines: list[dict], names: list[str]) -> None:
        begin = monotonic()
        plot_progress(lines, names, self.path(PLOT_NAME))
        self._plotted_at = monotonic()
        self._seconds_of_plot = self._plotted_at - begin

    def warn_of_waiting(self, trainer: PairTrainer, seconds: dict[str, float]) -> None:
        """Once, and not for the first epoch of a process, in which the workers start."""
        self._epochs_of_this_process += 1
        if trainer.device.type != "cuda" or self._epochs_of_this_process == 1 or self._said_that_gpu_waits:
            return
        if warning := waiting_warning(seconds, get_allowed_n_proc_DA()):
            trainer.print_to_log_file(warning)
            self._said_that_gpu_waits = True

    def end(self, trainer: PairTrainer) -> None:
        if trainer.local_rank == 0:
            self.record.update(finished=time())

    @staticmethod
    def _print(trainer: PairTrainer, line: dict) -> None:
        unlabeled = trainer.has_unsupervised_patches
        terms = [f"{name} {value:.4f}" for name, value in line["losses"].items()
                 if unlabeled or not name.startswith("unsupervised")]
        trainer.print_to_log_file("  ".join([f"lambda {line['lambda']:.5f}", *terms] if unlabeled else terms))
        share = f"unsupervised share of the gradient {line['unsupervised_gradient_share']:.3f}  " if unlabeled else ""
        trainer.print_to_log_file(
            f"agreement of A and B {line['agreement']:.3f}  {share}waiting for data {line['seconds']['loading']:.1f} s"
        )
        for name in ("skipped_steps", "amp_overflow_steps", "empty_cross_entropies"):
            if line[name]:
                trainer.print_to_log_file(f"{name.replace('_', ' ')}: {line[name]}")
        for network, no_vote in (("A", 0.0), ("B", 1.0)):
            names = [name for name, vote in zip(trainer.class_names[1:], line["votes_a"], strict=True)
                     if vote == no_vote]
            if names:
                trainer.print_to_log_file(f"{network} has no say in what it hasn't learned: {', '.join(names)}")
        for alarm in line["alarms"]:
            trainer.print_to_log_file("ALARM:", alarm)


def votes_of_a(trainer: PairTrainer) -> list[float]:
    """Part of A in what the pair says of each foreground class."""
    votes = trainer.pair.votes
    return [0.5] * (len(trainer.class_names) - 1) if votes is None else votes[0, 1:].tolist()


def seconds_per_step(ends: Sequence[tuple[float, bool]], unlabeled_rate: float) -> tuple[float, float]:
    """Mean duration of a step in a training, and that of a step without unlabeled patches, in seconds.

    Medians of both kinds of step, because the first one of each may carry compilation and the search for algorithms.

    Args:
        ends: When the first steps ended, in seconds, and whether they had unlabeled patches. The first step itself is
            left out.
        unlabeled_rate: Part of all steps that will have unlabeled patches, in [0, 1].

    Returns:
        By the number of patches where steps of one kind alone were seen; 0 for fewer than two steps.
    """
    durations: dict[bool, list[float]] = {False: [], True: []}
    for (before, _), (end, has_unlabeled) in pairwise(ends):
        durations[has_unlabeled].append(end - before)
    of_labeled, with_unlabeled = (median(durations[kind] or [0.0]) for kind in (False, True))
    of_labeled = of_labeled or with_unlabeled / _UNLABELED_STEP
    with_unlabeled = with_unlabeled or of_labeled * _UNLABELED_STEP
    return (1 - unlabeled_rate) * of_labeled + unlabeled_rate * with_unlabeled, of_labeled


def waiting_warning(seconds: Mapping[str, float], workers: int) -> str | None:
    """What to do when a GPU spends much of an epoch in waiting for patches; None when it doesn't.

    Args:
        seconds: Of an epoch: ``"epoch"`` all of it, ``"loading"`` the part spent in waiting.
        workers: Augmentation workers of each of the two loaders, labeled and unlabeled.
    """
    share = seconds["loading"] / seconds["epoch"] if seconds["epoch"] > 0 else 0.0
    if share < _LONG_WAIT:
        return None
    return (
        f"WARNING: the GPU waited for data during {share:.0%} of this epoch: with idle CPU cores, give the loaders "
        f"more workers (nnUNet_n_proc_DA, now {workers} for labeled and {workers} for unlabeled patches); without, "
        "run fewer trainings beside each other"
    )
