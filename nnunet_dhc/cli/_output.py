# SPDX-License-Identifier: Apache-2.0
"""What verbs with an output folder check before they work for long."""

from __future__ import annotations

from pathlib import Path

from nnunet_dhc.errors import UserError


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that can't be made because a file is in its place.

    Raises:
        UserError: ``folder`` or a folder above it is a file.
    """
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        raise UserError(f"-o {folder}: {existing} is a file; give a folder")
