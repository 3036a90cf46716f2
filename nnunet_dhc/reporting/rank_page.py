# SPDX-License-Identifier: Apache-2.0
"""Write a ranking: JSON first, then a table, CSV, Markdown and a self-contained page. Nothing is computed here."""

from __future__ import annotations

import csv
import io
import json
from html import escape
from pathlib import Path
from typing import Any

from nnunet_dhc.reporting.charts import nice_range, tick
from nnunet_dhc.reporting.compare import header
from nnunet_dhc.reporting.output import json_ready, write_text
from nnunet_dhc.reporting.rank_pictures import add_rank_pictures
from nnunet_dhc.reporting.render_html import page_environment
from nnunet_dhc.reporting.table_cells import markdown_table
from nnunet_dhc.reporting.text_table import aligned

_LINES_AFTER_BUDGET = 10
_HARDLY_TRAINED = 0.6
_DASH = "\u2013"
_NOTES = (
    "Disagreement of a structure: 1 - Dice of the hard predictions of A and B. Entropy: of the mean of both softmax "
    "outputs, over the voxels where A or B predicts the structure, over ln k. Score: the mean over structures of the "
    "mean of both, so that small structures count like large ones.",
    "A structure that neither A nor B finds in a scan counts there with its mean over the other scans; one that both "
    "miss in every scan counts nowhere. What both miss alike is invisible to this score.",
    "Volumes are in ml with the spacing of the scans; pixels of pictures without one count as 1 mm.",
    "Order: each next scan has the largest (1 - diversity) x score + diversity x distance to the scans before it, in "
    "the space of volumes, disagreements and entropies of the structures, each limited to 3 standard deviations. "
    "Diversity prefers odd scans, also bad ones: compare the column \"by score\" and look at the pictures.",
    "A score is no promise. The honest comparator is a random choice among scans that contain the structures "
    "(foreground-aware random): published comparisons of query methods in 3D segmentation often don't beat it "
    "reliably. Check on labeled data of yours before you trust the order (scripts/benchmark_rank.py).",
)


def finish_ranking(ranking: dict[str, Any], folder: Path, images: bool = True, anonymise: bool = False
                   ) -> dict[str, Any]:
    """Add what every page starts with, the notes, and the pictures; drop what only ranking needs."""
    ranking = _anonymous(ranking) if anonymise else ranking
    finished: dict[str, Any] = {
        **header("rank", {"name": ranking["model"]["dataset"]}),
        "anonymised": anonymise, **ranking, "notes": [*ranking.get("notes", ()), *_NOTES], "overlays": [],
    }
    never = [item["name"] for item in ranking["structures"] if item["found_in"] == 0]
    if never:
        finished["notes"].insert(0, f"The pair finds {', '.join(never)} in no scan, so these count nowhere: "
                                    "random scans, or scans known to contain them, are the better choice there.")
    of_one = [item["name"] for item in ranking["structures"] if item["of_one_network"] and item["found_in"]]
    if of_one:
        finished["notes"].insert(0, f"Only one of A and B has learned {', '.join(of_one)}, and it decides there alone, "
                                    "as in prediction: these count by its entropy.")
    if images:
        add_rank_pictures(finished, folder)
    finished["ranking"] = [{key: value for key, value in line.items() if key not in ("planes", "picture_file")}
                           for line in finished["ranking"]]
    finished["verdict"] = {"sentence": _sentence(finished), "caution": _caution(finished)}
    return finished


def _anonymous(ranking: dict[str, Any]) -> dict[str, Any]:
    """The same with scans by number, those of the ranking by their rank."""
    return {
        **ranking,
        "cases": [f"case {rank}" for rank, _ in enumerate(ranking["cases"], 1)],
        "ranking": [{**line, "case": f"case {line['rank']}"} for line in ranking["ranking"]],
        "left_out": [{"case": f"scan {number}", "reason": "left out"}
                     for number, _ in enumerate(ranking["left_out"], 1)],
        "source": "unlabeled scans",
    }


