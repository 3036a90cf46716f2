# SPDX-License-Identifier: Apache-2.0
"""Turn what the operating system and torch raise in a long run into one line with a remedy."""

from __future__ import annotations

import errno
import os
import shutil

from nnunet_dhc.errors import UserError, first_line
from nnunet_dhc.nnunet.reliability.compile_fallback import first_words, is_compile_failure
from nnunet_dhc.nnunet.reliability.device_errors import is_device_lost, is_out_of_memory

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE)
_ALMOST_NOTHING_BYTES = 1 << 16


def explained(error: BaseException, output_folder: str | None, preprocess: str, resume: str) -> BaseException:
    """The ``UserError`` that says what to do about this exception, or the exception itself.

    Args:
        error: What ended a training or a validation.
        output_folder: Folder of the fold.
        preprocess: nnU-Net's command that makes preprocessed cases.
        resume: The command that continues.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return _of_os_error(error, output_folder, preprocess, resume)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return UserError(
            f"Out of memory ({_first_sentences(error, 1)}): set nnUNet_n_proc_DA to fewer workers, or give this run "
            f"more memory, then continue with: {resume}"
        )
    if is_out_of_memory(error):
        return UserError(
            f"Out of GPU memory ({_first_sentences(error, 3)}). Free the GPU of other programs and continue with: "
            f"{resume}; or train anew with less memory, under new plans (-p): nnunet_dhc configure ... --set "
            "low_memory=on, or a smaller batch_size or patch_size in them"
        )
    if is_device_lost(error):
        return UserError(
            f"CUDA has failed ({first_line(error, type(error).__name__)}), and nothing runs on the GPU in this process "
            f"any more. The last whole checkpoint is kept; continue with: {resume}. If nvidia-smi doesn't list the "
            "GPU, restart the machine first; if the error comes back, see the traceback in the log"
        )
    if is_compile_failure(error):
        return UserError(
            f"torch.compile failed ({first_words(error)}): train without it (export nnUNet_compile=f); continue with: "
            f"{resume}"
        )
    if isinstance(error, RuntimeError) and output_folder is not None and is_full(output_folder):
        return _disk_is_full(output_folder, resume)  # SimpleITK and torch say so in words of their own
    return error


def is_full(folder: str) -> bool:
    """Whether the disk under ``folder`` has no room left."""
    try:
        return shutil.disk_usage(folder).free < _ALMOST_NOTHING_BYTES
    except OSError:
        return False


def _of_os_error(error: OSError, output_folder: str | None, preprocess: str, resume: str) -> BaseException:
    path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else output_folder
    if error.errno in _FULL:
        return _disk_is_full(path, resume)
    if error.errno in _NOT_ALLOWED:
        return UserError(
            f"{path} can't be written or read ({error.strerror}): give this user the permission, then continue with: "
            f"{resume}"
        )
    if error.errno == errno.EMFILE:
        return UserError(f"Too many open files: raise the limit (ulimit -n 65536), then continue with: {resume}")
    if error.errno in _GONE:
        where = f"run {preprocess}" if _is_preprocessed(path) else "bring it back"
        return UserError(f"{path} can't be used ({error.strerror}): {where}, then continue with: {resume}")
    return error


def _disk_is_full(path: str | None, resume: str) -> UserError:
    return UserError(
        f"The disk is full: {path} can't be written. The last whole checkpoint is kept. Free space, then continue "
        f"with: {resume}"
    )


def _is_preprocessed(path: str | None) -> bool:
    root = os.environ.get("nnUNet_preprocessed")
    return bool(path and root) and os.path.abspath(path).startswith(os.path.abspath(root) + os.sep)


def _first_sentences(error: BaseException, count: int) -> str:
    """Torch's first says that memory is full, its second how much was asked for, its third how much there is."""
    text = " ".join(str(error).split()) or type(error).__name__
    return ". ".join(text.split(". ")[:count]).rstrip(".")
