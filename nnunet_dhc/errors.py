# SPDX-License-Identifier: Apache-2.0
"""The one exception a user is meant to read."""


class UserError(RuntimeError):
    """Bad input or a bad environment, said in one line that names the file and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
