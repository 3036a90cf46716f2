# SPDX-License-Identifier: Apache-2.0
"""Build the comparison: a JSON-ready dictionary with everything that any page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_dhc import __version__
from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.attribution import attribution, role
from nnunet_dhc.reporting.collection import Collection, Row
from nnunet_dhc.reporting.differences import differences_from, winners
from nnunet_dhc.reporting.evaluate import score_pairs
from nnunet_dhc.reporting.image_files import tells_spacing
from nnunet_dhc.reporting.protocols import Protocol, protocol_named
from nnunet_dhc.reporting.score_tables import RowScores, describe_structures
from nnunet_dhc.reporting.statistics import MIN_CASES_FOR_CLAIM, MIN_CASES_FOR_INTERVAL, cases_for_claim
from nnunet_dhc.reporting.training_curves import training_curves
from nnunet_dhc.reporting.verdict import caution, verdict

DISCLAIMER = "For research, not for clinical use."
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Options:
    """How to compare; ``cache_folder`` None keeps no scores for the next call."""

    protocol: str = "standard"
    baseline: str | None = None
    processes: int = 1
    anonymise: bool = False
    images: bool = True
    cache_folder: Path | None = None


def build_comparison(collection: Collection, options: Options) -> dict[str, Any]:
    """Score every prediction, then summarise, test and judge."""
    protocol = protocol_named(options.protocol)
    collection = collection.anonymous() if options.anonymise else collection
    if not collection.references:
        raise UserError("Nothing to compare: no row has predictions.")
    baseline = _baseline(collection.rows, options.baseline)
    tables = _score(collection, protocol, options)
    keys = [structure.key for structure in collection.labels.structures]
    cases = list(collection.references)
    structures = describe_structures([(item.key, item.name) for item in collection.labels.structures],
                                     tables[0].matrix("volume_reference_ml"))
    groups = [structure["group"] for structure in structures]
    by_name = {table.row.name: table for table in tables}
    others = [table for table in tables if table.row.name != baseline]
    rows = [_row(table, protocol, groups) for table in tables]
    differences = differences_from(by_name[baseline], others, protocol, groups) if others else []
    primary = protocol.metrics[0]
    judged = verdict(rows, differences, primary, len(cases))
    judged["caution"] = caution(rows, judged, sum(item["cases_present"] for item in structures))

    def contrast(name: str, against: str) -> dict[str, Any]:
        found = differences_from(by_name[against], [by_name[name]], replace(protocol, metrics=(primary,)), groups)[0]
        overall: dict[str, Any] = found["metrics"][primary.key]["overall"]
        return overall

    comparison: dict[str, Any] = {
        **header("comparison", described(collection)),
        "anonymised": options.anonymise,
        "protocol": protocol.as_json(),
        "structures": structures,
        "cases": cases,
        "reference_volume_ml": _reference_volumes(tables[0], cases, keys),
        "baseline": baseline,
        "rows": rows,
        "differences": differences,
        "winners": winners(tables, protocol, groups, differences),
        "verdict": judged,
        "attribution": attribution(rows, contrast, primary, judged["row"]),
        "notes": [*(note.text for note in collection.notes), *_spacing_note(collection), *_statistics_notes(tables)],
        "training": training_of(collection),
        "overlays": [],
    }
    if options.images:
        from nnunet_dhc.reporting.overlays import add_overlays

        add_overlays(comparison, collection, tables)
    return comparison


def described(collection: Collection) -> dict[str, Any]:
    """The dataset, as a page names it."""
    return {"name": collection.dataset, "channel": collection.channel, "ignore_label": collection.labels.ignore_label}


def header(kind: str, dataset: dict[str, Any]) -> dict[str, Any]:
    """What every page starts with."""
    return {
        "format": {"name": f"nnunet_dhc {kind}", "version": FORMAT_VERSION},
        "kind": kind,
        "made": {"nnunet_dhc": __version__, "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")},
        "disclaimer": DISCLAIMER,
        "dataset": dataset,
    }


def training_of(collection: Collection) -> list[dict[str, Any]]:
    """Curves of every run that left a log."""
    return [curves for row in collection.rows for run in row.runs if run.record is not None
            and (curves := training_curves(run.record, row.name, run.fold, run.repeat)) is not None]


def run_facts(row: Row) -> list[dict[str, Any]]:
    """What stands in the table of runs, one entry a run."""
    facts = [{"fold": run.fold, "repeat": run.repeat, **(run.record.facts() if run.record else {})} for run in row.runs]
    if role(row.trainer, None) == "stock":
        facts = [{**of_run, "unlabeled_cases": 0} for of_run in facts]  # nnU-Net reads none
    return facts


def row_facts(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of a row: numbers are averaged over runs, texts are listed when they differ."""
    facts: dict[str, Any] = {}
    for key in ("epochs", "steps", "seconds", "parameters", "peak_memory_bytes", "labeled_cases", "unlabeled_cases",
                "iterations_per_epoch", "batch_size"):
        known = [run[key] for run in runs if isinstance(run.get(key), int | float)]
        facts[key] = sum(known) / len(known) if known else None
        if facts[key] is not None and float(facts[key]).is_integer():
            facts[key] = int(facts[key])
    for key in ("device", "mirror_axes", "plans_hash", "split_hash"):
        facts[key] = ", ".join(sorted({str(run[key]) for run in runs if run.get(key)})) or None
    return facts


