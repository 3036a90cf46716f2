# SPDX-License-Identifier: Apache-2.0
"""The comparison as one self-contained page: no network, no file beside it. Nothing is computed here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nnunet_dhc.reporting import page_scores, page_training, table_cells

_WORD_STARTS = re.compile(r"(?<=nnUNetTrainer)|(?<=[a-z])(?!Trainer)(?=[A-Z][a-z])|(?=_)")
_TEMPLATES = Path(__file__).parent / "templates"


def render_html(comparison: dict[str, Any]) -> str:
    """The page of a comparison or of one training."""
    from markupsafe import Markup

    environment = page_environment()
    environment.filters.update(cases=table_cells.cases_text, count=table_cells.count,
                               duration=table_cells.duration, dash=table_cells.or_dash,
                               short=page_scores.short_names(comparison).__getitem__, svg=Markup,
                               breakable=_breakable, hash=_short_hash, units=_with_units)
    scored = bool(comparison.get("cases"))
    context: dict[str, Any] = {
        "c": comparison,
        "scored": scored,
        "training": page_training.training_runs(comparison),
        "agreement": page_training.agreement_chart(comparison),
        "courses": page_training.dice_courses(comparison),
        "costs": page_training.costs(comparison),
        "tiles": comparison.get("tiles", []),
    }
    if scored:
        context.update(
            summary=page_scores.summary_table(comparison),
            cards=page_scores.class_cards(comparison),
            matrix=page_scores.difference_matrix(comparison) if comparison["differences"] else [],
            dots=page_scores.case_dots(comparison),
            attribution_bars=_attribution_bars(comparison),
            data=Markup(_script_json(page_scores.page_data(comparison))),
            tiles=page_scores.tiles(comparison) or comparison.get("tiles", []),
        )
    page: str = environment.get_template("page.html.j2").render(context)
    return page


def page_environment() -> Any:
    """Jinja's, with our templates, and ``style`` and ``script`` for every page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    for name, file in (("style", "style.css"), ("script", "script.js")):
        environment.globals[name] = Markup((_TEMPLATES / file).read_text(encoding="utf-8"))
    return environment


def _breakable(name: str) -> Any:
    """A name that may be broken before its words, on a narrow screen."""
    from markupsafe import Markup

    return Markup("<wbr>").join(_WORD_STARTS.split(name))


def _with_units(text: str) -> str:
    """No line ends between a number and its unit."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%").replace(" points", "\N{NO-BREAK SPACE}points")


def _short_hash(value: str | None) -> Any:
    """The first characters of a hash, the whole of it as a tooltip."""
    from markupsafe import Markup

    if not value:
        return table_cells.DASH
    return Markup('<code title="{}">{}</code>').format(value, value[:8])


def _attribution_bars(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Parts of a gain on one scale with a line at 0."""
    metric = comparison["protocol"]["metrics"][0]
    parts = [part for part in comparison["attribution"]["parts"] if part["mean"] is not None]
    known = [0.0, *(part[key] for part in parts for key in ("mean", "low", "high") if part[key] is not None)]
    low, high = min(known), max(known)
    span = (high - low) or 1.0

    def percent(value: float | None) -> float | None:
        return None if value is None else round(3.0 + 94.0 * (value - low) / span, 2)

    return [{**part, "zero": percent(0.0), "left": percent(part["mean"]), "from": percent(part["low"]),
             "to": percent(part["high"]),
             "text": table_cells.number(part["mean"], metric, signed=True),
             "interval": table_cells.interval_cell(part, metric, signed=True)} for part in parts]


def _script_json(data: dict[str, Any]) -> str:
    """JSON that can't end the script element it stands in."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