def write_ranking(ranking: dict[str, Any], folder: Path, name: str = "rank") -> list[Path]:
    """``<name>.json`` first, then ``.csv``, ``.md`` and ``.html``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    ranking = json_ready(ranking)
    return [
        write_text(folder / f"{name}.json", json.dumps(ranking, indent=1, allow_nan=False) + "\n"),
        write_text(folder / f"{name}.csv", render_rank_csv(ranking)),
        write_text(folder / f"{name}.md", render_rank_markdown(ranking)),
        write_text(folder / f"{name}.html", render_rank_html(ranking)),
    ]


def render_rank_text(ranking: dict[str, Any]) -> str:
    """The scans to label next as a table on a terminal."""
    heading, lines = _table(ranking, [line for line in ranking["ranking"] if line["chosen"]])
    more = len(ranking["ranking"]) - len(lines)
    after = [f"... and {more} more in rank.csv"] if more else []
    left_out = [f"Left out: {item['case']} {item['reason']}" for item in ranking["left_out"][:5]]
    return "\n".join([*_head(ranking), "", *aligned([heading, *lines], left=(1,)), *after, *left_out, "",
                      ranking["notes"][-1], ranking["disclaimer"]]) + "\n"


def _head(ranking: dict[str, Any]) -> list[str]:
    return [text for text in (ranking["verdict"]["sentence"], ranking["verdict"]["caution"]) if text]


def render_rank_csv(ranking: dict[str, Any]) -> str:
    """Every scan with every number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = [item["key"] for item in ranking["structures"]]
    names = [item["name"] for item in ranking["structures"]]
    columns = ("disagreement", "entropy", "value", "volume_ml")
    plain = ("rank", "case", "chosen", "score", "rank_by_score", "novelty", "disagreement", "entropy")
    writer.writerow([*plain, *(f"{name} {column}" for name in names for column in columns)])
    for line in ranking["ranking"]:
        writer.writerow([*(_plain(line[key]) for key in plain),
                         *(_plain(line["structures"][key][column]) for key in keys for column in columns)])
    return buffer.getvalue()


def render_rank_markdown(ranking: dict[str, Any]) -> str:
    """Verdict, order, structures and notes."""
    heading, lines = _table(ranking, ranking["ranking"])
    parts = [f"# Which scan to label next: {ranking['dataset']['name']}", "", f"**{ranking['verdict']['sentence']}**",
             *(["", ranking["verdict"]["caution"]] if ranking["verdict"]["caution"] else []), "",
             *markdown_table(heading, lines), "", "Columns of structures: by how much A and B differ there.", "",
             "## Structures", "",
             *markdown_table(["structure", "found in", "disagreement, %", "entropy, %"], _structure_lines(ranking))]
    if ranking["left_out"]:
        parts += ["", "## Left out", "", *(f"- {item['case']}: {item['reason']}" for item in ranking["left_out"])]
    parts += ["", "## Rules", "", *(f"- {note}" for note in ranking["notes"]), "",
              f"_{ranking['disclaimer']} Made with nnunet_dhc {ranking['made']['nnunet_dhc']} on "
              f"{ranking['made']['date']}._"]
    return "\n".join(parts) + "\n"


def render_rank_html(ranking: dict[str, Any]) -> str:
    """The page of a ranking."""
    from markupsafe import Markup

    highest = max((line["score"] for line in ranking["ranking"]), default=0.0) or 1.0
    heading, lines = _table(ranking, ranking["ranking"])
    rows = [{"cells": cells, "chosen": line["chosen"], "width": round(100 * line["score"] / highest, 1),
             "why": _why(line, ranking)} for line, cells in zip(ranking["ranking"], lines, strict=True)]
    page: str = page_environment().get_template("rank.html.j2").render(
        c=ranking, rows=rows, shown=_shown(ranking), heading=heading, structure_lines=_structure_lines(ranking),
        tiles=_tiles(ranking),
        scatter=Markup(_scatter(ranking)),
    )
    return page


def _caution(ranking: dict[str, Any]) -> str:
    """What a reader must know of an order that a hardly trained pair made."""
    known = [line["disagreement"] for line in ranking["ranking"] if line["disagreement"] is not None]
    mean = sum(known) / len(known) if known else 0.0
    if mean < _HARDLY_TRAINED:
        return ""
    return (f"Read with care: A and B differ by {_percent(mean)} % on average, as hardly trained networks do; "
            "such an order says little. Train longer first.")


def _shown(ranking: dict[str, Any]) -> int:
    """Lines that the page shows at once: those to label and some after them; no few lines are folded away."""
    total = len(ranking["ranking"])
    wanted = min(ranking["settings"]["budget"], total) + _LINES_AFTER_BUDGET
    return total if total <= wanted + _LINES_AFTER_BUDGET else wanted


def _sentence(ranking: dict[str, Any]) -> str:
    chosen = [line["case"] for line in ranking["ranking"] if line["chosen"]]
    shown = ", ".join(chosen[:5]) + (f" and {len(chosen) - 5} more" if len(chosen) > 5 else "")
    return f"Label next: {shown} (of {len(ranking['ranking'])} unlabeled scans)."


