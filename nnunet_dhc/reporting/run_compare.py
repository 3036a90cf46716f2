# SPDX-License-Identifier: Apache-2.0
"""The verbs ``compare`` and ``report`` behind their options: collect, build, write, print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_dhc.errors import UserError
from nnunet_dhc.reporting.collect import Selection, collect_folders, collect_trainings
from nnunet_dhc.reporting.collection import Collection
from nnunet_dhc.reporting.compare import Options, build_comparison
from nnunet_dhc.reporting.output import write_comparison
from nnunet_dhc.reporting.render_text import render_text
from nnunet_dhc.reporting.report import build_report


def compare_from_arguments(args: argparse.Namespace) -> None:
    """Run ``nnunet_dhc compare``."""
    collection = _collection(args)
    options = Options(protocol=args.protocol, baseline=args.baseline, processes=max(1, args.np),
                      anonymise=args.anonymise, images=not args.no_images, cache_folder=args.o)
    comparison = build_comparison(collection, options)
    written = write_comparison(comparison, args.o)
    print(render_text(comparison, color=sys.stdout.isatty()))
    print("Written: " + ", ".join(str(path) for path in written))


def report_from_arguments(args: argparse.Namespace) -> None:
    """Run ``nnunet_dhc report``."""
    selection = Selection(args.d, [args.tr], [args.p], [args.c], args.f, tuple(args.results_roots or ()))
    collection = collect_trainings(selection, allow_different=True, unfinished=True)
    options = Options(protocol=args.protocol, processes=max(1, args.np), anonymise=args.anonymise,
                      images=not args.no_images, cache_folder=args.o)
    report = build_report(collection, options)
    written = write_comparison(report, args.o, "report")
    print(report["verdict"]["sentence"])
    print("Written: " + ", ".join(str(path) for path in written))


def _collection(args: argparse.Namespace) -> Collection:
    _refuse_both_kinds(args)
    if args.i:
        if args.ref is None or args.djfile is None:
            raise UserError("-i needs -ref (folder of reference label maps) and -djfile (dataset.json).")
        return collect_folders(_named_folders(args.i), args.ref, args.djfile, args.images, args.allow_different)
    if args.d is None or not args.tr:
        raise UserError("Say what to compare: -d and -tr for trainings, or -i NAME=DIR with -ref and -djfile.")
    return collect_trainings(Selection(args.d, args.tr, args.p, args.c, args.f, tuple(args.results_roots or ())),
                             args.allow_different)


def _refuse_both_kinds(args: argparse.Namespace) -> None:
    """Of options for trainings and options for folders, one kind would count nowhere."""
    of_trainings = {"-d": args.d, "-tr": args.tr, "-f": args.f, "--results-roots": args.results_roots}
    of_folders = {"-ref": args.ref, "-djfile": args.djfile, "--images": args.images}
    useless = [option for option, value in (of_trainings if args.i else of_folders).items() if value is not None]
    if useless and args.i:
        raise UserError(f"{useless[0]} is for trainings, -i for folders of predictions: leave one of them out.")
    if useless:
        raise UserError(f"{useless[0]} is for folders of predictions: give them with -i NAME=DIR, or leave it out.")


def _named_folders(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """Folders with the names of their rows; only names that were written say that folders are repeats of one row."""
    named = [_named_folder(text) for text in texts]
    names = [name for name, _ in named]
    for text, name in zip(texts, names, strict=True):
        if "=" not in text and names.count(name) > 1:
            raise UserError(f"-i {text} is one of {names.count(name)} folders named {name}, which would be averaged "
                            "as repeats of one training: give each a name (-i NAME=DIR), repeats the same one.")
    return named


def _named_folder(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not separator:
        return Path(os.path.abspath(text)).name, Path(text)  # of "." too, and of a link its own name
    if not name or not folder:
        raise UserError(f"-i {text} is not NAME=DIR.")
    return name, Path(folder)
