# SPDX-License-Identifier: Apache-2.0
"""Line charts as inline SVG; colors and fonts come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 8.0, 8.0, 18.0


@dataclass(frozen=True)
class Series:
    """One line; ``style`` is a class of the style sheet (``a``, ``b``, ``c0`` ...), ``xs`` its own x values."""

    label: str
    values: Sequence[float | None]
    style: str
    xs: Sequence[float] | None = None


def line_chart(title: str, xs: Sequence[float], series: Sequence[Series], width: int = 320, height: int = 150,
               floor: float | None = None, ceiling: float | None = None, points: bool = False) -> str:
    """An SVG with axes and a text for screen readers.

    Args:
        title: What the chart shows, for screen readers and as a tooltip.
        xs: Epochs; of lines with x values of their own, the range that is shown.
        series: Lines; None breaks a line.
        width: Units of the view box.
        height: Units of the view box.
        floor: Lower end of the axis, where it must not follow the data.
        ceiling: Upper end of the axis, likewise.
        points: Mark every value.
    """
    known = [value for line in series for value in line.values if value is not None]
    if not known or not xs:
        return ""
    low = min(known) if floor is None else floor
    high = max(known) if ceiling is None else ceiling
    low, high = nice_range(low, high)
    first, last = min(xs), max(xs)
    span = (last - first) or 1.0

    def x_of(value: float) -> float:
        return _LEFT + (value - first) / span * (width - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return _TOP + (high - min(max(value, low), high)) / (high - low) * (height - _TOP - _BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}">',
             f"<title>{escape(title)}</title>"]
    for value in (low, (low + high) / 2, high):
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{_LEFT:g}" x2="{width - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="tick" x="{_LEFT - 4:g}" y="{y + 3.2:.1f}" text-anchor="end">{tick(value)}</text>')
    for value, anchor in x_ticks(first, last, round((width - _LEFT) / 110)):
        parts.append(f'<text class="tick" x="{x_of(value):.1f}" y="{height - 4}" text-anchor="{anchor}">'
                     f"{_amount(value)}</text>")
    for line in series:
        tooltip = f"<title>{escape(line.label)}</title>"
        for piece in _pieces(line.xs or xs, line.values):
            shown = [(x_of(x), y_of(y)) for x, y in piece]
            if len(shown) > 1:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
                parts.append(f'<polyline class="line {line.style}" points="{path}">{tooltip}</polyline>')
            if len(shown) == 1 or points:
                parts += [f'<circle class="line {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="{2.4 if points else 2}">'
                          f"{tooltip}</circle>" for x, y in shown]
    return "".join(parts) + "</svg>"


def nice_range(low: float, high: float) -> tuple[float, float]:
    """The range, widened to round numbers."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    step = 10.0 ** math.floor(math.log10(high - low))
    for factor in (0.1, 0.2, 0.5, 1.0):
        unit = step * factor
        rounded = math.floor(low / unit + 1e-9) * unit, math.ceil(high / unit - 1e-9) * unit
        if (rounded[1] - rounded[0]) / unit <= 12:
            return rounded
    return low, high


def x_ticks(first: float, last: float, pieces: int) -> list[tuple[float, str]]:
    """Both ends, and round numbers between them that keep away from the ends; each with its text anchor."""
    ticks = [(first, "start"), (last, "end")]
    if pieces < 2 or last <= first:
        return ticks
    power = 10.0 ** math.floor(math.log10((last - first) / pieces))
    step = next(power * factor for factor in (1, 2, 5, 10) if (last - first) / (power * factor) <= pieces)
    inner = [step * number for number in range(math.ceil(first / step), math.floor(last / step) + 1)]
    apart = 0.45 * step
    return [ticks[0], *((value, "middle") for value in inner if first + apart < value < last - apart), ticks[1]]


def _amount(value: float) -> str:
    """A value of the x axis: whole from 100 on, three digits below."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tick(value: float) -> str:
    """A short number."""
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:.3g}"


def _pieces(xs: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """Runs of values without a gap."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, value in zip(xs, values, strict=False):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((x, value))
    return [piece for piece in pieces if piece]
