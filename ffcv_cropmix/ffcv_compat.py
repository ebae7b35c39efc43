"""The only module that imports FFCV. Other modules import FFCV's names from here, so the changes below always apply.

FFCV's files on disk stay as they are; these are changed in memory when this module is imported:

- `ffcv.fields.rgb_image` is imported with a plain dict in place of `numba.typed.Dict`: its table of two entries, which
  only Python reads, takes 5 s to compile otherwise.
- torch's number of threads is restored: importing FFCV sets it to 1.
- `OSCacheManager.compile_reader` returns `_read_mapped`, whose types numba infers. FFCV declares them, and for that
  makes numba's uint8 array type immutable, which changes the hash of keys in use: "Exception ignored in ... KeyError"
  when a loader is collected, and slow calls of any compiled code ever after.
- `Compiler.compile` leaves code alone that says it is compiled (`is_compiled`); FFCV compiles whatever an operation
  generates, also what only calls compiled code.
- `SimpleRGBImageDecoder.accept_field` refuses a `DCTImageField` (in `fields`).

What the package relies on beside FFCV's documented API, all of version 1.0.2:

- `loader`: the attributes and pipelines of `ffcv.loader.Loader` (`Graph`, `Compiler.num_threads`, `AllocationQuery`),
  the traversal orders and `generate_order_inner`, `ORDER_TYPE`, `DEFAULT_OS_CACHE`; `passes`: `select_buffer`
- `data.memory`: the interface of `MemoryManager` and `MemoryContext`
- `decoders`, `views`, `fields`: the interface of `Operation` and `Field`, `State`, `ARG_TYPE`
- `data.reader`: the tables of a .beton file (`HeaderType`, `FieldDescType`, `ALLOC_TABLE_TYPE`, `TYPE_ID_HANDLER`)
- `libturbojpeg`: libjpeg-turbo, as FFCV's extension module `_libffcv` is linked with it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import (
    libtbb,
    libturbojpeg,  # noqa: F401  # its error says more than FFCV's where FFCV's extension does not load
)

_torch_threads = torch.get_num_threads()
libtbb.load()

import numba.typed  # noqa: E402

_typed_dict, numba.typed.Dict = numba.typed.Dict, dict
try:
    import ffcv.fields.rgb_image  # noqa: F401
finally:
    numba.typed.Dict = _typed_dict

from ffcv.fields import IntField, NDArrayField, RGBImageField, TorchTensorField  # noqa: E402
from ffcv.fields.base import ARG_TYPE, Field  # noqa: E402
from ffcv.fields.basics import IntDecoder  # noqa: E402
from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # noqa: E402
from ffcv.loader import Loader as FFCVLoader  # noqa: E402
from ffcv.loader import OrderOption  # noqa: E402
from ffcv.loader.epoch_iterator import select_buffer  # noqa: E402
from ffcv.loader.loader import DEFAULT_OS_CACHE, ORDER_TYPE  # noqa: E402
from ffcv.memory_managers import MemoryContext, MemoryManager, OSCacheManager  # noqa: E402
from ffcv.pipeline import PipelineSpec  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.pipeline.graph import Graph  # noqa: E402
from ffcv.pipeline.operation import Operation  # noqa: E402
from ffcv.pipeline.state import State  # noqa: E402
from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage  # noqa: E402
from ffcv.traversal_order import QuasiRandom, Random, Sequential  # noqa: E402
from ffcv.traversal_order.base import TraversalOrder  # noqa: E402
from ffcv.traversal_order.quasi_random import generate_order_inner  # noqa: E402
from ffcv.types import (  # noqa: E402
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    get_metadata_type,
)

from .kernels.jit import jit  # noqa: E402

torch.set_num_threads(_torch_threads)

__all__ = [
    "ALLOC_TABLE_TYPE",
    "ARG_TYPE",
    "CURRENT_VERSION",
    "DEFAULT_OS_CACHE",
    "ORDER_TYPE",
    "TYPE_ID_HANDLER",
    "AllocationQuery",
    "Compiler",
    "FFCVLoader",
    "Field",
    "FieldDescType",
    "Graph",
    "HeaderType",
    "IntDecoder",
    "IntField",
    "MemoryContext",
    "MemoryManager",
    "NDArrayField",
    "Operation",
    "OrderOption",
    "PipelineSpec",
    "QuasiRandom",
    "RGBImageField",
    "Random",
    "Sequential",
    "SimpleRGBImageDecoder",
    "Squeeze",
    "State",
    "ToDevice",
    "ToTensor",
    "ToTorchImage",
    "TorchTensorField",
    "TraversalOrder",
    "generate_order_inner",
    "get_metadata_type",
    "select_buffer",
]


@jit
def _read_mapped(address, state):
    """Read a sample of a memory-mapped file for FFCV's own loader, which has the pointers sorted."""
    data, pointers, sizes = state
    low, high = 0, len(pointers)
    while low < high:  # np.searchsorted takes 0.3 s to compile
        middle = (low + high) // 2
        if pointers[middle] < address:
            low = middle + 1
        else:
            high = middle
    return data[address : address + sizes[low]]


def _compile(code: Callable[..., Any], signature: Any = None) -> Callable[..., Any]:
    """Compile what an FFCV operation generates, unless it says that it is compiled."""
    return code if getattr(code, "is_compiled", False) else _ffcv_compile(code, signature)


OSCacheManager.compile_reader = lambda manager: _read_mapped
_ffcv_compile, Compiler.compile = Compiler.compile, staticmethod(_compile)
