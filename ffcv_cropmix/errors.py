"""Errors that the user can correct, and how programs report them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class DataError(ValueError):
    """A file, a sample or the machine is at fault. The message is one line that names it and says what to do.

    Programs print the message without a traceback and exit with status 1 (see `run_program`). `DataError` is a
    `ValueError`, which is what FFCV raises when it refuses a file.

    Example:
        >>> raise DataError("train.beton is empty: write it again")
        Traceback (most recent call last):
            ...
        ffcv_cropmix.errors.DataError: train.beton is empty: write it again
    """


def require(valid: bool, key: str, rule: str, value: object) -> None:
    """Check the value of an option.

    Args:
        valid: whether the value keeps the rule.
        key: the option's name.
        rule: what the value must be, such as ">= 1 px".
        value: the value.

    Raises:
        ValueError: the value is not valid; the message states the rule and the value.

    Example:
        >>> require(False, "training.epochs", ">= 1", 0)
        Traceback (most recent call last):
            ...
        ValueError: training.epochs must be >= 1, got 0
    """
    if not valid:
        raise ValueError(f"{key} must be {rule}, got {value!r}")


def usage_error(message: str) -> NoReturn:
    """End the program with status 2 and one line on stderr."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def wrong_options() -> Iterator[None]:
    """Turn a ValueError raised in the block into a `usage_error`; a `DataError` passes unchanged."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        usage_error(str(error))


def printable(text: str) -> str:
    r"""Escape what UTF-8 cannot encode, such as the bytes of a file name that is not UTF-8.

    Example:
        >>> printable("caf\udce9")
        'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def run_program(main: Callable[[], None]) -> None:
    """Run a command line program and report the user's mistakes in one line on stderr, without a traceback.

    The exit status is 1 after a `DataError` and 130 after Ctrl-C; `usage_error` exits with 2. What stdout cannot encode
    is printed as an escape sequence.

    Args:
        main: the program.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    try:
        main()
    except DataError as error:
        message = " ".join(str(error).split())
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
