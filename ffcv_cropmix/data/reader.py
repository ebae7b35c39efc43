"""Read .beton files. All code that reads FFCV's format is here; the code that writes it is in `convert`.

The tables are mapped from the file, not copied: processes that open the same file share them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple, NoReturn

import numpy as np

from ..errors import DataError
from ..ffcv_compat import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    Field,
    FieldDescType,
    HeaderType,
    NDArrayField,
    TorchTensorField,
    get_metadata_type,
)
from ..fields import DCTImageField, is_dct_field
from ..kernels.jit import jit
from .sidecar import Sidecar, read_sidecar

IMAGE_COLUMNS = ("mode", "width", "height", "data_ptr")
_CUSTOM = 255
_BLOCK = 2**16  # rows examined at a time


class Storage(NamedTuple):
    """The places of the samples' bytes: FFCV's storage state, for `read_sample`."""

    memory: np.ndarray
    """uint8 (n,): the file, or pages of it"""
    table: np.ndarray
    """The allocation table, (entries,) of sample_id, ptr, size"""
    order: np.ndarray
    """uint32: sorts the table by ptr, then size; empty if it is sorted"""
    places: np.ndarray
    """int64: where a page begins in `memory`, by its number; empty if `memory` is the file"""
    page_bits: int
    """Base-2 logarithm of the page size, bytes"""


@jit
def read_sample(address, storage):
    """Return the bytes stored at an address of the file as a view, uint8 (n,); empty if nothing begins there."""
    memory, table, order, places, page_bits = storage
    address = np.int64(address)
    low, high = 0, len(table)
    while low < high:  # np.searchsorted takes 0.3 s to compile
        middle = (low + high) // 2
        entry = table[order[middle]] if len(order) else table[middle]
        if np.int64(entry["ptr"]) <= address:
            low = middle + 1
        else:
            high = middle
    start = size = np.int64(0)
    if low > 0:
        entry = table[order[low - 1]] if len(order) else table[low - 1]
        if np.int64(entry["ptr"]) == address:
            start, size = address, np.int64(entry["size"])
            if len(places):
                start = places[address >> page_bits] + (address & ((1 << page_bits) - 1))
    return memory[start : start + size]


class Beton:
    """The header, fields and tables of a .beton file. Has the attributes of `ffcv.reader.Reader`.

    Opening a file checks its structure; `check_beton` also checks the contents of the tables.

    Args:
        path: the file.
        custom_fields: fields of your own types by name, as for `ffcv.loader.Loader`.

    Raises:
        DataError: the file cannot be read, is cut off or is damaged; one line that names it.

    Example:
        >>> beton = Beton("train.beton")
        >>> beton.column("label").tolist(), beton.read("image", 0).shape
        ([0, 1], (192,))
    """

    fields: dict[str, Field]
    """The fields by name, in the file's order"""
    metadata: np.ndarray
    """(samples,), read-only, with columns f0, f1, ... for the fields"""
    alloc_table: np.ndarray
    """(entries,), read-only: sample_id, ptr, size of all that is stored outside the metadata"""
    sidecar: Sidecar | None
    """Contents of FILE.beton.json"""

    def __init__(self, path: str | os.PathLike[str], custom_fields: Mapping[str, type[Field]] = {}) -> None:
        self.file_name = os.fspath(path)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                self.identity = status.st_dev, status.st_ino
                if status.st_size == 0:
                    self.fail("it is empty")
                self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except DataError:
            raise
        except (OSError, ValueError) as error:  # ValueError: it shrank meanwhile
            raise DataError(f"{path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from None
        size = len(self._file)
        if size < HeaderType.itemsize:
            self.fail(f"it has {size} bytes, too few for a header")
        self.header = self._array(HeaderType, 1, 0)[0]
        version, number, page_size, samples, table_start = self.header.item()
        if version != CURRENT_VERSION:
            self.fail(f"it starts with {version}, files of FFCV 1.0 with {CURRENT_VERSION}")
        if page_size < 1 or page_size & (page_size - 1):
            self.fail(f"its pages have {page_size} bytes, not a power of two")
        if table_start == 0:
            self.fail("its writer was interrupted before it was complete")
        if not 1 <= number <= (size - HeaderType.itemsize) // FieldDescType.itemsize:
            self.fail(f"{number} fields do not fit into its {size} bytes")
        self.num_fields, self.page_size, self.num_samples = number, page_size, samples
        self.field_descriptors = self._array(FieldDescType, number, HeaderType.itemsize)
        try:
            self.fields = _fields(self.field_descriptors, custom_fields)
        except Exception as error:  # whatever FFCV trips over in the arguments of a field
            self.fail(str(error) or repr(error))
        self.metadata_type = _packed(get_metadata_type(list(self.fields.values())))
        start = HeaderType.itemsize + self.field_descriptors.nbytes
        if not 1 <= samples <= (size - start) // max(self.metadata_type.itemsize, 1):
            self.fail(f"{samples} samples do not fit into its {size} bytes")
        self.metadata = self._array(self.metadata_type, samples, start)
        self.data_start, self.data_end = start + self.metadata.nbytes, table_start
        if not self.data_start <= table_start <= size:
            self.fail(f"its allocation table is at {table_start} of {size} bytes: it was cut off, or is damaged")
        entries, rest = divmod(size - table_start, ALLOC_TABLE_TYPE.itemsize)
        if rest:
            self.fail("it ends within its allocation table: it was cut off")
        self.alloc_table = self._array(_packed(ALLOC_TABLE_TYPE), entries, table_start)
        self.sidecar = read_sidecar(path)
        self._order: np.ndarray | None = None
        self._detach_empty_values()

    @property
    def handlers(self) -> dict[str, Field]:
        """The fields, under the name that FFCV's reader uses."""
        return self.fields

    @property
    def field_names(self) -> list[str]:
        """The names of the fields, in the file's order."""
        return list(self.fields)

    @property
    def order(self) -> np.ndarray:
        """uint32: sorts the allocation table by address, then size; empty if it is sorted already."""
        if self._order is None:
            self._order = self._sorting_order()
        return self._order

    def fail(self, what: str) -> NoReturn:
        """Raise a DataError that names the file."""
        raise DataError(f"{self.file_name} is not a sound .beton file: {what}")

    def column(self, name: str) -> np.ndarray:
        """Return the metadata of a field, (samples,)."""
        return self.metadata[f"f{self.field_names.index(name)}"]

    def images(self) -> list[str]:
        """Return the names of the fields that hold images."""
        return [name for name in self.fields if self.column(name).dtype.names == IMAGE_COLUMNS]

    def pointers(self, name: str) -> np.ndarray | None:
        """Return the addresses of a field's values, uint64 (samples,); None if the values are in the metadata."""
        column = self.column(name)
        for pointer in ("data_ptr", "ptr"):
            if pointer in (column.dtype.names or ()):
                return column[pointer]
        return column if isinstance(self.fields[name], (NDArrayField, TorchTensorField)) else None

    def storage(self) -> Storage:
        """Return the mapped file as `read_sample` takes it."""
        none = np.empty(0, np.int64)
        return Storage(np.frombuffer(self._file, np.uint8), self.alloc_table, self.order, _frozen(none), 0)

    def read(self, name: str, row: int) -> np.ndarray:
        """Return the bytes of a field of one sample as they are stored, uint8 (n,): a read-only view of the file.

        Raises:
            TypeError: the field's values are in the metadata: see `column`.
        """
        pointers = self.pointers(name)
        if pointers is None:
            raise TypeError(f"{name} is stored in the metadata: use column({name!r})")
        return read_sample(pointers[row], self.storage())

    def tables(self) -> Iterator[memoryview]:
        """Yield everything in the file but the bytes of the samples, in blocks, for `tables_checksum`."""
        for start, end in ((0, self.data_start), (self.data_end, len(self._file))):
            for begin in range(start, end, 2**20):
                yield memoryview(self._file)[begin : min(end, begin + 2**20)]
        self.release_table()

    def release_table(self) -> None:
        """Release the memory of the allocation table; reading it maps it again."""
        start = self.data_end // mmap.PAGESIZE * mmap.PAGESIZE
        if start < len(self._file):
            self._file.madvise(mmap.MADV_DONTNEED, start, len(self._file) - start)

    def blocks(self, count: int) -> Iterator[slice]:
        """Yield slices that cover `count` rows; after each, release the memory of the allocation table."""
        for start in range(0, count, _BLOCK):
            yield slice(start, min(start + _BLOCK, count))
            self.release_table()

    def _array(self, kind: np.dtype, count: int, offset: int) -> np.ndarray:
        return np.frombuffer(self._file, kind, count, offset)

    def _sorting_order(self) -> np.ndarray:
        none = _frozen(np.empty(0, np.uint32))
        last = (-1, -1)
        for block in self.blocks(len(self.alloc_table)):
            pointers, sizes = (np.ascontiguousarray(self.alloc_table[block][name]) for name in ("ptr", "size"))
            rises = (pointers[1:] > pointers[:-1]) | ((pointers[1:] == pointers[:-1]) & (sizes[1:] >= sizes[:-1]))
            if not rises.all() or (int(pointers[0]), int(sizes[0])) < last:
                break
            last = int(pointers[-1]), int(sizes[-1])
        else:
            return none
        order = np.lexsort((self.alloc_table["size"], self.alloc_table["ptr"])).astype(np.uint32)
        self.release_table()
        return _frozen(order)

    def _detach_empty_values(self) -> None:
        """Point empty values at the header, where nothing is stored.

        FFCV gives an empty value the address of the next value, so the bytes of that one would be read instead.
        """
        for number, name in enumerate(self.fields):
            column = self.column(name)
            if column.dtype.names == ("ptr", "size") and not column["size"].all():
                if not self.metadata.flags.writeable:
                    self.metadata = self.metadata.copy()
                self.metadata[f"f{number}"]["ptr"][self.metadata[f"f{number}"]["size"] == 0] = 0
        self.metadata.setflags(write=False)


def _packed(kind: np.dtype) -> np.dtype:
    """Return the same layout declared as unaligned, because a file's tables begin at any address.

    With one type for all files, the code that reads them is compiled once.
    """
    if kind.names is None:
        return kind
    formats = [_packed(kind[name]) for name in kind.names]
    offsets = [kind.fields[name][1] for name in kind.names]  # type: ignore[index]
    return np.dtype({"names": kind.names, "formats": formats, "offsets": offsets, "itemsize": kind.itemsize})


def _frozen(array: np.ndarray) -> np.ndarray:
    """Make an array read-only like mapped arrays, so that compiled code sees the same type."""
    array.setflags(write=False)
    return array


def _fields(descriptors: np.ndarray, custom_fields: Mapping[str, type[Field]]) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for descriptor in descriptors:
        name = bytes(descriptor["name"]).split(b"\0")[0].decode("ascii")
        kind = int(descriptor["type_id"])
        handler = custom_fields.get(name) or TYPE_ID_HANDLER.get(kind)
        if name in fields:
            raise ValueError(f"it has two fields {name!r}")
        if handler is None and kind == _CUSTOM and is_dct_field(descriptor["arguments"].tobytes()):
            handler = DCTImageField
        if handler is None and kind == _CUSTOM:
            raise ValueError(f"its field {name!r} is of a custom type: pass custom_fields")
        if handler is None:
            raise ValueError(f"its field {name!r} is of the unknown type {kind}")
        fields[name] = handler.from_binary(descriptor["arguments"])
    return fields
