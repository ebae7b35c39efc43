"""The errors of this package that are the user's to mend."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class DataError(ValueError):
    """A file, a sample or the machine is at fault. The message is one line that names it and says what to do.

    Programs print it without a traceback and exit with status 1 (`run_program`). Also a `ValueError`, which FFCV raises
    where it refuses a file.
    """


def usage_error(message: str) -> NoReturn:
    """End the program with status 2 and one line on stderr."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def wrong_options() -> Iterator[None]:
    """Turn a ValueError of the enclosed calls into a `usage_error`; a `DataError` stays one."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        usage_error(str(error))


def printable(text: str) -> str:
    """A text that any UTF-8 file or terminal takes: what is not UTF-8 in the name of a file, as \\udce9 for byte E9."""
    return text.encode("utf-8", "backslashreplace").decode()


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose errors are one line, without the usage, and status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        usage_error(message)


def run_program(main: Callable[[], None]) -> None:
    """Run a command line program: the user's mistakes end in one line on stderr, not in a traceback.

    What stdout cannot encode, such as the name of a file that is not UTF-8, is printed as an escape sequence.

    Exit status 1 for a `DataError`, 130 for an interrupt; a wrong option is a `usage_error`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as that of stderr
    try:
        main()
    except DataError as error:
        message = " ".join(str(error).split())
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
