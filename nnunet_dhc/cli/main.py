# SPDX-License-Identifier: Apache-2.0
"""The command ``nnunet_dhc <verb>``: build the parser from the verb modules and run one of them."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
import tempfile
import traceback
from importlib import import_module
from typing import NoReturn, TextIO

from nnunet_dhc import __version__
from nnunet_dhc._autoload import register
from nnunet_dhc.errors import UserError, first_line

# Each name is a module of this package with HELP, add_arguments(parser) and run(args). One with HANDS_OVER takes every
# argument as it is, -h included, for a parser of nnU-Net's.
VERBS = (
    "split", "preprocess", "configure", "train", "predict", "compare", "report", "rank", "adjust", "export", "import",
    "methods", "doctor", "demo", "env",
)


_SHOW_THE_LOOKUP = ("doctor", "env")  # as it is in the user's shell
_PLAIN_DASHES = "nnunet_dhc_plain_dashes"


class _Parser(argparse.ArgumentParser):
    """One line for each error, as all other errors have."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} -h\n")


def build_parser() -> argparse.ArgumentParser:
    """Parser with one sub-parser per verb; importing it never imports torch."""
    parser = _Parser(prog="nnunet_dhc", description="Semi-supervised training for nnU-Net v2.")
    parser.add_argument("--version", action="version", version=f"nnunet_dhc {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        module = import_module(f"nnunet_dhc.cli.{verb.replace('import', 'import_')}")
        if getattr(module, "HANDS_OVER", False):
            # With a prefix that nobody types, every argument is positional.
            sub = verbs.add_parser(verb, help=module.HELP, add_help=False, prefix_chars="\0")
            sub.add_argument("arguments", nargs="*")
            sub.set_defaults(run=module.run, debug=False, parser=sub)
            continue
        sub = verbs.add_parser(verb, help=module.HELP, description=module.HELP)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(sub)
        sub.set_defaults(run=module.run, parser=sub)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one verb; an error is one line on standard error and exit code 2."""
    _print_in_any_encoding(sys.stdout)
    try:
        try:
            return _run(_parsed(argv))
        finally:
            if sys.stdout is not None:  # closed by whoever started this
                sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; what a verb doesn't know is the verb's error, not that of the whole command."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    words = sys.argv[1:] if argv is None else argv
    if before := [word for word in words[: words.index(args.verb)] if word in unknown]:
        parser.error(f"unrecognized arguments: {' '.join(before)}; options stand behind the verb")
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _run(args: argparse.Namespace) -> int:
    if args.verb not in _SHOW_THE_LOOKUP:
        register()  # importing torch does it, too, unless TORCH_DEVICE_BACKEND_AUTOLOAD is 0
    try:
        return args.run(args) or 0
    except UserError as error:
        if args.debug:
            raise
        print(f"nnunet_dhc {args.verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:
        if args.debug or "arguments" in args:  # nnU-Net's commands have no --debug: their traceback stays
            raise
        print(f"nnunet_dhc {args.verb}: {_in_one_line(error)}", file=sys.stderr)
        return 2
    except Exception as error:
        if args.debug or "arguments" in args:
            raise
        print(f"nnunet_dhc {args.verb}: {_with_traceback_kept(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nnunet_dhc {args.verb}: interrupted; what was finished is kept.", file=sys.stderr)
        return 130


def _print_in_any_encoding(stream: TextIO) -> None:
    """Print a hyphen for a minus or dash that the terminal lacks, and escape what else it lacks, instead of failing."""
    if isinstance(stream, io.TextIOWrapper):
        codecs.register_error(_PLAIN_DASHES, _plain_dashes)
        stream.reconfigure(errors=_PLAIN_DASHES)


def _plain_dashes(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError):
        if error.object[error.start] in "\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}":
            return "-", error.start + 1
        error.end = error.start + 1  # the next one may be a dash
    return codecs.backslashreplace_errors(error)


def _with_traceback_kept(error: Exception) -> str:
    """One line for what nobody has foreseen; nobody repeats hours of work to see where it happened."""
    of_content = isinstance(error, (KeyError, TypeError, ValueError, AttributeError))
    perhaps = "perhaps a file is damaged; " if of_content else ""
    with tempfile.NamedTemporaryFile("w", prefix="nnunet_dhc_", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return f"unexpected {type(error).__name__}: {first_line(error)}; {perhaps}{file.name} says where it happened"


def _in_one_line(error: OSError) -> str:
    files = [os.fsdecode(name) for name in (error.filename, error.filename2)
             if isinstance(name, (str, bytes, os.PathLike))]
    what = f"{' and '.join(files)}: " if files else ""
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return f"{what}{reason}; correct the path, its permissions or the disk (--debug shows where it happened)"


if __name__ == "__main__":
    sys.exit(main())
