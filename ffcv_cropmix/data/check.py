"""Is a file a sound .beton? Everything but the samples' own bytes, before FFCV reads it.

FFCV believes what the file says: a damaged one ends in a hang, a signal, or other samples' pixels.
"""

from __future__ import annotations

from .. import patches  # noqa: F401

# isort: split
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from ffcv.fields import NDArrayField, TorchTensorField
from ffcv.fields.base import Field
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.types import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    get_metadata_type,
)

from ..errors import DataError
from .sidecar import Sidecar, read_sidecar, sidecar_path, tables_checksum

_RAW, _MODES = int(IMAGE_MODES["raw"]), [int(mode) for mode in IMAGE_MODES.values()]
_CUSTOM = 255
_IMAGE = ("mode", "width", "height", "data_ptr")


class Beton(NamedTuple):
    """What a sound .beton file holds besides its samples' bytes."""

    fields: dict[str, Field]
    """By name, in the file's order"""
    metadata: np.ndarray
    """(samples,), columns f0, f1, ... for the fields"""
    sidecar: Sidecar | None
    """Of FILE.beton.json"""

    def column(self, name: str) -> np.ndarray:
        """The metadata of a field, (samples,)."""
        return self.metadata[f"f{list(self.fields).index(name)}"]

    def images(self) -> list[str]:
        """The names of the fields that hold images."""
        return [name for name in self.fields if self.column(name).dtype.names == _IMAGE]


def check_beton(path: str | os.PathLike[str], custom_fields: Mapping[str, type[Field]] = {}) -> Beton:
    """Check header, fields, tables, pointers and ranges of a .beton file, and compare them with its sidecar.

    `ffcv_cropmix.Loader` does this whenever it opens a file. The samples' bytes are not read: `verify --full` does.

    Args:
        path: the file.
        custom_fields: as `ffcv.loader.Loader` takes them, for fields of types of your own.

    Raises:
        DataError: one line that names the file and what is wrong.
    """

    def wrong(what: str) -> NoReturn:
        raise DataError(f"{path} is not a sound .beton file: {what}")

    try:
        with open(path, "rb") as file:  # noqa: PTH123
            size = os.fstat(file.fileno()).st_size
            if size < HeaderType.itemsize:
                wrong("it is empty" if size == 0 else f"it has {size} bytes, too few for a header")
            header = np.fromfile(file, HeaderType, 1)
            version, number, page_size, samples, table_start = header[0].item()
            if version != CURRENT_VERSION:
                wrong(f"it starts with {version}, files of FFCV 1.0 with {CURRENT_VERSION}")
            if page_size < 1 or page_size & (page_size - 1):
                wrong(f"its pages have {page_size} bytes, no power of two")
            if table_start == 0:
                wrong("its writer was interrupted before it was whole")
            if not 1 <= number <= (size - HeaderType.itemsize) // FieldDescType.itemsize:
                wrong(f"{number} fields do not fit into its {size} bytes")
            descriptors = np.fromfile(file, FieldDescType, number)
            try:
                fields = _fields(descriptors, custom_fields)
            except Exception as error:  # whatever FFCV trips over in the arguments of a field
                wrong(str(error) or repr(error))
            kind = get_metadata_type(list(fields.values()))
            start = HeaderType.itemsize + descriptors.nbytes
            if not 1 <= samples <= (size - start) // max(kind.itemsize, 1):
                wrong(f"{samples} samples do not fit into its {size} bytes")
            metadata = np.fromfile(file, kind, samples)
            if not start + metadata.nbytes <= table_start <= size:
                wrong(f"its allocation table is at {table_start} of {size} bytes: it was cut off, or is damaged")
            if (size - table_start) % ALLOC_TABLE_TYPE.itemsize:
                wrong("it ends amid its allocation table: it was cut off")
            file.seek(table_start)
            table = np.fromfile(file, ALLOC_TABLE_TYPE)
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None

    beton = Beton(fields, metadata, read_sidecar(path))
    by_address = table[np.argsort(table["ptr"], kind="stable")]
    for problem in _table_problems(by_address, start + metadata.nbytes, table_start, page_size, samples):
        wrong(problem)
    for name in fields:
        for problem in _field_problems(name, beton, by_address):
            wrong(problem)
    if beton.sidecar:
        _compare(path, beton.sidecar, samples, [header, descriptors, metadata, table])
    return beton


