# SPDX-License-Identifier: Apache-2.0
"""List scans in nnU-Net's raw format, grouped by case: one directory scan, linear in the number of files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

IMAGES_UN = "imagesUn"
# In place of a size.
_MISSING, _NO_FILE = -1, -2
_JUNK = {"thumbs.db", "desktop.ini"}

# Name, bytes and time of last change of one file; lists after a round trip through JSON.
Source = tuple[str, int, int]


class RawCase(NamedTuple):
    """One scan on disk, not yet opened. ``problem`` says what its files alone show to be wrong."""

    identifier: str
    files: tuple[str, ...]
    sources: tuple[Source, ...]
    origin: str
    problem: str | None = None


def number_of_channels(dataset_json: dict[str, Any]) -> int:
    """Channels of every case of the dataset."""
    return len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])


def list_image_folder(folder: str | Path, dataset_json: dict[str, Any]) -> dict[str, RawCase]:
    """Group the files of ``folder`` by case.

    A file that is no image of the dataset gets an entry of its own, named ``<folder>/<file>``, with a problem.
    Symbolic links are followed; hidden files are skipped.
    """
    folder = Path(folder)
    ending = dataset_json["file_ending"]
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending), re.DOTALL)
    channels_of: dict[str, list[tuple[int, str, Source]]] = {}
    auxiliary: dict[str, tuple[str, Source]] = {}
    cases: dict[str, RawCase] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                continue
            match = pattern.fullmatch(entry.name)
            if match is not None:
                channels_of.setdefault(match[1], []).append((int(match[2]), entry.path, _source(entry)))
            elif ending.startswith(".tif") and entry.name.endswith(".json"):
                # nnU-Net's 3D TIFF reader takes the spacing from <case>.json.
                auxiliary[entry.name[: -len(".json")]] = (entry.path, _source(entry))
            else:
                name = f"{folder.name}/{entry.name}"
                problem = _why_not_an_image(entry, ending)
                cases[name] = RawCase(name, (entry.path,), (_source(entry),), folder.name, problem)
    num_channels = number_of_channels(dataset_json)
    for identifier, files in channels_of.items():
        files.sort()
        sources = [source for _, _, source in files]
        if identifier in auxiliary:
            sources.append(auxiliary[identifier][1])
        cases[identifier] = RawCase(
            identifier,
            tuple(path for _, path, _ in files),
            tuple(sources),
            folder.name,
            _problem_of_files(files, num_channels, ending),
        )
    return cases


def list_training_images(
    raw_dataset_folder: str | Path, dataset_json: dict[str, Any], identifiers: Iterable[str]
) -> dict[str, RawCase]:
    """Images (never labels) of training cases, from ``imagesTr`` or the mapping "dataset" of ``dataset.json``."""
    raw = Path(raw_dataset_folder)
    wanted = list(identifiers)
    if not wanted:
        return {}
    mapping = dataset_json.get("dataset")
    if mapping is None:
        if not (raw / "imagesTr").is_dir():
            return {}
        listing = list_image_folder(raw / "imagesTr", dataset_json)
        return {identifier: listing[identifier] for identifier in wanted if identifier in listing}
    cases = {}
    for identifier in wanted:
        if identifier not in mapping:
            continue
        files = [os.path.expandvars(file) for file in mapping[identifier]["images"]]
        files = [file if os.path.isabs(file) else os.path.abspath(raw / file) for file in files]
        sources = tuple(_source(Path(file)) for file in files)
        gone = [file for file, source in zip(files, sources, strict=True) if source[1] == _MISSING]
        problem = f"{gone[0]} does not exist" if gone else None
        if len(gone) < len(files):
            cases[identifier] = RawCase(identifier, tuple(files), sources, "imagesTr", problem)
    return cases


def training_identifiers(raw_dataset_folder: str | Path, dataset_json: dict[str, Any]) -> list[str]:
    """Identifiers of the training cases in raw data; empty where there are none."""
    if "dataset" in dataset_json:
        return sorted(dataset_json["dataset"])
    folder = Path(raw_dataset_folder) / "imagesTr"
    if not folder.is_dir():
        return []
    return sorted(_image_identifiers(folder, dataset_json["file_ending"]))


def _image_identifiers(folder: Path, ending: str) -> set[str]:
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(ending), re.DOTALL)
    return {match[1] for name in _file_names(folder) if (match := pattern.fullmatch(name))}


def _file_names(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name


def _source(entry: os.DirEntry | Path) -> Source:
    try:
        stat = entry.stat()
    except OSError:
        return (entry.name, _MISSING, 0)
    return (entry.name, stat.st_size if S_ISREG(stat.st_mode) else _NO_FILE, stat.st_mtime_ns)


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _why_not_an_image(entry: os.DirEntry, ending: str) -> str:
    if entry.is_dir():
        return f"is a folder; put the images themselves here, named <case>_0000{ending}"
    if entry.name.endswith(ending):
        stem = entry.name[: -len(ending)]
        return f"has no channel number; rename it to {stem}_0000{ending}"
    return f"does not end in {ending}, the file_ending of dataset.json; convert it, or move it away"


def _problem_of_files(files: list[tuple[int, str, Source]], num_channels: int, ending: str) -> str | None:
    for _, path, (name, *_) in files:
        if not _is_text(path):
            return f"{path if _is_text(name) else name!a} is no valid UTF-8, which ends SimpleITK; rename it"
    numbers = [number for number, _, _ in files]
    gaps = sorted(set(range(min(numbers[-1] + 1, num_channels))) - set(numbers))
    if gaps:
        return f"lacks the channel _{gaps[0]:04d}{ending}; dataset.json names {num_channels}"
    extra = [number for number in numbers if number >= num_channels]
    if extra:
        return f"has an extra channel (_{extra[0]:04d}{ending}); dataset.json names {num_channels}"
    for _, path, (name, size, _) in files:
        if size == _MISSING:
            what = "is a broken link" if os.path.islink(path) else "can't be opened"
            return f"{name} {what}"
        if size == _NO_FILE:
            return f"{name} is no file"
        if size == 0:
            return f"{name} is empty (0 bytes)"
    return None
