# SPDX-License-Identifier: Apache-2.0
"""Write files so that a kill or a full disk never leaves one half written under its final name."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_dhc.errors import UserError

# Files under this name belong to a run that is still writing, or to one that was killed.
TEMPORARY_PREFIX = ".writing-"


def temporary_path(folder: str | os.PathLike, ending: str = "") -> Path:
    """A name in ``folder`` (so that the rename stays on one file system) that nobody else uses."""
    return Path(folder) / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{ending}"


def write_and_sync(path: str | os.PathLike, content: bytes) -> None:
    """Write a new file and wait until it is on the disk; remove it if that fails."""
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise


def sync_folder(folder: str | os.PathLike) -> None:
    """Make renames in ``folder`` durable; a no-op where folders can't be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync a folder
    finally:
        os.close(descriptor)


@contextmanager
def new_output(output: Path, ending: str = "") -> Iterator[Path]:
    """Give a path beside ``output`` for a file or folder that gets its name when it is whole, else is removed.

    Raises:
        UserError: It can't be written.
    """
    folder = output.absolute().parent
    partial = temporary_path(folder, ending)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield partial
        os.rename(partial, output)
    except OSError as error:
        raise UserError(
            f"{output} can't be written ({error.strerror or error}): free space or choose another -o"
        ) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
    sync_folder(folder)


def replace_file(path: str | os.PathLike, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step."""
    path = Path(path)
    temporary = temporary_path(path.parent, path.suffix)
    write_and_sync(temporary, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_json(path: str | os.PathLike, content: Any) -> None:
    """Put ``content`` as JSON at ``path`` in one step; file names that are not valid text stay readable."""
    replace_file(path, json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def remove_temporary_files(folder: str | os.PathLike) -> None:
    """Remove what killed runs left in ``folder``; call it only where nobody else can be writing."""
    with os.scandir(folder) as entries:
        leftovers = [entry.path for entry in entries if entry.name.startswith(TEMPORARY_PREFIX)]
    for path in leftovers:
        Path(path).unlink(missing_ok=True)
