# SPDX-License-Identifier: Apache-2.0
"""The verdict in one sentence, and where a gain comes from; nothing is said that the numbers don't carry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nnunet_dhc.reporting.differences import correct
from nnunet_dhc.reporting.protocols import Metric
from nnunet_dhc.reporting.statistics import MIN_CASES_FOR_CLAIM
from nnunet_dhc.reporting.table_cells import cases_text, number, p_text

_STOCK = re.compile(r"nnUNetTrainer(NoMirroring)?(_\d+epochs?)?(_NoMirroring)?$")
_CONTROLS = {
    "pair supervised": re.compile(r"nnUNetTrainerPairSupervised(_\d+epochs?)?$"),
    "pair mixed": re.compile(r"nnUNetTrainerPairMixed(_\d+epochs?)?$"),
}
_SEMI_SUPERVISED = re.compile(r"nnUNetTrainer(DHC|CPS|CReST|SimiS|Pair(Dist|Diff)DW)")
# What a training on labels alone reads of a recipe; all other settings concern unlabeled patches or the run.
_SETTINGS_ON_LABELS = (
    "weighting_a", "weighting_b", "weighting_mode", "weighting_a_options", "weighting_b_options", "weight_exponent",
    "weight_exponent_final", "background_exponent_final", "weight_mean_one", "weight_minimum", "supervised_ce",
    "supervised_dice", "dice_smooth", "dice_pooled_over_batch", "initialization_a", "initialization_b",
    "architecture_b", "oversample_foreground", "mirror_axes",
)
_STEPS_TOLERANCE = 0.05
_TIME_TOLERANCE = 0.15


def role(trainer: str | None, unlabeled_cases: int | None) -> str:
    """``stock``, ``pair supervised``, ``pair mixed``, ``semi-supervised`` or ``other``.

    Args:
        trainer: The trainer, or the name of a row that was given by hand.
        unlabeled_cases: How many it used, where that is known.
    """
    name = trainer or ""
    if _STOCK.match(name) or name.lower() == "stock":
        return "stock"
    for control, pattern in _CONTROLS.items():
        if pattern.match(name):
            return control
    if unlabeled_cases or _SEMI_SUPERVISED.match(name):
        return "semi-supervised"
    return "other"


def verdict(rows: Sequence[dict[str, Any]], differences: Sequence[dict[str, Any]], metric: Metric,
            num_cases: int) -> dict[str, Any]:
    """One sentence on the best row against the baseline, with what it rests on."""
    if not differences:
        score = rows[0]["scores"][metric.key]["overall"]
        return {"sentence": f"{rows[0]['name']}: mean {metric.label} {_score(score['mean'], metric)}"
                            f"{_interval_text(score, metric, signed=False)} on {cases_text(num_cases)}.",
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
    points = f"{_points(found['mean'], metric)}{_interval_text(found, metric)}"
    of_row, of_other = _score(means[name], metric), _score(means[against], metric)
    measured = f"mean {metric.label} {of_row} against {of_other}{reason or ', '}{points}"
    among = f" (best of {len(differences)} compared with {against})" if len(differences) > 1 else ""
    if found["claim"] == "too few cases":
        sentence = (f"No claim: {cases_text(found['n'])} {'is' if found['n'] == 1 else 'are'} too few "
                    f"({MIN_CASES_FOR_CLAIM} are needed). Mean {metric.label} of {name}{among} "
                    f"{of_row}, of {against} {of_other}{reason or ': '}{points}.")
    elif found["claim"] in ("better", "worse"):
        sentence = (f"{name}{among} is {found['claim']} than {against} on these {cases_text(found['n'])}: {measured}, "
                    f"{_p(found['p_holm'])}{_corrected(found)}.")
    else:
        why = ("its interval includes 0" if _includes_zero(found)
               else f"the signed-rank test does not confirm it, {_p(found['p_holm'])}{_corrected(found)}")
        sentence = (f"No difference between {name}{among} and {against} can be claimed from these "
                    f"{cases_text(found['n'])}: {measured}; {why}.")
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


def _comparable_with(target: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with as many labeled cases, as far as that is known, and with the same plans and configuration.

    An upper bound is no control, nor is a training with another patch or network.
    """
    labels = target["facts"].get("labeled_cases")
    return [row for row in rows if row["planned"] == target["planned"]
            and row["configuration"] == target["configuration"]
            and (labels is None or row["facts"].get("labeled_cases") in (None, labels))]


