# SPDX-License-Identifier: Apache-2.0
"""What ``nnunet_dhc split`` prints: one line per fold, then what to know and what was written."""

from __future__ import annotations

from nnunet_dhc.nnunet.host.dataset_places import id_of
from nnunet_dhc.nnunet.splits.split_writer import SplitResult
from nnunet_dhc.wording import counted, name_some


def split_table(result: SplitResult, dry_run: bool = False) -> str:
    """Summary of a split, as text."""
    lines = [f"{result.dataset}: {counted(len(result.folds), 'fold')}",
             f"{'fold':>4}  {'labeled':>7}  {'unlabeled':>9}  {'validation':>10}  labeled cases"]
    for number, fold in enumerate(result.folds):
        lines.append(f"{number:>4}  {len(fold['train']):>7}  {len(fold['unlabeled']):>9}  {len(fold['val']):>10}  "
                     f"{name_some(fold['train'], 6)}")
    if result.left_out:
        lines.append(f"in no list: {counted(len(result.left_out), 'case')} ({name_some(result.left_out, 6)})")
    lines += [f"note: {note}" for note in result.notes]
    if dry_run:
        lines.append("dry run: nothing was written")
    lines += [f"kept the old file as {path}" for path in result.backups]
    lines += [f"wrote {path}" for path in result.written]
    for path in result.strict_plans:
        number = path.stem.rpartition("StrictFold")[2]
        lines.append(f"wrote {path}: nnUNetv2_preprocess -d {id_of(result.dataset)} -plans_name {path.stem}, then "
                     f"train fold {number} with -p {path.stem} (stock too)")
    return "\n".join(lines)