def _score(collection: Collection, protocol: Protocol, options: Options) -> list[RowScores]:
    runs = [(row, run) for row in collection.rows for run in row.runs]
    pairs = [(path, collection.references[case]) for _, run in runs for case, path in run.predictions.items()]
    scores = iter(score_pairs(pairs, collection.labels, protocol, options.processes, options.cache_folder))
    keys = [structure.key for structure in collection.labels.structures]
    cases = list(collection.references)
    tables = []
    for row in collection.rows:
        scored = [(run, {case: next(scores) for case in run.predictions}) for run in row.runs]
        tables.append(RowScores(row, scored, cases, keys))
    return tables


def _baseline(rows: Sequence[Row], wanted: str | None) -> str:
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise UserError(f"The same row is asked for twice: {', '.join(names)}.")
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"--baseline {wanted} is not one of the rows: {', '.join(names)}.")
        return wanted
    return next((row.name for row in rows if role(row.trainer or row.name, None) == "stock"), names[0])


def _row(table: RowScores, protocol: Protocol, groups: Sequence[str]) -> dict[str, Any]:
    row, runs = table.row, run_facts(table.row)
    facts = row_facts(runs)
    return {
        "name": row.name, "trainer": row.trainer, "plans": row.plans, "configuration": row.configuration,
        "role": role(row.trainer or row.name, facts["unlabeled_cases"]),
        "plans_file_hash": row.plans_hash, "planned": row.planned, "repeats": len(row.repeats), "folds": row.folds,
        "facts": facts, "runs": runs,
        "scores": table.summary(protocol, groups),
        "missed": table.count("missed"), "spurious": table.count("spurious"),
        "per_case": table.per_case(protocol),
        "per_run": [{"fold": run.fold, "repeat": run.repeat, "cases": scores} for run, scores in table.scored],
    }


def _reference_volumes(table: RowScores, cases: Sequence[str], keys: Sequence[str]) -> dict[str, dict[str, float]]:
    matrix = table.matrix("volume_reference_ml")
    return {case: {key: float(matrix[line, column]) for column, key in enumerate(keys)
                   if not np.isnan(matrix[line, column])} for line, case in enumerate(cases)}


def _spacing_note(collection: Collection) -> list[str]:
    prediction = next(path for row in collection.rows for run in row.runs for path in run.predictions.values())
    if tells_spacing(next(iter(collection.references.values()))) or tells_spacing(prediction):
        return []
    return [f"{collection.file_ending} files tell no spacing: mm are pixels here, and ml thousands of them."]


def _statistics_notes(tables: Sequence[RowScores]) -> list[str]:
    notes = [
        f"Intervals: 95 % bootstrap (BCa) with cases resampled, from {MIN_CASES_FOR_INTERVAL} cases on; seeds and "
        "folds are averaged within a case before. There is none where a structure has a score in one case only, or "
        "where most draws of cases lack a structure. "
        "Tests: Wilcoxon signed-rank on paired cases; p is twice the one-sided p in the direction of the mean "
        "difference, corrected by Holm for the number of comparisons of the same kind (rows as a whole, groups, "
        "structures, parts of a gain).",
        f"A difference is claimed only with {MIN_CASES_FOR_CLAIM} cases or more, an interval without 0 and a "
        f"corrected p below 0.05, for which {cases_for_claim(3)} cases are the least with 3 comparisons, "
        f"{cases_for_claim(13)} with 13. Bold: claimed, and the interval against every other row excludes 0; never a "
        "mean that leaves out structures which another row finds.",
        "A pair of scores enters a difference where both rows have a value. A structure that a case lacks and one row "
        "alone paints enters the difference in Dice as 0 against 1, and the mean of the other row not at all, so a "
        "difference may be another one than that of the means.",
    ]
    repeats = {table.row.name: len(table.row.repeats) for table in tables}
    if min(repeats.values()) == 1:
        single = "One training per row" if max(repeats.values()) == 1 else \
            f"One training of {', '.join(name for name, count in repeats.items() if count == 1)}"
        notes.append(f"{single}: the intervals hold the variation between cases, not the variation between trainings. "
                     "Repeat with other seeds (--results-roots) before a claim about a method.")
    if len(set(repeats.values())) > 1:
        notes.append("Rows have different numbers of repeats (results folders): "
                     + ", ".join(f"{name} {count}" for name, count in repeats.items()) + ".")
    return notes
