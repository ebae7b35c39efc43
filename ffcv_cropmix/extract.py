"""A .beton file back to images: python -m ffcv_cropmix.extract FILE.beton FOLDER

A folder for each class, and in it a file for each sample, named after its row: samples of mode jpg as they are, of mode
dct as JPEG files with the same coefficients, which decode to the same pixels, raw ones as PNG.
"""

from __future__ import annotations

import re
import secrets
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from .data.images import Source, read
from .errors import DataError, Parser, run_program, usage_error
from .progress import progress


def _folders(source: Source) -> list[str]:
    """The names of the folders of the classes."""
    names = [re.sub(r"[/\0]", "_", name) for name in source.classes]
    if any(name in ("", ".", "..") for name in names) or len(set(names)) < len(names):
        names = [f"{label:0{len(str(len(names) - 1))}d}" for label in range(len(names))]
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
    from .data.sidecar import sample_checksum
    from .data.stored import beton_source, stored_bytes

    source = beton_source(path, "")
    wrong = next((row for row in rows or () if not 0 <= row < len(source)), None)
    if wrong is not None:
        raise DataError(f"{path} has no row {wrong}: there are {len(source)}, from 0")
    folders, digits = _folders(source), len(str(len(source) - 1))
    digests = None
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    chosen = range(len(source)) if rows is None else rows
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} exists, and is not an empty folder: name another one")
        for name in folders:
            (temporary / name).mkdir(parents=True)
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
