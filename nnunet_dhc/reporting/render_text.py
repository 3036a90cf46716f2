# SPDX-License-Identifier: Apache-2.0
"""The comparison as a table on a terminal; nothing is computed here."""

from __future__ import annotations

from typing import Any

from nnunet_dhc.reporting.page_scores import short_names
from nnunet_dhc.reporting.table_cells import cases_cell, cases_text, cost_cells, scopes, score_cell, scored_cell
from nnunet_dhc.reporting.text_table import aligned


def render_text(comparison: dict[str, Any], color: bool = False) -> str:
    """Verdict, one table per metric (structures down, rows across), costs, and the rules for empty structures."""
    rows = comparison["rows"]
    headings = list(short_names(comparison).values())
    lines = [f"{comparison['dataset']['name']}: {cases_text(len(comparison['cases']))}, "
             f"protocol {comparison['protocol']['name']}", "", comparison["verdict"]["sentence"]]
    if comparison["verdict"].get("caution"):
        lines.append(comparison["verdict"]["caution"])
    if comparison["attribution"]["sentence"]:
        lines.append(comparison["attribution"]["sentence"])
    lines += [f"Missing control: {text}." for text in comparison["attribution"]["missing"]]
    for metric in comparison["protocol"]["metrics"]:
        arrow = "higher is better" if metric["higher_is_better"] else "lower is better"
        table = [[f"{metric['label']} [{metric['unit']}], {arrow}", "n", *headings]]
        bold: list[list[bool]] = [[False] * (len(rows) + 2)]
        for scope in scopes(comparison):
            table.append([scope["label"], cases_cell(comparison, metric, scope["key"]),
                          *(score_cell(row, metric, scope["key"]) for row in rows)])
            winner = comparison["winners"][metric["key"]].get(scope["key"])
            bold.append([False, False, *(row["name"] == winner for row in rows)])
        if not metric["higher_is_better"]:
            table.append(["scored structures", "", *(scored_cell(comparison, row, metric) for row in rows)])
            bold.append([False] * len(table[0]))
        lines += ["", *aligned(table, bold=bold if color else None)]
    found = [["missed / spurious structures", *headings],
             ["all", *(f"{sum(row['missed'].values()):g} / {sum(row['spurious'].values()):g}" for row in rows)]]
    lines += ["", *aligned(found)]
    lines += ["", *aligned([["", *headings], *cost_cells(rows)])]
    lines += ["", "Empty structures (prediction, reference):"]
    lines += [f"  {rule['prediction']}, {rule['reference']}: {rule['meaning']}"
              for rule in comparison["protocol"]["empty_rules"]]
    lines += ["", *comparison["notes"], comparison["disclaimer"]]
    return "\n".join(lines) + "\n"
