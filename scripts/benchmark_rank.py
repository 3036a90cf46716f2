# SPDX-License-Identifier: Apache-2.0
"""Does the score of ``nnunet_dhc rank`` order scans by their true error? On a labeled dataset treated as unlabeled.

    python scripts/benchmark_rank.py -d 504 -c 3d_fullres -p nnUNetPlansSmall -f 0 --cases 40 -o rank_benchmark

The scans are those of the key "unlabeled" of the fold, whose labels nothing but this script reads, after training. The
true error of a structure is 1 - Dice of the pair's prediction (mean of the logits, nnU-Net's own) and the label, on
preprocessed voxels. Printed and written to ``<o>/benchmark.json`` and ``.md``: Spearman's rank correlation of each
score with the true error, per structure and over all, with a bootstrap interval over scans; and the mean true error
of the scans that each score would have labeled first. Scans are remembered, so a stopped run goes on.

``--retrain`` also trains from scratch: the pair's own fold with the first ``--budget`` scans labeled, against as many
random ones (``--random-draws`` times) and against none, each in ``<o>/retrain/<arm>``, and compares the Dice on the
fold's validation cases. ``--retrain-epochs`` makes these trainings shorter. A stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from tqdm import tqdm

from nnunet_dhc._autoload import register
from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import replace_file, replace_json
from nnunet_dhc.nnunet.host.dataset_places import locate_dataset
from nnunet_dhc.nnunet.network.model_folder import ModelFolder, file_hash, find_model_folder, parse_fold
from nnunet_dhc.nnunet.ranking.rank_cases import (
    CASE_FORMAT,
    PairPredictor,
    case_record,
    order_records,
    structures_of,
)
from nnunet_dhc.nnunet.ranking.rank_sources import StoreCases
from nnunet_dhc.nnunet.splits.fold_cases import read_fold_cases

_RESAMPLES = 4000
_SEED = 20230816


def main() -> int:
    """Predict, judge, write, and train if asked."""
    args = _arguments()
    try:
        if args.arm:
            _train_arm(args)
            return 0
        model = find_model_folder(args.d, args.tr, args.p, args.c)
        fold = parse_fold(args.f)
        records, errors, structures = _measure(args, model, fold)
        result = _judge(records, errors, structures, args)
        replace_json(args.o / "benchmark.json", result)
        text = _markdown(result)
        replace_file(args.o / "benchmark.md", text.encode())
        print(text)
        if args.retrain:
            _retrain(args, model, int(fold), result)
    except UserError as error:
        print(f"benchmark_rank: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(args: argparse.Namespace, model: ModelFolder, fold: int | str) -> tuple[dict, dict, list]:
    """Sums of ``rank`` and true errors of each scan, remembered in ``<o>/measured.json``."""
    base = locate_dataset(model.dataset).preprocessed
    predictor = PairPredictor(model, [fold], args.chk, torch.device(args.device), not args.disable_tta)
    source = StoreCases(model, [fold], 1, print)
    folder = base / predictor.configuration_manager.data_identifier
    dataset_class = infer_dataset_class(str(folder))
    known = dataset_class.get_identifiers(str(folder))
    hidden = set(read_fold_cases(base, known, fold).unlabeled)
    pool = sorted(set(source.identifiers) & hidden)
    if len(pool) < 6:
        raise UserError(f"fold {fold} has {len(pool)} cases under the key unlabeled that are labeled: too few to judge")
    chosen = sorted(np.random.default_rng(args.seed).permutation(pool)[: args.cases].tolist())
    structures = structures_of(predictor, model)
    args.o.mkdir(parents=True, exist_ok=True)
    cache = args.o / "measured.json"
    identity = [CASE_FORMAT, file_hash(model.checkpoint(fold, args.chk)), not args.disable_tta]
    measured = json.loads(cache.read_text()) if cache.is_file() else {}
    if measured.get("checkpoint") != identity:
        measured = {"checkpoint": identity, "cases": {}}
    labeled = dataset_class(str(folder), chosen)
    for case in tqdm([case for case in chosen if case not in measured["cases"]], desc="Judged"):
        image, properties = source.load(case)
        logits = predictor.logits(image)
        prediction = predictor.label_map(predictor.combined(logits))
        reference = np.asarray(labeled.load_case(case)[1][:])[0]
        measured["cases"][case] = {
            **case_record(predictor, logits, properties),
            "error": _errors(prediction, reference, structures, predictor.label_manager.ignore_label),
        }
        replace_json(cache, measured)
    records = {case: measured["cases"][case] for case in chosen}
    return records, {case: record["error"] for case, record in records.items()}, structures


def _errors(prediction: np.ndarray, reference: np.ndarray, structures: list, ignore: int | None) -> list[float | None]:
    """1 - Dice per structure; None where neither has it."""
    counted = np.ones(reference.shape, bool) if ignore is None else reference != ignore
    errors: list[float | None] = []
    for item in structures:
        here, there = (np.isin(labels, item["labels"]) & counted for labels in (prediction, reference))
        total = int(here.sum() + there.sum())
        errors.append(None if total == 0 else 1 - 2 * int((here & there).sum()) / total)
    return errors


def _judge(records: dict, errors: dict, structures: list, args: argparse.Namespace) -> dict[str, Any]:
    """Rank correlations and the error of what each score would label first."""
    order = order_records(records, structures, args.diversity, args.budget)
    lines = {line["case"]: line for line in order["ranking"]}
    cases = sorted(errors)
    true = np.array([[np.nan if value is None else value for value in errors[case]] for case in cases])
    mean_true = _mean_error(errors)

    def column(name: str, key: str | None) -> np.ndarray:
        values = [lines[case][name] if key is None else lines[case]["structures"][key][name] for case in cases]
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    def scores(key: str | None) -> dict[str, np.ndarray]:
        volume = (column("volume_ml", key) if key is not None
                  else np.sum([column("volume_ml", item["key"]) for item in structures], axis=0))
        return {"score of rank": column("value" if key else "score", key), "disagreement only":
                column("disagreement", key), "entropy only": column("entropy", key), "small volume": -volume}

    correlations = {"all": {name: _spearman(values, mean_true) for name, values in scores(None).items()}}
    for index, item in enumerate(structures):
        correlations[item["name"]] = {name: _spearman(values, true[:, index])
                                      for name, values in scores(item["key"]).items()}
    first = {name: np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[: args.budget]
             for name, values in scores(None).items()}
    position = {case: index for index, case in enumerate(cases)}
    first[f"rank, diversity {args.diversity:g}"] = np.array([position[case] for case in order["cases"][: args.budget]])
    first["largest true error (oracle)"] = np.argsort(-mean_true)[: args.budget]
    rng = np.random.default_rng(_SEED)
    random = np.array([mean_true[rng.permutation(len(cases))[: args.budget]].mean() for _ in range(_RESAMPLES)])
    return {
        "dataset": args.d, "trainer": args.tr, "plans": args.p, "fold": args.f, "scans": len(cases),
        "mirroring": not args.disable_tta,
        "budget": args.budget, "diversity": args.diversity,
        "true_error": {"mean": float(mean_true.mean()), "standard_deviation": float(mean_true.std(ddof=1)),
                       "per_structure": {item["name"]: float(np.nanmean(true[:, index]))
                                         for index, item in enumerate(structures)}},
        "correlations": correlations,
        "random_orders_95": float(1.96 / np.sqrt(len(cases) - 1)),
        "error_of_first": {name: float(mean_true[rows].mean()) for name, rows in first.items()},
        "error_of_first_random": {"mean": float(random.mean()), "low": float(np.quantile(random, 0.025)),
                                  "high": float(np.quantile(random, 0.975))},
        "order": order["cases"],
    }


def _spearman(score: np.ndarray, error: np.ndarray) -> dict[str, float | int | None]:
    """Rank correlation where both are known, with a percentile bootstrap over scans."""
    from scipy.stats import rankdata

    known = ~np.isnan(score) & ~np.isnan(error)
    score, error = score[known], error[known]
    if len(score) < 6:
        return {"rho": None, "low": None, "high": None, "n": len(score)}
    rows = np.random.default_rng(_SEED).integers(0, len(score), (_RESAMPLES, len(score)))
    rows = np.concatenate([np.arange(len(score))[None], rows])
    ranks = [rankdata(values[rows], axis=1) for values in (score, error)]
    x, y = (values - values.mean(axis=1, keepdims=True) for values in ranks)
    with np.errstate(invalid="ignore"):
        rho = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    low, high = np.nanquantile(rho[1:], [0.025, 0.975])
    return {"rho": float(rho[0]), "low": float(low), "high": float(high), "n": len(score)}


def _markdown(result: dict[str, Any]) -> str:
    names = list(result["correlations"]["all"])
    lines = [f"{result['scans']} scans, mean true error {100 * result['true_error']['mean']:.1f} % "
             f"(standard deviation over scans {100 * result['true_error']['standard_deviation']:.1f}).", "",
             "| Spearman with the true error | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for scope, found in result["correlations"].items():
        cells = [f"{item['rho']:.2f} ({item['low']:.2f} to {item['high']:.2f})" if item["rho"] is not None else "\u2013"
                 for item in found.values()]
        lines.append(f"| {scope} | " + " | ".join(cells) + " |")
    random = result["error_of_first_random"]
    lines += ["", f"Random order: 0 on average; 95 % of random orders lie within +-{result['random_orders_95']:.2f}.",
              "", f"| first {result['budget']} scans by | mean true error, % |", "|---|---|"]
    lines += [f"| {name} | {100 * value:.1f} |" for name, value in result["error_of_first"].items()]
    lines.append(f"| random (95 % of draws) | {100 * random['mean']:.1f} ({100 * random['low']:.1f} to "
                 f"{100 * random['high']:.1f}) |")
    return "\n".join(lines) + "\n"


def _retrain(args: argparse.Namespace, model: ModelFolder, fold: int, result: dict[str, Any]) -> None:
    """Train with the first scans labeled and with random ones; print the Dice of each on the validation cases."""
    rng = np.random.default_rng(args.seed)
    arms = {"nothing": [], "rank": result["order"][: args.budget]}
    for draw in range(args.random_draws):
        arms[f"random_{draw}"] = sorted(rng.permutation(sorted(result["order"]))[: args.budget].tolist())
    base = locate_dataset(model.dataset).preprocessed
    errors: dict[str, dict] = {}
    for arm, cases in arms.items():
        root = args.o / "retrain" / arm
        note, made_from = root / "arm.json", {
            "labeled": cases, "epochs": args.retrain_epochs, "dataset": base.name, "configuration": args.c,
            "trainer": args.tr, "plans": args.p, "fold": fold,
        }
        before = json.loads(note.read_text()) if note.is_file() else {}
        if any(made_from.get(name) != value for name, value in before.items()):
            sys.exit(f"{root} was trained with other labels or options ({note}): give another -o, or remove it")
        root.mkdir(parents=True, exist_ok=True)
        replace_json(note, made_from)
        if not (root / "errors.json").is_file():
            _prepare_arm(args, base, root / "preprocessed" / base.name, fold, cases)
            environment = {**os.environ, "nnUNet_preprocessed": str((root / "preprocessed").resolve()),
                           "nnUNet_results": str((root / "results").resolve())}
            subprocess.run([sys.executable, *sys.argv, "--arm", str(root)], env=environment, check=True)
        errors[arm] = json.loads((root / "errors.json").read_text())
        print(f"{arm}: {len(cases)} more labels, Dice {100 * (1 - _mean_error(errors[arm]).mean()):.2f}")
    text, summary = _compared_arms(errors)
    replace_json(args.o / "retrain.json", {"labeled": arms, "epochs": args.retrain_epochs, **summary})
    print(text)


def _prepare_arm(args: argparse.Namespace, base: Path, dataset: Path, fold: int, cases: list[str]) -> None:
    """The preprocessed dataset by links, with a split and plans of its own."""
    dataset.mkdir(parents=True, exist_ok=True)
    own = {"splits_final.json", f"{args.p}.json"}
    for path in base.iterdir():
        if path.name not in own and not (dataset / path.name).exists():
            (dataset / path.name).symlink_to(path.resolve())
    split = json.loads((base / "splits_final.json").read_text())
    split[fold]["train"] = sorted([*split[fold]["train"], *cases])
    split[fold]["unlabeled"] = [case for case in split[fold]["unlabeled"] if case not in cases]
    replace_json(dataset / "splits_final.json", split)
    plans = json.loads((base / f"{args.p}.json").read_text())
    if args.retrain_epochs:
        plans.setdefault("nnunet_dhc", {})["num_epochs"] = args.retrain_epochs
    replace_json(dataset / f"{args.p}.json", plans)


def _train_arm(args: argparse.Namespace) -> None:
    """Train one arm and measure it as the scans were measured; nnU-Net's slower final validation is not run."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    register()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    trainer = get_trainer_from_args(args.d, args.c, int(args.f), args.tr, args.p, False, device)
    maybe_load_checkpoint(trainer, any(Path(trainer.output_folder).glob("checkpoint_*.pth")), False)
    trainer.run_training()
    model = find_model_folder(args.d, args.tr, args.p, args.c)
    predictor = PairPredictor(model, [int(args.f)], "checkpoint_final.pth", device, not args.disable_tta)
    base = locate_dataset(model.dataset).preprocessed
    folder = str(base / predictor.configuration_manager.data_identifier)
    dataset_class = infer_dataset_class(folder)
    cases = sorted(read_fold_cases(base, dataset_class.get_identifiers(folder), int(args.f)).validation)
    labeled = dataset_class(folder, cases)
    errors = {}
    for case in tqdm(cases, desc="Validated"):
        image, reference = (np.asarray(part[:]) for part in labeled.load_case(case)[:2])
        logits = predictor.logits(image)
        prediction = predictor.label_map(predictor.combined(logits))
        errors[case] = _errors(prediction, reference[0], structures_of(predictor, model),
                               predictor.label_manager.ignore_label)
    replace_json(args.arm / "errors.json", errors)


