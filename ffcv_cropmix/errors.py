"""The errors of this package that are the user's to mend."""

from __future__ import annotations

import sys
from collections.abc import Callable


class DataError(Exception):
    """A file, a sample or the machine is at fault. The message is one line that names it and says what to do.

    Programs print it without a traceback and exit with status 1 (`run_program`).
    """


def run_program(main: Callable[[], None]) -> None:
    """Run a command line program: the user's mistakes end in one line on stderr, not in a traceback.

    Exit status 1 for a `DataError`, 130 for an interrupt; usage errors (status 2) are the argument parser's.
    """
    try:
        main()
    except DataError as error:
        message = " ".join(str(error).split())
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