def _table(ranking: dict[str, Any], lines: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    structures = ranking["structures"]
    heading = ["rank", "scan", "score", "by score", "novelty", "A and B differ, %", "entropy, %",
               *(f"{item['name']}, %" for item in structures)]
    return heading, [[
        str(line["rank"]), line["case"], f"{line['score']:.3f}", str(line["rank_by_score"]), f"{line['novelty']:.2f}",
        _percent(line["disagreement"]), _percent(line["entropy"]),
        *(_percent(line["structures"][item["key"]]["disagreement"]) for item in structures),
    ] for line in lines]


def _structure_lines(ranking: dict[str, Any]) -> list[list[str]]:
    total = len(ranking["ranking"])
    return [[item["name"], f"{item['found_in']} of {total}", _percent(item["disagreement"]), _percent(item["entropy"])]
            for item in ranking["structures"]]


def _why(line: dict[str, Any], ranking: dict[str, Any]) -> str:
    """The structure that gives the scan most of its score, and whether it is taken for being different."""
    names = {item["key"]: item["name"] for item in ranking["structures"]}
    known = {key: values for key, values in line["structures"].items() if values["entropy"] is not None}
    if not known:
        return "neither A nor B finds a structure"
    key = max(known, key=lambda item: float(known[item]["value"]))
    disagreement, entropy = (known[key][name] for name in ("disagreement", "entropy"))
    text = f"most in {names[key]}: " + (f"A and B differ by {_percent(disagreement)} %" if disagreement is not None
                                        else f"entropy {_percent(entropy)} %")
    return text + ("; unlike the scans before it" if line["rank"] > 1 and line["rank_by_score"] > line["rank"] else "")


def _tiles(ranking: dict[str, Any]) -> list[dict[str, str]]:
    known = [item for item in ranking["structures"] if item["disagreement"] is not None]
    tiles = [{"label": "unlabeled scans", "value": f"{len(ranking['ranking']):,}", "note": ranking["source"]},
             {"label": "to label next", "value": str(min(ranking["settings"]["budget"], len(ranking["ranking"]))),
              "note": f"diversity {ranking['settings']['diversity']:g}"}]
    if known:
        hardest = max(known, key=lambda item: float(item["disagreement"]))
        tiles.append({"label": "most disputed structure", "value": hardest["name"],
                      "note": f"A and B differ by {_percent(hardest['disagreement'])} %"})
    return tiles


def _scatter(ranking: dict[str, Any]) -> str:
    """Disagreement against entropy, one dot a scan; those to label next are filled."""
    points = [(line["disagreement"], line["entropy"], line) for line in ranking["ranking"]
              if line["disagreement"] is not None]
    if not points:
        return ""
    width, height, left, bottom = 640.0, 300.0, 44.0, 34.0
    (x_low, x_high), (y_low, y_high) = (nice_range(100 * min(values), 100 * max(values))
                                        for values in ([p[0] for p in points], [p[1] for p in points]))

    def place(x: float, y: float) -> tuple[float, float]:
        return (left + (100 * x - x_low) / (x_high - x_low) * (width - left - 12),
                8 + (y_high - 100 * y) / (y_high - y_low) * (height - bottom - 8))

    parts = [f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" '
             'aria-label="Disagreement and entropy of every scan">']
    for value in (y_low, (y_low + y_high) / 2, y_high):
        y = place(0.0, value / 100)[1]
        parts.append(f'<line class="grid" x1="{left:g}" x2="{width - 12:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="tick" x="{left - 5:g}" y="{y + 3:.1f}" text-anchor="end">{tick(value)}</text>')
    for value in (x_low, (x_low + x_high) / 2, x_high):
        x = place(value / 100, 0.0)[0]
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 20:g}" text-anchor="middle">{tick(value)}</text>')
    parts.append(f'<text class="tick" x="{width - 12:g}" y="{height - 5:g}" text-anchor="end">A and B differ, %'
                 f'</text><text class="tick" x="{left:g}" y="{height - 5:g}">up: entropy, %</text>')
    for x, y, line in sorted(points, key=lambda point: point[2]["chosen"]):
        across, down = place(x, y)
        kind = "chosen" if line["chosen"] else "other"
        parts.append(f'<circle class="scan {kind}" cx="{across:.1f}" cy="{down:.1f}" r="{5 if line["chosen"] else 4}">'
                     f"<title>{line['rank']}: {escape(line['case'])}</title></circle>")
    return "".join(parts) + "</svg>"


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.1f}"


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
