"""What is replaced in FFCV, in memory, when a module of this package first imports it. Import this one before it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

_torch_threads = torch.get_num_threads()

import numba  # noqa: E402
from ffcv.memory_managers import OSCacheManager, ProcessCacheManager  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402

torch.set_num_threads(_torch_threads)  # importing FFCV sets it to 1


@cache
def _mapped_reader() -> Callable[..., Any]:
    """The reader of memory-mapped files, typed by its arguments, and compiled once in a process.

    FFCV declares their types, and makes numba's own uint8 array type immutable for that, which changes the hash of
    keys in use: "Exception ignored in ... KeyError" when a loader is collected, and slow calls of any compiled code.
    """

    def read(address, state):
        data, pointers, sizes = state
        low, high = 0, len(pointers)
        while low < high:  # np.searchsorted, which takes 0.3 s to compile
            middle = (low + high) // 2
            if pointers[middle] < address:
                low = middle + 1
            else:
                high = middle
        return data[address : address + sizes[low]]

    return Compiler.compile(read)


def _set_num_threads(number: int) -> None:
    """Numba's threads only: FFCV sets torch's as well, so that with one worker a model trains on one core."""
    Compiler.num_threads = number
    numba.set_num_threads(number)


_page_readers: dict[int, Callable[..., Any]] = {}


def _compile_page_reader(manager: ProcessCacheManager) -> Callable[..., Any]:
    """FFCV's reader of pages, compiled once in a process for each size of them."""
    page_size = int(manager.reader.page_size)
    if page_size not in _page_readers:
        _page_readers[page_size] = _new_page_reader(manager)
    return _page_readers[page_size]


_new_page_reader = ProcessCacheManager.compile_reader
OSCacheManager.compile_reader = lambda manager: _mapped_reader()
ProcessCacheManager.compile_reader = _compile_page_reader
Compiler.set_num_threads = staticmethod(_set_num_threads)
