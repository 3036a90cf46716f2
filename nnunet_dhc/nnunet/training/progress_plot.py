# SPDX-License-Identifier: Apache-2.0
"""``dhc_progress.png``: the curves of ``dhc_log.jsonl``, the class weights drawn as in the paper's Fig. 4."""

from __future__ import annotations

import io
import os
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_dhc.nnunet.host.atomic_files import replace_file

FILE_NAME = "dhc_progress.png"
# Okabe-Ito: told apart by colour-blind readers.
_COLOR_A, _COLOR_B, _COLOR_MEAN, _COLOR_OTHER = "#0072B2", "#D55E00", "#009E73", "#666666"


def plot_progress(lines: list[dict[str, Any]], class_names: list[str], path: str | os.PathLike) -> None:
    """Draw all curves of a run.

    Args:
        lines: Epoch log, one dictionary an epoch.
        class_names: Names of the k classes, background first.
        path: PNG to write (by a rename).
    """
    # nnU-Net's own progress.png enlarges all fonts of the process
    with matplotlib.style.context("default"):
        content = io.BytesIO()
        _draw(lines, class_names).savefig(content, format="png")
    replace_file(path, content.getvalue())


def _draw(lines: list[dict[str, Any]], class_names: list[str]) -> Figure:
    figure = Figure(figsize=(15, 13), dpi=80, layout="constrained")
    axes = figure.subplots(3, 2)
    epochs = np.array([line["epoch"] for line in lines])
    _plot_losses(axes[0, 0], epochs, lines)
    _plot_dice(axes[0, 1], epochs, lines)
    for axis, network in ((axes[1, 0], "a"), (axes[1, 1], "b")):
        _plot_by_class(axis, epochs, lines, f"class_weights_{network}", class_names)
        axis.set_title(f"class weights of sub-network {network.upper()}")
    _plot_by_class(axes[2, 0], epochs, lines, "pseudo_label_share_b", class_names)
    axes[2, 0].set(title="class shares of B's pseudo labels", yscale="log")
    _plot_by_class(axes[2, 1], epochs, lines, "dice_mean", class_names[1:], first_color=1)
    axes[2, 1].set(title="Dice by class (A and B together, validation patches)", ylim=(0, 1))
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9)
    for axis in axes.flat:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        for line in lines:
            if line.get("alarms"):
                axis.axvline(line["epoch"], color="red", linewidth=0.8, linestyle=":")
    return figure


def _series(lines: list[dict[str, Any]], *keys: str) -> np.ndarray:
    values = []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        values.append(np.nan if value is None else value)
    return np.array(values, dtype=float)


def _plot_losses(axis: Axes, epochs: np.ndarray, lines: list[dict[str, Any]]) -> None:
    for term, color, style in (
        ("supervised_a", _COLOR_A, "-"),
        ("supervised_b", _COLOR_B, "-"),
        ("unsupervised_a", _COLOR_A, ":"),
        ("unsupervised_b", _COLOR_B, ":"),
    ):
        axis.plot(epochs, _series(lines, "losses", term), color=color, linestyle=style, label=term.replace("_", " "))
    rising = axis.twinx()
    rising.plot(epochs, _series(lines, "lambda"), color=_COLOR_OTHER, linestyle="--", label="lambda (right)")
    rising.plot(
        epochs,
        _series(lines, "unsupervised_gradient_share"),
        color=_COLOR_OTHER,
        linestyle="-.",
        label="gradient share of the unsupervised term (right)",
    )
    rising.set_ylim(bottom=0)
    handles = [*axis.get_lines(), *rising.get_lines()]
    axis.legend(handles, [h.get_label() for h in handles], fontsize=8, loc="best", framealpha=0.6)
    axis.set_title("losses")


def _plot_dice(axis: Axes, epochs: np.ndarray, lines: list[dict[str, Any]]) -> None:
    for key, color, label in (("dice_a", _COLOR_A, "A"), ("dice_b", _COLOR_B, "B"), ("dice_mean", _COLOR_MEAN, "both")):
        means = [np.mean([d for d in line.get(key, []) if d is not None] or [np.nan]) for line in lines]
        axis.plot(epochs, means, color=color, label=f"Dice of {label}")
    axis.plot(epochs, _series(lines, "agreement"), color=_COLOR_OTHER, linestyle="--", label="agreement of A and B")
    axis.set(title="mean foreground Dice on validation patches", ylim=(0, 1))
    axis.legend(fontsize=8)


def _plot_by_class(
    axis: Axes, epochs: np.ndarray, lines: list[dict[str, Any]], key: str, names: list[str], first_color: int = 0
) -> None:
    colors = colormaps["viridis"](np.linspace(0, 0.95, len(names) + first_color))
    styles = ("-", "--", ":")
    for index, name in enumerate(names):
        values = [
            np.nan if index >= len(line.get(key) or []) or line[key][index] is None else line[key][index]
            for line in lines
        ]
        axis.plot(
            epochs,
            values,
            color=colors[index + first_color],
            linestyle=styles[(index + first_color) % 3],
            marker="." if len(lines) < 15 else None,
            label=name,
        )
