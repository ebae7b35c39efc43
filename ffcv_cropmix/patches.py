"""What is replaced in FFCV, in memory, when a module of this package first imports it. Import this one before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_torch_threads = torch.get_num_threads()

import numba  # noqa: E402
import numpy as np  # noqa: E402
from ffcv.memory_managers import OSCacheManager  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402

torch.set_num_threads(_torch_threads)  # importing FFCV sets it to 1


def _compile_reader(manager: OSCacheManager) -> Callable[..., Any]:
    """The reader of memory-mapped files, typed by its arguments.

    FFCV declares their types, and makes numba's own uint8 array type immutable for that, which changes the hash of
    keys in use: "Exception ignored in ... KeyError" when a loader is collected, and slow calls of any compiled code.
    """

    def read(address, state):
        data, pointers, sizes = state
        return data[address : address + sizes[np.searchsorted(pointers, address)]]

    return Compiler.compile(read)


def _set_num_threads(number: int) -> None:
    """Numba's threads only: FFCV sets torch's as well, so that with one worker a model trains on one core."""
    Compiler.num_threads = number
    numba.set_num_threads(number)


OSCacheManager.compile_reader = _compile_reader
Compiler.set_num_threads = staticmethod(_set_num_threads)