def attribution(rows: Sequence[dict[str, Any]], contrast: Any, metric: Metric, subject: str | None) -> dict[str, Any]:
    """Which part of the gain comes from unlabeled data, from two networks, and from longer training.

    The parts are corrected by Holm as one family: they are read together.

    Args:
        rows: Rows of the comparison with ``role`` and ``facts``.
        contrast: Function (row name, against name) -> difference of the first metric with interval and p.
        metric: The metric that decides the verdict.
        subject: The row whose gain is explained; None takes the first semi-supervised row.
    """
    by_role: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_role.setdefault(row["role"], []).append(row)
    semi = by_role.get("semi-supervised", [])
    if not semi:
        return {"subject": None, "parts": [], "missing": [], "sentence": ""}
    target = next((row for row in semi if row["name"] == subject), semi[0])
    stock = _comparable_with(target, by_role.get("stock", []))
    stock = [row for row in stock if row["facts"].get("mirror_axes") == target["facts"].get("mirror_axes")] or stock
    supervised, mixed = (_control_of(target, by_role.get(control, [])) for control in _CONTROLS)
    mixes = _mixes(target)
    control = mixed if mixes and mixed else supervised
    equal_steps = _closest(stock, target, "steps", _STEPS_TOLERANCE)
    equal_time = _closest(stock, target, "seconds", _TIME_TOLERANCE)
    parts, missing = [], []
    contrasts: dict[tuple[str, str], dict[str, Any]] = {}  # stock may be the one at equal steps and at equal time

    def add(what: str, row: dict[str, Any], against: dict[str, Any], **more: Any) -> None:
        names = row["name"], against["name"]
        if names not in contrasts:
            contrasts[names] = contrast(*names)
        parts.append({"what": what, "row": names[0], "against": names[1], **more})

    if control:
        what = "unlabeled data and mixed patches" if mixes and control is supervised else "unlabeled data"
        add(what, target, control, differing_settings=_differing_settings(control, target))
    else:
        missing.append("nnUNetTrainerPairSupervised with the same plans and number of steps: without it, the part of "
                       "the unlabeled data can't be told from that of two networks")
    if mixes and not mixed:
        missing.append("nnUNetTrainerPairMixed with the same plans and number of steps: without it, the part of the "
                       "unlabeled data can't be told from that of mixed patches, which labeled scans give as well")
    if control is mixed and mixed and supervised:
        add("mixed patches of labeled scans", mixed, supervised)
    if supervised and equal_steps:
        add("two networks and class weights", supervised, equal_steps)
    if equal_steps:
        add("everything together, at equal steps", target, equal_steps)
    else:
        missing.append("stock nnU-Net with the same plans and number of steps")
    if equal_time:
        add("everything together, at equal wall-clock", target, equal_time)
        if equal_steps and equal_steps is not equal_time:
            add("longer training of stock nnU-Net", equal_time, equal_steps)
    else:
        no_mirroring = "_NoMirroring" if target["facts"].get("mirror_axes") == "none" else ""
        missing.append("stock nnU-Net with the same wall-clock (of nnU-Net's trainers nnUNetTrainer_<N>epochs"
                       f"{no_mirroring} take the one {_epochs_for_equal_time(target, equal_steps)})")
    correct(list(contrasts.values()), metric)
    parts = [{**part, **contrasts[part["row"], part["against"]]} for part in parts]
    if parts and not target["facts"].get("steps"):
        missing.append("a record of the number of steps: that the rows had equally many is taken from their names")
    return {"subject": target["name"], "parts": parts, "missing": missing,
            "sentence": _attribution_sentence(target["name"], parts, metric)}


def _attribution_sentence(subject: str, parts: Sequence[dict[str, Any]], metric: Metric) -> str:
    by_what = {part["what"]: part for part in parts}
    what = next((what for what in by_what if what.startswith("unlabeled data")), None)
    unlabeled, networks = by_what.get(what), by_what.get("two networks and class weights")
    if what is None or unlabeled is None or unlabeled["mean"] is None:
        return ""
    sentences = [f"The {what} change {subject} by {_points(unlabeled['mean'], metric)}"
                 f"{_interval_text(unlabeled, metric)} against {_control_text(unlabeled)}{_doubt(unlabeled)}"]
    mixed = by_what.get("mixed patches of labeled scans")
    if mixed is not None and mixed["mean"] is not None:
        sentences.append(f"mixed patches of labeled scans change the pair by {_points(mixed['mean'], metric)}"
                         f"{_interval_text(mixed, metric)}{_doubt(mixed)}")
    if networks is not None and networks["mean"] is not None:
        sentences.append(f"two networks with class weights change stock by {_points(networks['mean'], metric)}"
                         f"{_interval_text(networks, metric)} at equal steps{_doubt(networks)}")
    text = " and ".join([", ".join(sentences[:-1]) + ",", sentences[-1]] if sentences[1:] else sentences) + "."
    time = by_what.get("everything together, at equal wall-clock")
    if time is not None and time["mean"] is not None:
        text += (f" Against stock with the same wall-clock it is {_points(time['mean'], metric)}"
                 f"{_interval_text(time, metric)}{_doubt(time)}.")
    return text


