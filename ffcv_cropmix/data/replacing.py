"""Write files so that they appear under their names complete or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of runs that were killed, which nobody has locked."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), temporary.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def followed(path: Path) -> Path:
    """Return the file that a path stands for: where a symbolic link leads, even if nothing is there yet.

    Raises:
        DataError: the path is a named pipe, device or socket.
    """
    try:
        special = path.exists() and not (path.is_file() or path.is_dir())
    except OSError:  # perhaps its name is too long: opening it reports that
        return path
    if special:
        raise DataError(f"{path} is a named pipe, a device or a socket: name a regular file, or a new one")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def replacing(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Open files to write under temporary names, which replace `paths` when the block ends, or vanish if it fails.

    All files are complete and on the disk before the first is replaced. The files after the first belong to it: their
    old versions are removed before the first is replaced, and those left empty are not created. A symbolic link stays,
    and the file it leads to is replaced.

    Raises:
        DataError: a file cannot be written, or is not a regular file.

    Example:
        >>> with replacing(Path("a.txt")) as (file,):
        ...     _ = file.write(b"complete")
        ...     Path("a.txt").exists()
        False
        >>> Path("a.txt").read_bytes()
        b'complete'
    """
    paths = tuple(followed(path) for path in paths)
    try:
        with ExitStack() as stack:
            files: list[BinaryIO] = []
            for path in paths:
                _remove_abandoned(path)
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
                stack.callback(temporary.unlink, missing_ok=True)
                files.append(stack.enter_context(temporary.open("x+b")))
                with suppress(OSError):  # some file systems have no locks
                    fcntl.flock(files[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
            for path in paths[1:]:
                path.unlink(missing_ok=True)
            for path, file in zip(paths, files):
                if os.fstat(file.fileno()).st_size:
                    Path(file.name).replace(path)
    except OSError as error:
        raise DataError(f"{paths[0]} cannot be written: {error.strerror or error}") from None
