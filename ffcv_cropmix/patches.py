"""What is replaced in FFCV, in memory, when a module of this package first imports it. Import this one before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_torch_threads = torch.get_num_threads()

import numba.typed  # noqa: E402

# FFCV makes a table of two numbers that Python alone reads: as numba's Dict, that takes 5 s to compile.
_typed_dict, numba.typed.Dict = numba.typed.Dict, dict
try:
    import ffcv.fields.rgb_image  # noqa: F401
finally:
    numba.typed.Dict = _typed_dict
from ffcv.memory_managers import OSCacheManager  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402

from .kernels.jit import jit  # noqa: E402

torch.set_num_threads(_torch_threads)  # importing FFCV sets it to 1


@jit
def _read_mapped(address, state):
    """Read a memory-mapped file for FFCV's own loader: of whatever types it gets.

    FFCV declares them, and makes numba's own uint8 array type immutable for that, which changes the hash of keys in
    use: "Exception ignored in ... KeyError" when a loader is collected, and slow calls of any compiled code, ours too.
    """
    data, pointers, sizes = state
    low, high = 0, len(pointers)
    while low < high:  # np.searchsorted, which takes 0.3 s to compile
        middle = (low + high) // 2
        if pointers[middle] < address:
            low = middle + 1
        else:
            high = middle
    return data[address : address + sizes[low]]


def _compile(code: Callable[..., Any], signature: Any = None) -> Callable[..., Any]:
    """FFCV compiles all that its operations generate: what calls compiled code already says so, and stays as it is."""
    return code if getattr(code, "is_compiled", False) else _ffcv_compile(code, signature)


OSCacheManager.compile_reader = lambda manager: _read_mapped
_ffcv_compile, Compiler.compile = Compiler.compile, staticmethod(_compile)
