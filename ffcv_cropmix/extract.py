"""Write the images of a .beton file as image files.

FOLDER gets a folder per class, with one file per sample, named after its row. Samples of mode jpg are copied unchanged,
samples of mode dct become JPEG files with the same coefficients, which decode to the same pixels, and raw samples
become PNG files.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .data.images import read
from .errors import DataError, run_program
from .options import option, parse_options
from .progress import progress


def _folders(classes: list[str]) -> list[str]:
    """Name the folder of each class after the class.

    If class names are not distinct as folder names, or are the labels themselves, the folders are the labels with
    leading zeros, so that sorting keeps their order.
    """
    names = [re.sub(r"[/\0]", "_", name) for name in classes]
    numbers = [str(label) for label in range(len(names))]
    if names == numbers or len(set(names)) < len(names) or not {"", ".", ".."}.isdisjoint(names):
        return [number.zfill(len(numbers[-1])) for number in numbers]
    return names


def extract(path: Path, folder: Path, rows: list[int] | None = None) -> int:
    """Write the samples of a .beton file as image files, FOLDER/CLASS/ROW.jpg or .png.

    Args:
        path: the file.
        folder: the folder to write; it must be empty or not exist, and appears only when it is complete.
        rows: rows of the samples; None: all.

    Returns:
        the number of files written.

    Raises:
        DataError: the file is not sound, a sample is damaged, a row does not exist, or the folder cannot be written.

    Example:
        >>> extract(Path("train.beton"), Path("images"))
        2
    """
    from .data.stored import beton_source

    source = beton_source(path, "")
    wrong = next((row for row in rows or () if not 0 <= row < len(source)), None)
    if wrong is not None:
        raise DataError(f"{path} has no row {wrong}: there are {len(source)}, from 0")
    chosen = range(len(source)) if rows is None else rows
    folders, digits = _folders(source.classes), len(str(len(source) - 1))
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} exists and is not an empty folder: name another one")
        for label in sorted({int(source.labels[row]) for row in chosen}):
            (temporary / folders[label]).mkdir(parents=True)
        for row in progress(chosen, len(chosen), path.name, "images"):
            try:
                data = read(source.images[row])
            except ValueError as error:
                raise DataError(f"{source.name(row)}: {error}") from None
            file = temporary / folders[source.labels[row]] / f"{row:0{digits}d}"
            if isinstance(data, np.ndarray):
                Image.fromarray(data).save(file.with_suffix(".png"))
            else:
                file.with_suffix(".jpg").write_bytes(data)
        temporary.replace(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(chosen)


@dataclass(kw_only=True)
class Options:
    """The command line of `ffcv-cropmix extract`."""

    file: Path = option(positional=True, metavar="FILE.beton")
    """The file to read"""
    folder: Path = option(positional=True, metavar="FOLDER")
    """The folder to write; it must be empty or not exist"""
    rows: list[int] | None = option(None, metavar="ROW")
    """Rows of the samples, from 0; default: all"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m ffcv_cropmix.extract") -> None:
    """Run the command line (default: `sys.argv[1:]`)."""
    options = parse_options(Options, arguments, prog=prog, description=__doc__ or "")
    count = extract(options.file, options.folder, options.rows)
    print(f"{options.folder}: {count:,} images")


if __name__ == "__main__":
    run_program(main)
