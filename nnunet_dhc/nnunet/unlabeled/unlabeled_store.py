# SPDX-License-Identifier: Apache-2.0
"""The folder of preprocessed unlabeled cases and the manifest that says what each was made from.

``<preprocessed>/<dataset>/<data_identifier>_unlabeled/`` holds, per case, ``<case>.b2nd`` (image, float32,
(c, x, y, z)), ``<case>_nonzero.b2nd`` where normalization uses the nonzero mask, and ``<case>.json`` (properties).
``manifest.jsonl`` only grows; the last line of a case counts, and a line that a kill has torn off is ignored.
Files get their final name first and their manifest line last, so that a line always means complete files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from nnunet_dhc.errors import UserError
from nnunet_dhc.nnunet.host.atomic_files import sync_folder
from nnunet_dhc.nnunet.host.raw_images import Source

MANIFEST_FILE = "manifest.jsonl"
BAD_CASES_FILE = "bad_cases.json"
READY, EXCLUDED = "ready", "excluded"
REMOVED = "removed"  # from imagesUn; its files stay, in case it is put back

# Case files must never get one of the names that the folder uses itself.
_OWN_STEMS = {"bad_cases", "labeled_cases", "labeled_hashes", "manifest"}
_MASK_SUFFIX = "_nonzero"
_LONGEST_STEM = 200
_PLAIN_NAME = re.compile(r"\w[\w.\-]{0,49}")
_UNSAFE = frozenset('/\\:*?"<>|%')


class StoreEntry(NamedTuple):
    """One manifest line."""

    identifier: str
    status: str
    origin: str
    sources: tuple[Source, ...]
    reason: str | None = None
    voxels: str | None = None
    preprocessing: str | None = None
    spacing: tuple[float, ...] | None = None
    shape: tuple[int, ...] | None = None
    nonzero_mask: bool = False
    odd: str | None = None


class UnlabeledStore:
    """Manifest and file names of one folder; reads the manifest once.

    Args:
        folder: The folder; it need not exist as long as nothing is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest_path = self.folder / MANIFEST_FILE
        self.entries: dict[str, StoreEntry] = {}
        self._needs_newline = False
        self.read()

    def read(self) -> None:
        """Read the manifest (again)."""
        self.entries = {}
        self._needs_newline = False
        try:
            file = open(self.manifest_path, encoding="ascii", errors="replace", newline="\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.manifest_path} can't be read ({error.strerror}).") from error
        with file:
            for line in file:
                self._needs_newline = not line.endswith("\n")
                entry = _parse(line)
                if entry is not None:
                    self.entries[entry.identifier] = entry

    def append(self, entries: Iterable[StoreEntry]) -> None:
        """Add lines and wait until they are on the disk."""
        lines = [json.dumps(entry._asdict(), ensure_ascii=True) + "\n" for entry in entries]
        if not lines:
            return
        text = ("\n" if self._needs_newline else "") + "".join(lines)
        before = os.path.getsize(self.manifest_path) if self.manifest_path.exists() else 0
        with open(self.manifest_path, "ab") as file:
            try:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
        self._needs_newline = False
        for line in lines:
            entry = _parse(line)
            if entry is not None:
                self.entries[entry.identifier] = entry

    def add_ready(self, entry: StoreEntry, written: Mapping[str, str | None]) -> None:
        """Give the files of a case their final names, then record it.

        Args:
            entry: The new manifest line.
            written: Temporary path (in this folder, synced) by kind: "image", "nonzero" or "properties".
        """
        names = case_files(entry.identifier)
        for kind, temporary in written.items():
            if temporary is not None:
                os.replace(temporary, self.folder / names[kind])
        if not entry.nonzero_mask:
            (self.folder / names["nonzero"]).unlink(missing_ok=True)
        sync_folder(self.folder)
        self.append([entry])

    def complete_cases(self, identifiers: Iterable[str]) -> set[str]:
        """Those of ``identifiers`` whose manifest line says ready and whose files are there; lists the folder once."""
        try:
            names = set(os.listdir(self.folder))
        except FileNotFoundError:
            return set()
        complete = set()
        for identifier in identifiers:
            entry = self.entries.get(identifier)
            if entry is None or entry.status != READY:
                continue
            files = case_files(identifier)
            if not entry.nonzero_mask:
                del files["nonzero"]
            if names.issuperset(files.values()):
                complete.add(identifier)
        return complete


def case_files(identifier: str) -> dict[str, str]:
    """File names of a case by kind."""
    stem = file_stem(identifier)
    return {"image": f"{stem}.b2nd", "nonzero": f"{stem}{_MASK_SUFFIX}.b2nd", "properties": f"{stem}.json"}


def file_stem(identifier: str) -> str:
    """File name (without ending) of a case: the identifier itself wherever that is a safe and unambiguous name.

    It never leaves the folder (separators and a leading dot are escaped), never equals a file of another kind, and
    two identifiers never share one, on a disk that tells Case_1 from case_1.
    """
    if (
        _PLAIN_NAME.fullmatch(identifier)
        and identifier not in _OWN_STEMS
        and not identifier.endswith((_MASK_SUFFIX, "."))
    ):
        return identifier
    stem = "".join(quote(c, safe="") if c in _UNSAFE else f"%{ord(c):02X}" if ord(c) < 32 else c for c in identifier)
    if stem.startswith("."):
        stem = "%2E" + stem[1:]
    if stem in _OWN_STEMS or stem.endswith((_MASK_SUFFIX, ".", " ")):
        stem = stem[:-1] + f"%{ord(stem[-1]):02X}"
    if len(os.fsencode(stem)) > _LONGEST_STEM:
        digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        stem = os.fsencode(stem)[: _LONGEST_STEM - 40].decode(errors="ignore") + "%" + digest
    return stem


def store_folder(preprocessed_dataset_folder_base: str | Path, data_identifier: str) -> Path:
    """Where the unlabeled cases of a configuration live: beside nnU-Net's folder, never in it."""
    return Path(preprocessed_dataset_folder_base) / f"{data_identifier}_unlabeled"


def _parse(line: str) -> StoreEntry | None:
    try:
        fields = json.loads(line)
        fields["sources"] = tuple((name, size, changed) for name, size, changed in fields["sources"])
        for key in ("spacing", "shape"):
            if fields.get(key) is not None:
                fields[key] = tuple(fields[key])
        # a later version may know more of a case
        return StoreEntry(**{key: value for key, value in fields.items() if key in StoreEntry._fields})
    except (ValueError, TypeError, KeyError):
        return None
