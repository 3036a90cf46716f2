# SPDX-License-Identifier: Apache-2.0
"""The report of one training, at any time: curves alone until it is validated, then the scores too."""

from __future__ import annotations

from statistics import median
from typing import Any

from nnunet_dhc.reporting.collection import Collection, Run
from nnunet_dhc.reporting.compare import (
    Options,
    build_comparison,
    described,
    header,
    row_facts,
    run_facts,
    training_of,
)
from nnunet_dhc.reporting.run_files import RunRecord, epoch_seconds
from nnunet_dhc.reporting.table_cells import duration
from nnunet_dhc.wording import counted

_EPOCHS_FOR_ESTIMATE = 5


def build_report(collection: Collection, options: Options) -> dict[str, Any]:
    """A comparison of one row, or what there is of it.

    Args:
        collection: One row; runs without predictions are not validated yet.
        options: As for a comparison.
    """
    collection = collection.anonymous() if options.anonymise else collection
    row = collection.rows[0]
    state = _state(row.runs, row.name, bool(collection.references))
    if collection.references:
        report = build_comparison(collection, options)
        report["format"]["name"] = "nnunet_dhc report"
        report["kind"] = "report"
        report["attribution"]["missing"] = []  # nothing is compared here
        report["verdict"]["sentence"] = f"{report['verdict']['sentence']} {state}"
    else:
        runs = run_facts(row)
        report = {
            **header("report", described(collection)),
            "anonymised": options.anonymise,
            "structures": [{"key": item.key, "name": item.name.replace("_", " ")}
                           for item in collection.labels.structures],
            "cases": [], "baseline": row.name, "differences": [], "overlays": [],
            "rows": [{"name": row.name, "trainer": row.trainer, "plans": row.plans,
                      "configuration": row.configuration, "plans_file_hash": row.plans_hash, "folds": row.folds,
                      "repeats": len(row.repeats), "facts": row_facts(runs), "runs": runs}],
            "verdict": {"sentence": state, "claim": "no comparison", "row": row.name, "against": None},
            "attribution": {"subject": None, "parts": [], "missing": [], "sentence": ""},
            "notes": [*(note.text for note in collection.notes),
                      "Dice during training is measured on patches with the plain network: use it to see whether "
                      "training goes on, not to compare trainers."],
            "training": training_of(collection),
        }
    report["tiles"] = _tiles(row.runs)
    return report


def _state(runs: list[Run], name: str, validated: bool) -> str:
    """One sentence on how far the training is."""
    parts = []
    for run in runs:
        facts = run.record.facts() if run.record else {}
        done, planned = facts.get("epochs"), facts.get("planned_epochs")
        if done is None:
            parts.append(f"fold {run.fold} has no finished epoch")
            continue
        text = f"fold {run.fold} has {counted(done, 'epoch')}" if not planned or planned == done else \
            f"fold {run.fold} is at epoch {done} of {planned}"
        if planned and done < planned and run.record and run.record.seconds:
            text += f", {time_left(run.record, planned - done)} left"
        if not run.predictions:
            text += ", not validated yet"
        parts.append(text)
    subject = "" if validated else f"{name}: "
    sentence = "; ".join(parts) + "."
    return subject + (sentence[0].upper() + sentence[1:] if validated else sentence)


def time_left(record: RunRecord, epochs: int) -> str:
    """By the newest epochs; those to come take longer where more of their steps will have unlabeled patches."""
    newest = record.epochs[-_EPOCHS_FOR_ESTIMATE:]
    known = [seconds for line in newest if (seconds := epoch_seconds(line)) is not None]
    an_epoch = median(known) if known else (record.seconds or 0.0) / max(record.epochs_done or 0, 1)
    rate = newest[-1].get("unlabeled_rate")
    return f"{'at least' if rate and rate < 1 else 'about'} {duration(an_epoch * epochs)}"


def _tiles(runs: list[Run]) -> list[dict[str, str]]:
    """Newest numbers of the first run."""
    record = runs[0].record if runs else None
    if record is None or not record.epochs:
        return []
    last = record.epochs[-1]
    facts = record.facts()
    tiles = [{"label": "epoch", "value": f"{(record.epochs_done or 0):,}",
              "note": f"of {facts['planned_epochs']:,}" if facts.get("planned_epochs") else ""}]
    for key, label in (("dice_mean", "Dice on patches"), ("agreement", "agreement of A and B")):
        value = last.get(key)
        known = [item for item in value if item is not None] if isinstance(value, list) else \
            [value] if isinstance(value, int | float) else []
        if known:
            tiles.append({"label": label, "value": f"{100 * sum(known) / len(known):.1f} %", "note": "last epoch"})
    if record.seconds and record.epochs_done:
        tiles.append({"label": "time an epoch", "value": duration(record.seconds / record.epochs_done),
                      "note": f"{duration(record.seconds)} so far"})
    alarms = sum(len(line.get("alarms") or []) for line in record.epochs)
    if alarms:
        tiles.append({"label": "alarms", "value": str(alarms), "note": "see Training"})
    return tiles
