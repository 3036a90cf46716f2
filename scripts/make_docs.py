# SPDX-License-Identifier: Apache-2.0
"""Write the pages, and the parts of pages, that come from the code: ``python scripts/make_docs.py [--check]``.

Pages: docs/reference/cli.md, methods.md and settings.md. Parts (between ``<!-- generated: NAME -->`` and
``<!-- end of NAME -->``): the method table and the list of pages of README.md, the table of recipes of
docs/explanation/recipes.md.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Written by scripts/make_docs.py from the code: change it there. -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is not up to date")
    args = parser.parse_args()
    pages = rendered()
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        print(f"{'not up to date' if args.check else 'writing'}: {path.relative_to(ROOT)}")
        if not args.check:
            path.write_text(pages[path])
    return int(args.check and bool(stale))


def rendered() -> dict[Path, str]:
    """What every page with generated content should be, by path."""
    reference = ROOT / "docs" / "reference"
    pages: dict[Path, str] = {
        reference / "cli.md": cli_page(),
        reference / "methods.md": methods_page(),
        reference / "settings.md": settings_page(),
    }
    parts: tuple[tuple[Path, str, Callable[[], str]], ...] = (
        (ROOT / "README.md", "methods", method_table),
        (ROOT / "README.md", "pages", page_list),
        (ROOT / "docs" / "explanation" / "recipes.md", "recipes", recipe_table),
    )
    for path, name, make in parts:
        pages[path] = with_part(pages.get(path) or path.read_text(), name, make())
    return pages


def with_part(text: str, name: str, content: str) -> str:
    """The page with new content between its marks."""
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise SystemExit(f"a page must have one part <!-- generated: {name} --> ... <!-- end of {name} -->")
    return pattern.sub(lambda found: f"{found[1]}\n{content}\n{found[2]}", text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def code(value: Any) -> str:
    """A value as it is written in the plans (JSON), in code style."""
    return f"`{json.dumps(value)}`"


def page_list() -> str:
    """Links to the pages of reference and of results, by their headings; pages of our own may not exist yet."""
    ours = {"cli.md": "Command line", "methods.md": "Trainers", "settings.md": "Settings"}
    lines = []
    for folder, title in (("reference", "Reference"), ("results", "Measured")):
        pages = {path.name: _heading(path) for path in (ROOT / "docs" / folder).glob("*.md")}
        pages |= ours if folder == "reference" else {}
        links = [f"[{text}](docs/{folder}/{name})" for name, text in sorted(pages.items())]
        lines.append(f"{title}: {', '.join(links)}.\n")
    return "\n".join(lines)


def _heading(page: Path) -> str:
    return next(line for line in page.read_text().splitlines() if line.startswith("# ")).removeprefix("# ")


# ---- trainers ----


def method_table() -> str:
    """Name, weightings, paper: the table on the README."""
    from nnunet_dhc.trainers.table import METHODS

    rows = [
        (f"`{m.name}`", m.summary, f"{m.weighting_a} / {m.weighting_b}", "yes" if m.uses_unlabeled else "no", m.paper)
        for m in METHODS.values()
    ]
    return table(("Trainer (`-tr`)", "What it is", "Class weights of A / B", "Unlabeled data", "Paper"), rows)


def methods_page() -> str:
    """Every trainer with its docstring."""
    from nnunet_dhc.trainers.lookup import trainer_class
    from nnunet_dhc.trainers.table import METHODS

    parts = [
        NOTICE,
        "# Trainers",
        "All of them train two networks, A and B, that teach each other. They differ in the class weights and in the "
        "losses: [recipes](../explanation/recipes.md) has every setting side by side. `nnunet_dhc methods` prints "
        "this list, `nnunet_dhc methods --json` as JSON.",
        "Each name also exists with a number of epochs: `nnUNetTrainerDHC_1epoch`, `nnUNetTrainerDHC_250epochs`, for "
        "any number. The results folder carries that name.",
        method_table(),
    ]
    for method in METHODS.values():
        file = method.module.replace(".", "/") + ".py"
        parts += [
            f"## {method.name}",
            f"`{file.removeprefix('nnunet_dhc/')}:{method.name}` ([file](../../{file})). Paper: {method.paper}.",
            f"```text\n{inspect.getdoc(trainer_class(method.name))}\n```",
        ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


# ---- settings ----


def settings_page() -> str:
    """Every setting of the recipe, and the options of each class weighting."""
    from nnunet_dhc.nnunet.training.recipe import settings_help
    from nnunet_dhc.trainers.dhc import nnUNetTrainerDHC

    settings = settings_help(nnUNetTrainerDHC.recipe)
    rows = [(f"`{name}`", code(default), expected, text) for name, default, expected, text in settings]
    weightings = []
    for name, cls in weighting_classes().items():
        options = [
            f"`{p.name}` = {code(p.default)}"
            for p in inspect.signature(cls.__init__).parameters.values()
            if p.name not in ("self", "num_classes", "mode")
        ]
        file = Path(inspect.getfile(cls)).name
        reads, listed = cls.reads.replace("_", " "), ", ".join(options) or "none"
        weightings.append((f"`{name}`", f"`core/{file}:{cls.__name__}`", reads, listed))
    parts = [
        NOTICE,
        "# Settings",
        "A trainer has a recipe; plans override it under the key `nnunet_dhc`. `nnunet_dhc configure` writes such "
        "plans and checks names and values ([how to](../how-to/change-a-setting.md)). The defaults below are those of "
        "`nnUNetTrainerDHC`; what other trainers set is in [recipes](../explanation/recipes.md). An unknown name or a "
        "value out of range ends the command, or the training before it starts, with one line that lists what is "
        "valid.",
        table(("Setting", "Default", "Valid", "Meaning"), rows),
        "## Options of the class weightings",
        "They go into `weighting_a_options` and `weighting_b_options` as a JSON object, for example "
        "`--set 'weighting_b_options={\"momentum\": 0.995}'`. Their meaning stands in the docstring of each class. "
        "`null` for `scale` is the number of classes. "
        "`configure` checks them.",
        table(("Weighting", "Class", "Reads, each step", "Options and defaults"), weightings),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def weighting_classes() -> dict[str, type]:
    """Class of every weighting of the recipe, by its name there."""
    from nnunet_dhc.nnunet.training.objective import make_weighting
    from nnunet_dhc.nnunet.training.recipe import WEIGHTINGS

    return {name: type(make_weighting(name, 2, "robust", {})) for name in WEIGHTINGS}


RECIPE_COLUMNS = (
    ("nnUNetTrainerDHC", "DHC"),
    ("nnUNetTrainerPairSupervised", "PairSupervised"),
    ("nnUNetTrainerPairMixed", "PairMixed"),
    ("nnUNetTrainerDHCPaper", "DHCPaper"),
    ("nnUNetTrainerDHCReleased", "DHCReleased"),
    ("nnUNetTrainerCPS", "CPS"),
    ("nnUNetTrainerCReST", "CReST"),
    ("nnUNetTrainerSimiS", "SimiS"),
    ("nnUNetTrainerPairDistDWDistDW", "Pair..."),
)


def recipe_table() -> str:
    """Settings in which any trainer differs from the recommended recipe; the ablation pairs share a column."""
    from nnunet_dhc.nnunet.training.recipe import Recipe
    from nnunet_dhc.trainers.lookup import trainer_class
    from nnunet_dhc.trainers.table import METHODS

    recipes = {name: trainer_class(name).recipe for name in METHODS}
    shown = {title: recipes[name] for name, title in RECIPE_COLUMNS}
    pairs = [recipe for name, recipe in recipes.items() if name not in dict(RECIPE_COLUMNS)]
    free = ("weighting_a", "weighting_b")  # what the name of an ablation pair says
    like_first = [
        setting.name
        for setting in fields(Recipe)
        if setting.name not in free
        and any(getattr(recipe, setting.name) != getattr(shown["Pair..."], setting.name) for recipe in pairs)
    ]
    if like_first:
        raise SystemExit(f"the ablation pairs differ in {', '.join(like_first)}: give each a column")
    default = Recipe()
    rows = []
    for setting in fields(Recipe):
        values = {title: getattr(recipe, setting.name) for title, recipe in shown.items()}
        if all(value == getattr(default, setting.name) for value in values.values()):
            continue
        cells = [
            "by name" if title == "Pair..." and setting.name in free else code(value) for title, value in values.items()
        ]
        rows.append((f"`{setting.name}`", *cells))
    return table(("Setting", *shown), rows)


# ---- command line ----


def cli_page() -> str:
    """Every verb with its options."""
    from nnunet_dhc.cli.main import build_parser

    action = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    verbs: dict[str, argparse.ArgumentParser] = action.choices
    helps = {choice.dest: str(choice.help) for choice in action._choices_actions}
    parts = [
        NOTICE,
        "# Command line",
        "`nnunet_dhc <verb>`. Options are spelled as nnU-Net spells its own. Errors are one line on standard error "
        "with exit code 2; `--debug` adds the traceback. `train` and `predict` hand everything to nnU-Net's commands, "
        "whose errors keep their traceback and exit code: a log of hours of work must show where it ended. Ctrl-C ends "
        "with exit code 130 and keeps what was finished.",
        table(("Verb", "What it does"), [(f"[`{v}`](#nnunet_dhc-{v})", helps[v]) for v in verbs]),
    ]
    for verb, sub in verbs.items():
        parts.append(f"## nnunet_dhc {verb}")
        parts.append(helps[verb].rstrip(".") + ".")
        if not sub.add_help:
            parts.append(f"```text\nusage: nnunet_dhc {verb} [arguments of nnU-Net's command]\n```")
            continue
        sub.formatter_class = functools.partial(argparse.HelpFormatter, width=10_000)  # a usage is one line
        options = [_option(a) for a in sub._actions if not isinstance(a, argparse._HelpAction)]
        parts += [f"```text\n{sub.format_usage().strip()}\n```", table(("Option", "Default", "Meaning"), options)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _option(action: argparse.Action) -> tuple[str, str, str]:
    name = ", ".join(action.option_strings) or str(action.dest)
    if action.choices:
        name += " " + "\\|".join(map(str, action.choices))
    elif action.nargs != 0 and action.option_strings:
        name += f" {action.metavar or action.dest.upper()}" + (" ..." if action.nargs == "+" else "")
    machine_dependent = action.dest == "np"
    if action.required:
        default = "required"
    elif action.default in (None, False, argparse.SUPPRESS, []) or machine_dependent:
        default = ""
    else:
        values = action.default if isinstance(action.default, (list, tuple)) else [action.default]
        default = f"`{' '.join(map(str, values))}`"
    return f"`{name}`".replace("\\|", "/"), default, (action.help or "").replace("%%", "%")


if __name__ == "__main__":
    sys.exit(main())
