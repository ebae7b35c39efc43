"""Files that are there whole, or not at all."""

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
    """The temporary files of runs that were killed: nobody has them locked."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), temporary.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def followed(path: Path) -> Path:
    """The file that is meant: where a symbolic link leads, also if nothing is there yet.

    Raises:
        DataError: a named pipe, device or socket is there.
    """
    try:
        special = path.exists() and not (path.is_file() or path.is_dir())
    except OSError:  # its name is too long, perhaps: who opens it is told so
        return path
    if special:
        raise DataError(f"{path} is a named pipe, a device or a socket: name a regular file, or a new one")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def replacing(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Files to write, under temporary names: they replace `paths` once all are whole and on the disk, or they go.

    The others belong to the first: what was there goes before that is replaced, and those left empty get no name.
    A symbolic link stays, and the file that it leads to is replaced.

    Raises:
        DataError: they cannot be written, or are no regular files.
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
                with suppress(OSError):  # not all file systems have locks
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
