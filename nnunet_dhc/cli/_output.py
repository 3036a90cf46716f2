# SPDX-License-Identifier: Apache-2.0
"""What verbs with an output folder check before they work for long."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_dhc.errors import UserError


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that can't be made or written to.

    Raises:
        UserError: ``folder`` or a folder above it is a file, or belongs to somebody else.
    """
    existing = next((path for path in (folder, *folder.absolute().parents) if os.path.exists(path)), None)
    if existing is not None and not existing.is_dir():
        raise UserError(f"-o {folder}: {existing} is a file; give a folder")
    if existing is not None and not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"-o {folder}: this user may not write to {existing}; give another folder")
