"""Sources of a loader's samples: the mapped file, or pages of it that are read ahead.

Both have the interface of FFCV's memory managers, so FFCV's compiled pipelines can use them. FFCV's own managers keep
Python dicts and sets of all samples, and hang when a page cannot be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..errors import DataError
from ..ffcv_compat import MemoryContext, MemoryManager
from .reader import Beton, Storage, read_sample

_AHEAD = 3  # batches whose pages are read in advance, as in FFCV
_THREADS = 12  # threads that read pages, as in FFCV
_MOST_MEMORY = 0.5  # share of the machine's memory that pages may take


def physical_memory() -> int:
    """Return the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _Manager(MemoryManager):
    def __init__(self, beton: Beton) -> None:  # FFCV's would make dicts and sets
        self.reader = beton

    def compile_reader(self) -> Callable[..., Any]:
        return read_sample

    @property
    def state_type(self) -> Any:
        raise NotImplementedError("numba infers the types of read_sample")


class MappedFile(_Manager):
    """Samples are read from the mapped file, which the operating system caches (`os_cache=True`)."""

    def schedule_epoch(self, batches: Sequence[np.ndarray]) -> MemoryContext:
        """Return what `read_sample` needs during a pass."""
        return _Mapped(self.reader.storage())


class _Mapped(MemoryContext):
    state: Storage = None  # type: ignore[assignment]

    def __init__(self, storage: Storage) -> None:
        self.state = storage

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class PageCache(_Manager):
    """Samples are read from pages of the file that are loaded as batches need them (`os_cache=False`).

    Args:
        beton: the file.
        memory: memory that pages may take, bytes; default: half of the machine's memory.
    """

    def __init__(self, beton: Beton, memory: int | None = None) -> None:
        super().__init__(beton)
        self.most_pages = int(physical_memory() * _MOST_MEMORY if memory is None else memory) // beton.page_size
        table = beton.alloc_table
        owners = np.ascontiguousarray(table["sample_id"])
        pages = table["ptr"] // np.uint64(beton.page_size)
        if (owners[1:] < owners[:-1]).any():
            pages = pages[np.argsort(owners, kind="stable")]
        self._pages = pages.astype(np.uint32)
        """Pages of all samples, one sample after the other"""
        self._starts = np.concatenate(
            [[0], np.cumsum(np.bincount(owners.astype(np.int64), minlength=beton.num_samples))]
        )
        """Where the pages of each sample begin"""
        beton.release_table()

    def schedule_epoch(self, batches: Sequence[np.ndarray]) -> _Pages:
        """Plan the pages of a pass from the rows of its batches."""
        rows = np.concatenate(batches).astype(np.int64)
        batch_of = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
        counts = self._starts[rows + 1] - self._starts[rows]
        before = np.cumsum(counts) - counts
        pages = self._pages[np.repeat(self._starts[rows] - before, counts) + np.arange(counts.sum())].astype(np.int64)
        return _Pages(self.reader, pages, np.repeat(batch_of, counts), len(batches), self.most_pages)


