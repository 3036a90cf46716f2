# SPDX-License-Identifier: Apache-2.0
"""The comparison as Markdown; nothing is computed here."""

from __future__ import annotations

from typing import Any

from nnunet_dhc.reporting.table_cells import (
    cases_cell,
    cost_cells,
    difference_of,
    interval_cell,
    markdown_table,
    number,
    p_text,
    scopes,
    score_of,
    scored_cell,
)


def render_markdown(comparison: dict[str, Any]) -> str:
    """Verdict, tables of scores and differences, what was run, and the rules for empty structures."""
    rows = comparison["rows"]
    names = [row["name"] for row in rows]
    parts = [f"# Comparison on {comparison['dataset']['name']}", "", f"**{comparison['verdict']['sentence']}**", ""]
    if comparison["verdict"].get("caution"):
        parts += [comparison["verdict"]["caution"], ""]
    if comparison["attribution"]["sentence"]:
        parts += [comparison["attribution"]["sentence"], ""]
    parts += [f"- Missing control: {text}." for text in comparison["attribution"]["missing"]]
    for metric in comparison["protocol"]["metrics"]:
        direction = "higher is better" if metric["higher_is_better"] else "lower is better"
        parts += ["", f"## {metric['label']} ({metric['unit']}, {direction})", "", f"{metric['definition']}.", ""]
        parts += markdown_table(["structure", "cases", *names], [
            [scope["label"], cases_cell(comparison, metric, scope["key"]), *(
                _score(row, metric, scope["key"], comparison["winners"][metric["key"]].get(scope["key"]))
                for row in rows)] for scope in scopes(comparison)] + (
            [] if metric["higher_is_better"] else
            [["scored structures", "", *(scored_cell(comparison, row, metric) for row in rows)]]))
        for entry in comparison["differences"]:
            parts += ["", f"### {entry['row']} minus {entry['against']}", ""]
            lines = []
            for scope in scopes(comparison):
                found = difference_of(entry, metric, scope["key"])
                lines.append([scope["label"], str(found["n"]), number(found["mean"], metric, signed=True),
                              interval_cell(found, metric, signed=True), p_text(found["p"]),
                              p_text(found["p_holm"]), found["claim"]])
            heading = ["structure", "pairs", "difference", "95 % interval", "p", "p (Holm)", "claim"]
            parts += markdown_table(heading, lines)
    parts += ["", "## Missed and spurious structures", ""]
    parts += markdown_table(["structure", *names], [
        [item["name"], *(f"{row['missed'][item['key']]:g} / {row['spurious'][item['key']]:g}" for row in rows)]
        for item in comparison["structures"]])
    parts += ["", "## What was compared", "", *markdown_table(["", *names], cost_cells(rows))]
    parts += ["", "## Rules for empty structures", ""]
    parts += markdown_table(["prediction", "reference", "meaning"], [
        [rule["prediction"], rule["reference"], rule["meaning"]] for rule in comparison["protocol"]["empty_rules"]])
    parts += ["", comparison["protocol"]["notes"], "", *(f"- {note}" for note in comparison["notes"])]
    parts += ["", f"_{comparison['disclaimer']} Made with nnunet_dhc {comparison['made']['nnunet_dhc']} on "
                  f"{comparison['made']['date']}._"]
    return "\n".join(parts) + "\n"


def _score(row: dict[str, Any], metric: dict[str, Any], scope: str, winner: str | None) -> str:
    found = score_of(row, metric, scope)
    text = number(found["mean"], metric)
    if row["name"] == winner:
        text = f"**{text}**"
    return f"{text} {interval_cell(found, metric)}".rstrip()
