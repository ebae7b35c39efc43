"""Check a .beton file, except for the bytes of its samples, before it is read.

FFCV does not check files: a damaged file leads to a hang, a signal, or the pixels of other samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np

from ..errors import DataError
from ..ffcv_compat import Field
from ..fields import DCTImageField
from .images import DCT, JPG, RAW
from .reader import IMAGE_COLUMNS, Beton
from .sidecar import sidecar_path, tables_checksum


def check_beton(path: str | os.PathLike[str], custom_fields: Mapping[str, type[Field]] = {}) -> Beton:
    """Open a .beton file, check its header, fields, tables, pointers and ranges, and compare them with its sidecar.

    `ffcv_cropmix.Loader` does this whenever it opens a file. The bytes of the samples are not read; `ffcv-cropmix
    verify --full` reads them too.

    Args:
        path: the file.
        custom_fields: fields of your own types by name, as for `ffcv.loader.Loader`.

    Returns:
        The open file.

    Raises:
        DataError: the file is not sound; one line that names it and what is wrong.

    Example:
        >>> beton = check_beton("train.beton")
        >>> beton.num_samples, list(beton.fields)
        (2, ['image', 'label'])
    """
    beton = Beton(path, custom_fields)
    addresses = np.empty(len(beton.alloc_table), np.uint64)
    for problem in _table_problems(beton, addresses):
        beton.fail(problem)
    for name in beton.fields:
        for problem in _field_problems(name, beton, addresses):
            beton.fail(problem)
    if beton.sidecar:
        _compare(beton)
    return beton


def _first(where: np.ndarray) -> int | None:
    """Return the first index that is true; None if there is none."""
    found = int(where.argmax()) if len(where) else 0
    return found if where[found : found + 1].any() else None


def _table_problems(beton: Beton, addresses: np.ndarray) -> Iterator[str]:
    """Yield a line for each problem of the allocation table; fill `addresses` with its pointers, sorted."""
    table, order, samples = beton.alloc_table, beton.order, beton.num_samples
    start, end, page_size = (np.uint64(value) for value in (beton.data_start, beton.data_end, beton.page_size))
    previous_end, previous_owner = np.uint64(0), 0
    for block in beton.blocks(len(table)):
        entries = table[order[block]] if len(order) else table[block]
        begins, sizes, owners = (np.ascontiguousarray(entries[name]) for name in ("ptr", "size", "sample_id"))
        addresses[block] = begins
        bad = _first(owners >= samples)
        if bad is not None:
            yield f"its allocation table has a sample {owners[bad]}, beyond the {samples}"
        inside = (begins >= start) & (begins <= end) & (sizes <= end)  # so that the next sum does not overflow
        bad = _first(~inside | (begins + sizes > end))
        if bad is not None:
            yield f"sample {owners[bad]} lies outside the file"
        last = begins + np.maximum(sizes, 1) - np.uint64(1)
        bad = _first(begins // page_size != last // page_size)
        if bad is not None:
            yield f"sample {owners[bad]} does not lie in one page: the page size, {page_size}, is damaged"
        ends = np.concatenate([[previous_end], begins + sizes])
        bad = _first(ends[:-1] > begins)
        if bad is not None:
            yield f"samples {owners[bad - 1] if bad else previous_owner} and {owners[bad]} overlap"
        previous_end, previous_owner = ends[-1], owners[-1]


def _field_problems(name: str, beton: Beton, addresses: np.ndarray) -> Iterator[str]:
    """Yield a line for each problem of a field's metadata."""
    pointers, column, field = beton.pointers(name), beton.column(name), beton.fields[name]
    names = column.dtype.names or ()
    image = names == IMAGE_COLUMNS
    if pointers is None or not (image or names in ((), ("ptr", "size"))):
        return  # its value is in the metadata, or it is of a custom type
    if not names and getattr(field, "element_size", 1) == 0:
        return  # nothing is stored
    table, order = beton.alloc_table, beton.order
    for block in beton.blocks(len(column)):
        part, rows = column[block], np.arange(block.start, block.stop)
        begins = np.ascontiguousarray(pointers[block])
        places = np.searchsorted(addresses, begins, "right") - 1  # of several, the largest: the others are empty
        if len(table):
            found = table[order[places] if len(order) else places]
            missing = (places < 0) | (found["ptr"] != begins) | (found["sample_id"] != rows)
        else:
            found, missing = np.zeros(len(part), table.dtype), np.ones(len(part), bool)
        if names == ("ptr", "size"):
            missing &= part["size"] != 0
        bad = _first(missing)
        if bad is not None:
            yield f"sample {rows[bad]} has no {name} in its allocation table"
        if image:
            dct = isinstance(beton.fields[name], DCTImageField)
            yield from _image_problems(name, rows, part, found["size"], dct)
        elif names:
            bad = _first((found["size"] != part["size"]) & (part["size"] != 0))
            if bad is not None:
                yield f"the {name} of sample {rows[bad]} has another size than its allocation table says"


def _image_problems(name: str, rows: np.ndarray, column: np.ndarray, sizes: np.ndarray, dct: bool) -> Iterator[str]:
    mode = column["mode"]
    bad = _first(~np.isin(mode, [DCT] if dct else [JPG, RAW]))
    if bad is not None:
        yield f"the {name} of sample {rows[bad]} is of mode {mode[bad]}, {'not dct' if dct else 'neither jpg nor raw'}"
    height, width = column["height"].astype(np.uint64), column["width"].astype(np.uint64)
    bad = _first((height == 0) | (width == 0))
    if bad is not None:
        yield f"the {name} of sample {rows[bad]} is of {height[bad]} x {width[bad]} px"
    bad = _first((mode == RAW) & (sizes != 3 * height * width))
    if bad is not None:
        yield f"the {name} of sample {rows[bad]} is of {height[bad]} x {width[bad]} px in {sizes[bad]} bytes"


def _compare(beton: Beton) -> None:
    """Raise DataError unless the sidecar belongs to this file."""
    sidecar = beton.sidecar
    assert sidecar
    digests = sidecar.digests()
    other = digests is not None and len(digests) != beton.num_samples
    if sidecar.tables_checksum:
        other |= tables_checksum(beton.tables()) != sidecar.tables_checksum
    if other:
        raise DataError(
            f"{beton.file_name} is not the file that its sidecar {sidecar_path(beton.file_name)} describes: one of "
            "them was damaged or replaced; convert the images again, or remove the sidecar"
        )