def _fields(descriptors: np.ndarray, custom_fields: Mapping[str, type[Field]]) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for descriptor in descriptors:
        name = bytes(descriptor["name"]).split(b"\0")[0].decode("ascii")
        kind = int(descriptor["type_id"])
        handler = custom_fields.get(name) or TYPE_ID_HANDLER.get(kind)
        if name in fields:
            raise ValueError(f"it has two fields {name!r}")
        if handler is None and kind == _CUSTOM:
            raise ValueError(f"its field {name!r} is of a custom type: pass custom_fields")
        if handler is None:
            raise ValueError(f"its field {name!r} is of the unknown type {kind}")
        fields[name] = handler.from_binary(descriptor["arguments"])
    return fields


def _first(where: np.ndarray) -> int | None:
    """The first index that is true."""
    found = int(where.argmax()) if len(where) else 0
    return found if where[found : found + 1].any() else None


def _table_problems(table: np.ndarray, start: int, end: int, page_size: int, samples: int) -> Iterator[str]:
    """What is wrong with the allocation table of data that may lie at `start` to `end` - 1, a line each.

    The table is in the order of the addresses, as in what follows.
    """
    begins, sizes, owners = table["ptr"], table["size"], table["sample_id"]
    bad = _first(owners >= samples)
    if bad is not None:
        yield f"its allocation table has a sample {owners[bad]}, beyond the {samples}"
    inside = (begins >= start) & (begins <= end) & (sizes <= end)  # so that the next sum does not overflow
    bad = _first(~inside | (begins + sizes > end))
    if bad is not None:
        yield f"sample {owners[bad]} lies outside the file"
    last = begins + np.maximum(sizes, 1) - np.uint64(1)
    bad = _first(begins // np.uint64(page_size) != last // np.uint64(page_size))
    if bad is not None:
        yield f"sample {owners[bad]} does not lie in one page: the page size, {page_size}, is damaged"
    bad = _first(begins[:-1] + sizes[:-1] > begins[1:])
    if bad is not None:
        yield f"samples {owners[bad]} and {owners[bad + 1]} overlap"


def _field_problems(name: str, beton: Beton, table: np.ndarray) -> Iterator[str]:
    """What is wrong with the metadata of a field, a line each."""
    column, field = beton.column(name), beton.fields[name]
    names = column.dtype.names or ()
    if names == _IMAGE:
        pointers = column["data_ptr"]
    elif names == ("ptr", "size"):
        pointers = column["ptr"]
    elif isinstance(field, (NDArrayField, TorchTensorField)):
        pointers = column
    else:
        return  # its value is in the metadata, or it is of a custom type
    rows = np.searchsorted(table["ptr"], pointers)
    found = table[np.minimum(rows, len(table) - 1)] if len(table) else np.zeros(len(column), table.dtype)
    bad = _first((found["ptr"] != pointers) | (found["sample_id"] != np.arange(len(column))))
    if bad is not None:
        yield f"sample {bad} has no {name} in its allocation table"
    if names == _IMAGE:
        bad = _first(~np.isin(column["mode"], _MODES))
        if bad is not None:
            yield f"the {name} of sample {bad} is of mode {column['mode'][bad]}, neither jpg nor raw"
        height, width = column["height"].astype(np.uint64), column["width"].astype(np.uint64)
        bad = _first((height == 0) | (width == 0))
        if bad is not None:
            yield f"the {name} of sample {bad} is of {height[bad]} x {width[bad]} px"
        bad = _first((column["mode"] == _RAW) & (found["size"] != 3 * height * width))
        if bad is not None:
            yield f"the {name} of sample {bad} is of {height[bad]} x {width[bad]} px in {found['size'][bad]} bytes"
    elif names:
        bad = _first(found["size"] != column["size"])
        if bad is not None:
            yield f"the {name} of sample {bad} has another size than its allocation table says"


def _compare(path: Any, sidecar: Sidecar, samples: int, tables: list[np.ndarray]) -> None:
    """Raise DataError unless the sidecar is about these tables."""
    digests = sidecar.digests()
    other = digests is not None and len(digests) != samples
    if sidecar.tables_checksum:
        other |= tables_checksum(table.tobytes() for table in tables) != sidecar.tables_checksum
    if other:
        raise DataError(
            f"{path} is not the file that its sidecar {sidecar_path(path)} is about: one of them was damaged or "
            "replaced; write both anew, or remove the sidecar"
        )
