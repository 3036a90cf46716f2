# SPDX-License-Identifier: Apache-2.0
"""Make the trainers findable by name in every process that imports torch. Standard library only."""

import os


def shim_folder() -> str:
    """Folder that nnU-Net scans for our trainers (the only thing in it is one lazy module)."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "_nnunet_ext")


def register() -> None:
    """Append our shim folder to ``nnUNet_extTrainer`` for this process and its children.

    Called by torch through the entry-point group ``torch.backends`` (torch >= 2.5). Folders that the user has set
    stay first; children inherit the environment, so data workers and distributed ranks need nothing.
    """
    try:
        folder = shim_folder()
        folders = [f for f in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if f]
        if folder not in folders:
            os.environ["nnUNet_extTrainer"] = os.pathsep.join([*folders, folder])
    except Exception:
        # An exception here would make ``import torch`` fail for the whole environment; ``nnunet_dhc doctor`` reports
        # a lookup that does not work.
        return
