"""A .beton file back to images: python -m ffcv_cropmix.extract FILE.beton FOLDER

A folder for each class, and in it a file for each sample, named after its row: samples of mode jpg as they are, of mode
dct as JPEG files with the same coefficients, which decode to the same pixels, raw ones as PNG.
"""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from .data.images import read
from .errors import DataError, Parser, run_program
from .progress import progress


def _folders(classes: list[str]) -> list[str]:
    """The names of the classes' folders: theirs, or where a file system cannot tell those apart, or they are numbers,
    the labels with leading zeros, so that sorted they keep their order."""
    names = [re.sub(r"[/\0]", "_", name) for name in classes]
    numbers = [str(label) for label in range(len(names))]
    if names == numbers or len(set(names)) < len(names) or not {"", ".", ".."}.isdisjoint(names):
        return [number.zfill(len(numbers[-1])) for number in numbers]
    return names


def extract(path: Path, folder: Path, rows: list[int] | None = None) -> int:
    """Write the samples of a .beton file as image files, FOLDER/CLASS/ROW.jpg or .png.

    Args:
        path: the file.
        folder: does not exist yet, or is empty; it gets its name when it is whole.
        rows: of the samples; None: all.

    Returns:
        how many.

    Raises:
        DataError: the file is not sound, a sample is damaged, there is no such row, or the folder cannot be written.
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


def main() -> None:
    """The command line."""
    parser = Parser(prog="python -m ffcv_cropmix.extract", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("file", type=Path, metavar="FILE.beton", help="whose images")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to; it must not exist, or be empty")
    parser.add_argument("--rows", type=int, nargs="+", metavar="ROW", help="of the samples, from 0; default: all")
    options = parser.parse_args()
    count = extract(options.file, options.folder, options.rows)
    print(f"{options.folder}: {count:,} images")


if __name__ == "__main__":
    run_program(main)