def _control_text(part: dict[str, Any]) -> str:
    if differing := part["differing_settings"]:
        return f"a pair without them whose recipe differs, too (in {', '.join(differing)})"
    return "the same pair without them"


def _control_of(target: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The one with as many steps, and if there are several, with the settings of the target."""
    rows = _comparable_with(target, rows)
    rows = [row for row in rows if not _differing_settings(row, target)] or rows
    return _closest(rows, target, "steps", _STEPS_TOLERANCE)


def _mixes(row: dict[str, Any]) -> bool:
    """Whether unlabeled patches are mixed with labeled ones, by the records of the trainings."""
    recipes = [run["recipe"] for run in row["runs"] if isinstance(run.get("recipe"), dict)]
    return any(recipe.get("paste_side") for recipe in recipes)


def _differing_settings(row: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Settings on labels in which trainings of the same fold differ, of those that the records of both tell."""
    recipes = [(run["recipe"], another["recipe"]) for run in row["runs"] for another in other["runs"]
               if run.get("fold") == another.get("fold")
               and isinstance(run.get("recipe"), dict) and isinstance(another.get("recipe"), dict)]
    return [name for name in _SETTINGS_ON_LABELS
            if any(name in of_row and name in of_other and of_row[name] != of_other[name]
                   for of_row, of_other in recipes)]


def _doubt(part: dict[str, Any]) -> str:
    return "" if part["claim"] in ("better", "worse") else " (no claim)"


def _closest(rows: Sequence[dict[str, Any]], target: dict[str, Any], fact: str,
             tolerance: float) -> dict[str, Any] | None:
    wanted = target["facts"].get(fact)
    known = [row for row in rows if row["facts"].get(fact)]
    if not wanted or not known:
        # Folders of predictions don't tell their steps: the row's name has to do, and the page says so.
        return rows[0] if rows and fact == "steps" and not wanted and not known else None
    best = min(known, key=lambda row: abs(row["facts"][fact] - wanted))
    return best if abs(best["facts"][fact] - wanted) <= tolerance * wanted else None


def _epochs_for_equal_time(target: dict[str, Any], stock: dict[str, Any] | None) -> str:
    if stock and stock["facts"].get("seconds") and stock["facts"].get("epochs") and target["facts"].get("seconds"):
        ratio = target["facts"]["seconds"] / stock["facts"]["seconds"]
        return f"nearest to N = {max(1, round(stock['facts']['epochs'] * ratio))}"
    return "that trains about as long"


def _overall(entry: dict[str, Any], metric: Metric) -> dict[str, Any]:
    found: dict[str, Any] = entry["metrics"][metric.key]["overall"]
    return found


def _includes_zero(found: dict[str, Any]) -> bool:
    return found["low"] is None or found["low"] <= 0 <= found["high"]


def _corrected(found: dict[str, Any]) -> str:
    return f", corrected for {found['comparisons']} comparisons" if found.get("comparisons", 1) > 1 else ""


def _score(value: float | None, metric: Metric) -> str:
    return "undefined" if value is None else f"{number(value, vars(metric))} {metric.unit_of_value}".rstrip()


def _points(value: float, metric: Metric) -> str:
    return f"{number(value, vars(metric), signed=True)} {metric.unit_of_difference}"


def _unlike_the_means(found: dict[str, Any], mean: float | None, against: float | None, metric: Metric) -> bool:
    """Whether a reader would find another difference from the two means, by more than was rounded."""
    if mean is None or against is None:
        return True
    return abs(float(found["mean"]) - (mean - against)) * metric.scale >= 0.5 * 10.0**-metric.digits


def _interval_text(found: dict[str, Any], metric: Metric, signed: bool = True) -> str:
    if found["low"] is None:
        return ""
    low, high = (number(found[side], vars(metric), signed) for side in ("low", "high"))
    return f" (95 % interval {low} to {high})"


def _p(value: float | None) -> str:
    if value is None:
        return "p undefined"
    text = p_text(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
