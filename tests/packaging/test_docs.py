# SPDX-License-Identifier: Apache-2.0
"""The docs say what is true: generated pages, links, names of functions, commands, settings and file keys."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import re
import shlex
import sys
from dataclasses import fields
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nnunet_dhc"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXAMPLES = {"nnUNetTrainerRootRarity"}  # trainers that docs/how-to/add-a-method.md makes up


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


all_pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


@lru_cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


# ---- generated pages ----


def load_make_docs():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date():
    stale = [name_of(path) for path, text in load_make_docs().rendered().items() if path.read_text() != text]
    assert not stale, "run python scripts/make_docs.py"


# ---- links ----


def anchors(page: Path) -> set[str]:
    """Anchors of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", without_code(text_of(page)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@all_pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_every_guide_is_linked():
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s:]+)\)", text_of(page))
        if not target.startswith("#")
    }
    guides = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("docs/how-to/*.md"), *ROOT.glob("docs/explanation/*.md")]
    assert not [name_of(page) for page in guides if page.resolve() not in linked]


# ---- functions and files of the package ----


@lru_cache
def definitions(file: Path) -> set[str]:
    """Names of classes, functions, methods and module variables, dotted."""
    found = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
                found.add(prefix + child.name)
                visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.Assign):
                found.update(prefix + target.id for target in child.targets if isinstance(target, ast.Name))

    visit(ast.parse(file.read_text(encoding="utf-8")), "")
    return found


@all_pages
def test_functions_named_in_the_docs_exist(page):
    """`file.py:Name`, with the file below nnunet_dhc/, and files named alone."""
    for path, name in re.findall(r"`([\w/]+\.py):([\w.]+)`", text_of(page)):
        file = PACKAGE / path
        assert file.is_file(), path
        assert name in definitions(file), f"{path}:{name}"
    folders = "core|nnunet|trainers|reporting|cli|demo|tests|scripts"
    for path in re.findall(rf"`((?:{folders})/[\w/]+\.(?:py|sh))`", text_of(page)):
        assert (PACKAGE / path).is_file() or (ROOT / path).is_file(), path


def test_contract_names_every_overridden_method():
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_dhc.nnunet.training.pair_trainer import PairTrainer

    classes = [cls for cls in PairTrainer.__mro__ if cls.__module__.startswith("nnunet_dhc.")]
    members = [member for cls in classes for member in vars(cls).items()]
    ours = {name for name, value in members if callable(value) or isinstance(value, staticmethod)}
    page = text_of(ROOT / "docs" / "explanation" / "host-contract.md")
    assert documented(page.partition("## Other parts")[0]) == ours & set(vars(nnUNetTrainer))


# ---- commands ----


def commands(page: Path) -> list[list[str]]:
    """Words of each command of the fenced shell blocks, continued lines joined, comments off."""
    blocks = re.findall(r"```bash\n(.*?)```", text_of(page), flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def mentions(page: Path) -> list[list[str]]:
    """Words of commands in the text, in code style; they may be excerpts."""
    found = re.findall(r"`((?:nnunet_dhc|nnUNetv2_\w+|bash|python) [^`<]+)`", without_code(text_of(page)))
    return [shlex.split(text, comments=True) for text in found]


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    from nnunet_dhc.cli.main import build_parser

    return next(a.choices for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))


@all_pages
def test_our_commands_parse(page):
    from nnunet_dhc.cli.main import build_parser

    for words in commands(page):
        if words[0] != "nnunet_dhc" or "..." in words:
            continue
        handed_over = words[1] in ("train", "predict")
        try:
            build_parser().parse_args(words[1:2] if handed_over else words[1:])
        except SystemExit as end:
            assert end.code == 0, words


@all_pages
def test_configure_commands_name_dataset_and_new_plans(page):
    for words in [*commands(page), *mentions(page)]:
        if words[:2] == ["nnunet_dhc", "configure"] and words[2:] and not {"--list", "..."} & set(words):
            assert {"-d", "-o"} <= set(words), words


@all_pages
def test_verbs_and_options_in_the_text_exist(page):
    parsers = verb_parsers()
    for words in mentions(page):
        if words[0] != "nnunet_dhc":
            continue
        assert words[1] in parsers, words
        known = {option for action in parsers[words[1]]._actions for option in action.option_strings}
        options = [word for word in words[2:] if re.match(r"-{1,2}[a-zA-Z]", word)]
        assert parsers[words[1]].add_help is False or set(options) <= known, words


@all_pages
def test_programs_exist(page):
    programs = {point.name for point in metadata.entry_points(group="console_scripts")}
    for program, *arguments in [*commands(page), *mentions(page)]:
        if program.startswith(("nnUNetv2_", "nnunet_dhc")):
            assert program in programs, program
        if program in ("bash", "python") and not arguments[0].startswith("-"):
            assert (ROOT / arguments[0]).is_file(), arguments


@all_pages
def test_settings_in_commands_are_valid(page):
    from nnunet_dhc.nnunet.training.configure_plans import check_settings, parse_setting
    from nnunet_dhc.trainers.lookup import trainer_class

    for words in [*commands(page), *mentions(page)]:
        settings = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set" and "=" in words[i + 1]]
        trainer = words[words.index("-tr") + 1] if settings and "-tr" in words else "nnUNetTrainerDHC"
        check_settings(dict(map(parse_setting, settings)), trainer_class(trainer).recipe, name_of(page))


