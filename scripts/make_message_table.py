#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write docs/reference/messages.md: make every fault, run the real command, keep what it prints.

    python scripts/make_message_table.py                # all, some minutes
    python scripts/make_message_table.py --only Ctrl-C  # those rows anew, the others as they stand
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "cli")]

from console import environment  # noqa: E402
from faults import FAULTS, Fault  # noqa: E402
from tiny_data import TinyDataset, plan_and_preprocess, write_raw_dataset  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "messages.md"
HEAD = """# Messages

What you read when something is wrong: the last line on standard error, as the real commands printed it on a tiny
dataset (`python scripts/make_message_table.py` writes this page; `tests/cli/test_messages.py` checks every row). Paths
are shortened to nnU-Net's three variables. For `nnUNetv2_train`, the traceback is in the fold's `training_log_*.txt`.
Nothing that was finished is lost: scans that are preprocessed stay so, and the last whole checkpoint is kept.
"""
NOT_MADE = "(not made here: it needs the right to mount a small disk)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=None, metavar="TEXT", help="faults whose name contains this")
    args = parser.parse_args()
    rows = read_rows(PAGE.read_text()) if args.only and PAGE.is_file() else {}
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        template = make_template(Path(folder) / "template")
        for fault in FAULTS:
            if args.only and args.only not in fault.name:
                continue
            dataset = TinyDataset(Path(folder) / "copy")
            shutil.copytree(template.root, dataset.root)
            rows[fault.name], as_expected = row(fault, dataset)
            print(f"{fault.name}: {rows[fault.name]}", flush=True)
            if not as_expected:
                failed.append(fault.name)
            shutil.rmtree(dataset.root)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(rows))
    if failed:
        print(f"not as expected: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def make_template(root: Path) -> TinyDataset:
    dataset = TinyDataset(root)
    write_raw_dataset(dataset.raw)
    (root / "results").mkdir()
    os.environ.update({k: v for k, v in environment(dataset, {}).items() if k.startswith("nnUNet_")})
    os.environ["nnUNet_n_proc_DA"] = "1"  # planning can't do with 0
    plan_and_preprocess(dataset.raw, dataset.preprocessed, ("3d_fullres",))
    return dataset


def row(fault: Fault, dataset: TinyDataset) -> tuple[str, bool]:
    """The message, and whether it has what the test asks for."""
    try:
        with fault.made(dataset):
            outcome = fault.meet(dataset)
    except pytest.skip.Exception:
        return NOT_MADE, True
    message = fault.message(outcome)
    as_expected = outcome.code == fault.code and all(needle in message for needle in fault.needles)
    return shortened(message, dataset), as_expected


def shortened(message: str, dataset: TinyDataset) -> str:
    for name in ("raw", "preprocessed", "results"):
        message = message.replace(str(dataset.root / name), f"<nnUNet_{name}>")
    message = re.sub(r"free now: [^)]*", "free now: ...", message)
    return message.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def page(rows: dict[str, str]) -> str:
    parts = [HEAD]
    for title, faults in sections().items():
        parts.append(f"\n## {title}\n\n| What is wrong | What you read |\n|---|---|\n")
        parts += [f"| {fault.name} | {rows.get(fault.name, '(not run yet)')} |\n" for fault in faults]
    return "".join(parts)


def sections() -> dict[str, list[Fault]]:
    """Faults by the command that meets them and by how it ends."""
    found: dict[str, list[Fault]] = {}
    for fault in FAULTS:
        program = "nnunet_dhc preprocess" if fault.command[0] == "nnunet_dhc" else fault.command[0]
        if fault.on_stdout:
            title = "Notes on standard output; the command goes on"
        elif fault.code > 128:
            title = f"`{program}` is asked to stop (exit code 128 + the signal's number)"
        else:
            title = f"`{program}` stops with exit code {fault.code}"
        found.setdefault(title, []).append(fault)
    return found


def read_rows(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| What is wrong")]
    return dict(line[2:-2].split(" | ", 1) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