class _Pages(MemoryContext):
    """The pages of one pass.

    A page stays in memory until its last use. If there is no room for that, the page whose next use is furthest away is
    dropped and read again later.
    """

    def __init__(self, beton: Beton, pages: np.ndarray, batch_of: np.ndarray, batches: int, most: int) -> None:
        self._beton, self._batches = beton, batches
        self._uses = np.unique(pages * batches + batch_of)
        """Uses of pages by batches, sorted: page * batches + batch"""
        needed = np.unique(batch_of * (pages.max(initial=0) + 1) + pages)
        batch_of, pages = np.divmod(needed, pages.max(initial=0) + 1)
        self._pages_of = np.split(pages, np.searchsorted(batch_of, np.arange(1, batches)))
        wanted = _most_at_once(self._uses, batches)
        self._slots = min(wanted, most)
        largest = max((len(pages) for pages in self._pages_of), default=0)
        if largest > most:
            raise MemoryError(
                f"{beton.file_name}: a batch needs {largest:,} pages of {beton.page_size / 2**20:g} MiB, more than the "
                f"{most:,} that fit into memory: use os_cache=True, OrderOption.QUASI_RANDOM, or smaller batches"
            )
        self._memory = np.empty(self._slots * beton.page_size, np.uint8)
        self._places = np.full(pages.max(initial=-1) + 1, -1, np.int64)
        self._free = list(range(self._slots))[::-1]
        self._reading: dict[int, Future[None]] = {}

    @property
    def state(self) -> Storage:
        memory = self._memory.view()
        memory.setflags(write=False)
        places = self._places.view()
        places.setflags(write=False)
        bits = self._beton.page_size.bit_length() - 1
        return Storage(memory, self._beton.alloc_table, self._beton.order, places, bits)

    def __enter__(self) -> None:
        self._descriptor = os.open(self._beton.file_name, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        if (status.st_dev, status.st_ino) != self._beton.identity:
            os.close(self._descriptor)
            raise DataError(f"{self._beton.file_name} was replaced after the loader had opened it: make a new loader")
        self._size = status.st_size
        self._executor = ThreadPoolExecutor(_THREADS, "pages")

    def start_batch(self, batch: int) -> None:
        """Wait for the pages of a batch and start reading the pages of the next ones."""
        for ahead in range(batch, min(batch + _AHEAD + 1, self._batches)):
            pages = self._pages_of[ahead]
            missing = pages[self._places[pages] < 0]
            self._make_room(len(missing) - len(self._free), batch, ahead)
            for page in missing[: len(self._free)].tolist():
                slot = self._free.pop()
                self._places[page] = slot * self._beton.page_size
                self._reading[page] = self._executor.submit(self._read, page, slot)
        for page in self._pages_of[batch].tolist():
            reading = self._reading.pop(page, None)
            if reading:
                reading.result()

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)
        os.close(self._descriptor)

    def _make_room(self, count: int, batch: int, ahead: int) -> None:
        """Drop `count` pages that no batch from `batch` to `ahead` needs, those with the latest next use."""
        if count <= 0:
            return
        kept = np.zeros(len(self._places), bool)
        for number in range(batch, ahead + 1):
            kept[self._pages_of[number]] = True
        pages = np.flatnonzero((self._places >= 0) & ~kept)
        keys = pages * self._batches + ahead
        places = np.searchsorted(self._uses, keys)
        uses = self._uses[np.minimum(places, len(self._uses) - 1)]
        again = (places < len(self._uses)) & (uses // self._batches == pages)
        next_use = np.where(again, uses % self._batches, self._batches)
        for page in pages[np.argsort(-next_use, kind="stable")[:count]].tolist():
            self._free.append(int(self._places[page]) // self._beton.page_size)
            self._places[page] = -1

    def _read(self, page: int, slot: int) -> None:
        size = self._beton.page_size
        start, end = page * size, min((page + 1) * size, self._size)
        view = self._memory.data[slot * size :][: end - start]
        while view:
            count = os.preadv(self._descriptor, [view], end - len(view))
            if count == 0:
                raise DataError(f"{self._beton.file_name} was cut off while it was read")
            view = view[count:]


def _most_at_once(uses: np.ndarray, batches: int) -> int:
    """Return the most pages in memory at once if each stays from being read ahead until its last use."""
    if not len(uses):
        return 0
    pages, numbers = np.divmod(uses, batches)
    first = np.flatnonzero(np.diff(pages, prepend=-1))
    last = np.append(first[1:], len(pages)) - 1
    changes = np.zeros(batches + 1, np.int64)
    np.add.at(changes, np.maximum(numbers[first] - _AHEAD, 0), 1)
    np.add.at(changes, numbers[last] + 1, -1)
    return int(np.cumsum(changes).max())