# ---- names ----


@lru_cache
def stock_trainers() -> set[str]:
    """Names of all trainers that the installed nnU-Net has."""
    folder = Path(importlib.util.find_spec("nnunetv2").submodule_search_locations[0]) / "training" / "nnUNetTrainer"
    sources = [path.read_text(encoding="utf-8") for path in folder.rglob("*.py")]
    return {name for source in sources for name in re.findall(r"^class (nnUNetTrainer\w*)", source, re.MULTILINE)}


@all_pages
def test_trainers_named_in_the_docs_exist(page):
    from nnunet_dhc.trainers.lookup import is_trainer_name

    stock = stock_trainers()
    for name in {found.partition("__")[0] for found in re.findall(r"\bnnUNetTrainer\w*", text_of(page))} - EXAMPLES:
        if f"{name}<" in text_of(page) or f"{name}..." in text_of(page):  # a pattern such as nnUNetTrainer_<N>epochs
            continue
        assert name in stock or is_trainer_name(name), name


def test_settings_named_in_the_docs_exist():
    from nnunet_dhc.nnunet.training.recipe import Recipe

    known = {field.name for field in fields(Recipe)}
    for page in (ROOT / "docs" / "explanation" / "recipes.md", ROOT / "docs" / "explanation" / "reading-the-curves.md"):
        for name in re.findall(r"`(\w+)` = `", text_of(page)):
            assert name in known, f"{name_of(page)}: {name}"


# ---- keys of the files ----


def strings_of(file: str, function: str) -> tuple[set[str], set[str]]:
    """Keys of dictionaries and names of keyword arguments in one method of a file."""
    tree = ast.parse((PACKAGE / file).read_text())
    node = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    keys = {k.value for d in ast.walk(node) if isinstance(d, ast.Dict) for k in d.keys if isinstance(k, ast.Constant)}
    calls = [c for c in ast.walk(node) if isinstance(c, ast.Call)
             and isinstance(c.func, ast.Attribute) and c.func.attr == "update"]
    return keys, {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}


def section(page: str, heading: str) -> str:
    text = text_of(ROOT / "docs" / "reference" / page)
    return text.partition(f"### {heading}\n")[2].partition("\n##")[0]


def documented(part: str) -> set[str]:
    first_cells = re.findall(r"^\| (`.*?) \|", part, flags=re.MULTILINE)
    return {name for cell in first_cells for name in re.findall(r"`([\w.]+)`", cell)}


def test_every_key_of_the_epoch_log_is_documented():
    import torch

    from nnunet_dhc.core.label_spaces import ClassLabels
    from nnunet_dhc.nnunet.training.epoch_statistics import TrainingStatistics, ValidationStatistics

    training = TrainingStatistics(2).read()
    statistics = ValidationStatistics(ClassLabels(2))
    statistics.add(*torch.rand(3, 1, 2, 3, 3), torch.zeros(1, 1, 3, 3, dtype=torch.int64))
    written, _ = strings_of("nnunet/training/run_files.py", "log_epoch")
    keys = {*written, *training, *statistics.read(across_ranks=False)} - {"seconds", "losses", "loading"}
    keys |= {f"losses.{term}" for term in training["losses"]}
    keys |= {f"seconds.{part}" for part in ("epoch", "loading", "forward", "backward")}
    assert documented(section("files.md", "dhc_log.jsonl")) == keys


def test_every_key_of_the_run_record_is_documented():
    _, at_start = strings_of("nnunet/training/run_files.py", "start")
    _, at_epoch = strings_of("nnunet/training/run_files.py", "log_epoch")
    keys = at_start | at_epoch | {"split_hash", "unlabeled_hash", "unlabeled_images_hash"}
    assert documented(section("files.md", "dhc_run.json")) == keys


def test_every_key_of_the_manifest_is_documented():
    from nnunet_dhc.nnunet.unlabeled.unlabeled_store import StoreEntry

    assert documented(section("files.md", "manifest.jsonl")) == set(inspect.signature(StoreEntry).parameters)


# ---- examples ----


def test_example_of_a_new_weighting_runs():
    import torch

    blocks = re.findall(r"```python\n(.*?)```", text_of(ROOT / "docs" / "how-to" / "add-a-method.md"), flags=re.DOTALL)
    names: dict = {}
    exec(compile(blocks[0], "add-a-method.md", "exec"), names)
    weights = names["RootRarity"](4).initialize(torch.tensor([100, 25, 4, 0]))
    assert weights.tolist() == [1, 2, 5, 10]  # by hand: sqrt(100 / (100, 25, 4, 1))
    exec(compile(blocks[1].replace('"rootrarity"', '"none"'), "add-a-method.md", "exec"), names)
    exec(compile("from nnunet_dhc.trainers.table import Method\n" + blocks[2], "add-a-method.md", "exec"), names)


def test_citation_file_has_the_version():
    from nnunet_dhc import __version__

    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text().splitlines()


def test_docs_name_no_machine():
    """Nobody else has our folders."""
    for page in PAGES:
        found = re.search(rf"/(root|work|home|tmp)/|{re.escape(sys.prefix)}", text_of(page))
        assert not found, f"{name_of(page)}: {found[0]}"
