# SPDX-License-Identifier: Apache-2.0
"""The verdict in one sentence, and what its reader must know; nothing is said that the numbers don't carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_dhc.reporting.metric_text import interval_text, p_value_text, points_text, score_text
from nnunet_dhc.reporting.protocols import Metric
from nnunet_dhc.reporting.statistics import cases_for_claim
from nnunet_dhc.reporting.table_cells import cases_text


def verdict(rows: Sequence[dict[str, Any]], differences: Sequence[dict[str, Any]], metric: Metric,
            num_cases: int) -> dict[str, Any]:
    """One sentence on the best row against the baseline, with what it rests on."""
    if not differences:
        score = rows[0]["scores"][metric.key]["overall"]
        return {"sentence": f"{rows[0]['name']}: mean {metric.label} {score_text(score['mean'], metric)}"
                            f"{interval_text(score, metric, signed=False)} on {cases_text(num_cases)}.",
                "claim": "no comparison", "row": rows[0]["name"], "against": None}
    sign = 1 if metric.higher_is_better else -1
    known = [entry for entry in differences if _overall(entry, metric)["mean"] is not None]
    if not known:
        return {"sentence": "No claim: the rows share no case in which the metric is defined.", "claim": "no claim",
                "row": differences[0]["row"], "against": differences[0]["against"]}
    best = max(known, key=lambda entry: sign * float(_overall(entry, metric)["mean"]))
    found = _overall(best, metric)
    name, against = best["row"], best["against"]
    means = {row["name"]: row["scores"][metric.key]["overall"]["mean"] for row in rows}
    apart = _unlike_the_means(found, means[name], means[against], metric)
    reason = "; paired by case " if apart else ""
    points = f"{points_text(found['mean'], metric)}{interval_text(found, metric)}"
    of_row, of_other = score_text(means[name], metric), score_text(means[against], metric)
    measured = f"mean {metric.label} {of_row} against {of_other}{reason or ', '}{points}"
    among = f" (best of {len(differences)} compared with {against})" if len(differences) > 1 else ""
    if found["claim"] == "too few cases":
        sentence = (f"No claim: {cases_text(found['n'])} {'is' if found['n'] == 1 else 'are'} too few "
                    f"({_needed(found)}). Mean {metric.label} of {name}{among} "
                    f"{of_row}, of {against} {of_other}{reason or ': '}{points}.")
    elif found["claim"] in ("better", "worse"):
        sentence = (f"{name}{among} is {found['claim']} than {against} on these {cases_text(found['n'])}: {measured}, "
                    f"{p_value_text(found['p_holm'])}{_corrected(found)}.")
    else:
        sentence = (f"No difference between {name}{among} and {against} can be claimed from these "
                    f"{cases_text(found['n'])}: {measured}; {_why_no_claim(found)}.")
    return {"sentence": sentence, "claim": found["claim"], "row": name, "against": against}


def caution(rows: Sequence[dict[str, Any]], judged: dict[str, Any], num_structures: int) -> str:
    """What a reader of the verdict must know.

    A row that finds less than half of the structures is no yardstick, and of two rows one of which mirrors scans and
    the other doesn't, nobody knows what made the difference.

    Args:
        rows: Rows of the comparison.
        judged: The verdict.
        num_structures: In the references of all cases together; a structure counts once for each case that has it.
    """
    sides = [row for row in rows if row["name"] in (judged["row"], judged["against"])]
    return " ".join(filter(None, (_caution_of_empty(sides, judged, num_structures), _caution_of_mirroring(sides))))


def _caution_of_empty(sides: Sequence[dict[str, Any]], judged: dict[str, Any], num_structures: int) -> str:
    texts = []
    for row in sides:
        missed = sum(row["missed"].values())
        if missed > 0.5 * num_structures:
            texts.append(f"{row['name']} leaves {missed:g} of {num_structures} structures empty")
    if not texts:
        return ""
    why = "; a comparison with such a row says little" if judged["against"] else ""
    return f"Read with care: {', and '.join(texts)}, as after too short or failed training{why}."


def _caution_of_mirroring(sides: Sequence[dict[str, Any]]) -> str:
    mirroring = [(row["name"], axes) for row in sides if (axes := row["facts"].get("mirror_axes"))]
    if len({axes for _, axes in mirroring}) < 2:
        return ""
    texts = [f"{name} " + ("doesn't mirror scans" if axes == "none" else f"mirrors scans along the axes {axes}")
             for name, axes in mirroring]
    return (f"{', '.join(texts)}: the difference holds the effect of mirroring, too. nnU-Net's own trainer without it "
            "is nnUNetTrainerNoMirroring.")


def _overall(entry: dict[str, Any], metric: Metric) -> dict[str, Any]:
    found: dict[str, Any] = entry["metrics"][metric.key]["overall"]
    return found


def _why_no_claim(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return "no interval can be given: some structures have too few cases"
    if found["low"] <= 0 <= found["high"]:
        return "its interval includes 0"
    if found["n"] < cases_for_claim(found.get("comparisons", 1)):
        return f"{cases_text(found['n'])} are too few for a test to confirm it ({_needed(found)})"
    return f"the signed-rank test does not confirm it, {p_value_text(found['p_holm'])}{_corrected(found)}"


def _needed(found: dict[str, Any]) -> str:
    comparisons = found.get("comparisons", 1)
    among = f" with {comparisons} comparisons" if comparisons > 1 else ""
    return f"{cases_for_claim(comparisons)} are needed{among}"


def _corrected(found: dict[str, Any]) -> str:
    return f", corrected for {found['comparisons']} comparisons" if found.get("comparisons", 1) > 1 else ""


def _unlike_the_means(found: dict[str, Any], mean: float | None, against: float | None, metric: Metric) -> bool:
    """Whether a reader would find another difference from the two means, by more than was rounded."""
    if mean is None or against is None:
        return True
    return abs(float(found["mean"]) - (mean - against)) * metric.scale >= 0.5 * 10.0**-metric.digits
