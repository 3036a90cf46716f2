# SPDX-License-Identifier: Apache-2.0
"""The one exception a user is meant to read, and what to quote of others."""


class UserError(RuntimeError):
    """Bad input or a bad environment, said in one line that names the file and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def first_line(error: BaseException, otherwise: str = "no reason given") -> str:
    """Of what an error says; ``otherwise`` where it says nothing."""
    return next(iter(str(error).strip().splitlines()), otherwise)