def _mean_error(errors: dict[str, list[float | None]]) -> np.ndarray:
    """Mean over structures of each case, in the order of their names; 0 where reference and prediction have none."""
    return np.array([np.mean([value for value in errors[case] if value is not None] or [0.0])
                     for case in sorted(errors)])


def _compared_arms(errors: dict[str, dict]) -> tuple[str, dict[str, Any]]:
    """Dice of each arm, and ``rank`` minus the mean of the random arms with a bootstrap interval over cases."""
    means = {arm: _mean_error(found) for arm, found in errors.items()}
    random = np.stack([values for arm, values in means.items() if arm.startswith("random_")])
    gain = random.mean(axis=0) - means["rank"]
    rows = np.random.default_rng(_SEED).integers(0, len(gain), (_RESAMPLES, len(gain)))
    low, high = np.quantile(gain[rows].mean(axis=1), [0.025, 0.975])
    dice = {arm: float(1 - values.mean()) for arm, values in means.items()}
    lines = ["| labeled in addition | Dice, % |", "|---|---|"]
    lines += [f"| {arm} | {100 * value:.1f} |" for arm, value in dice.items()]
    lines += ["", f"rank minus the mean of {len(random)} random draws: {100 * gain.mean():+.1f} points "
                  f"(95 % interval over {len(gain)} cases {100 * low:+.1f} to {100 * high:+.1f}; random draws from "
                  f"{100 * (1 - random.mean(axis=1)).min():.1f} to {100 * (1 - random.mean(axis=1)).max():.1f})",
              "The interval holds the variation between cases, not between trainings: where rank lies among the random "
              "draws, nothing is shown."]
    return "\n".join(lines) + "\n", {"dice": dice, "gain": float(gain.mean()), "low": float(low), "high": float(high)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True)
    parser.add_argument("-c", default="3d_fullres")
    parser.add_argument("-tr", default="nnUNetTrainerDHC")
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-f", default="0")
    parser.add_argument("-chk", default="checkpoint_final.pth")
    parser.add_argument("-o", type=Path, default=Path("rank_benchmark"))
    parser.add_argument("-device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--disable_tta", action="store_true", help="predict without mirroring")
    parser.add_argument("--cases", type=int, default=40, help="scans drawn from the key unlabeled")
    parser.add_argument("--budget", type=int, default=10)
    parser.add_argument("--diversity", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retrain", action="store_true", help="also train with the first scans labeled")
    parser.add_argument("--random-draws", type=int, default=3)
    parser.add_argument("--retrain-epochs", type=int, help="default: as the plans say")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, while an arm trains")
    parser.add_argument("--arm", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.random_draws < 1:
        parser.error("--random-draws: rank is compared with at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
