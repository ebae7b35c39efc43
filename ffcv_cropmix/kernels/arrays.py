"""Make arrays, in Python and in compiled code.

Numba compiles its own np.empty and carray for each number of dimensions and each dtype.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable
from numba.np.arrayobj import make_array, populate_array

BYTES = types.Array(types.uint8, 1, "C", readonly=True)
"""Numba's type of stored samples and of pixels to be resampled, see `jit.as_readonly`."""


def empty(shape: Any, dtype: Any) -> np.ndarray:
    """Return a new, uninitialised array.

    Args:
        shape: an integer, or a tuple of integers.
        dtype: a NumPy scalar type.
    """
    return np.empty(shape, dtype)


def array_at(address: int, shape: Any, dtype: Any) -> np.ndarray:
    """Return a view of the memory at an address, which the caller keeps alive.

    Args:
        address: of the first byte.
        shape, dtype: see `empty`.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(int(address)), dtype).reshape(shape)


def _type(shape: Any, dtype: Any) -> Any:
    return types.Array(dtype.dtype, len(shape) if isinstance(shape, types.BaseTuple) else 1, "C")


def _emit_array(context: Any, builder: Any, kind: Any, shape_type: Any, shape: Any, place: Callable[[Any], Any]) -> Any:
    """Emit an array of type `kind`; `place` emits (address, numba's meminfo or None) for a size in bytes."""
    is_tuple = isinstance(shape_type, types.BaseTuple)
    dim_types, dims = (list(shape_type), cgutils.unpack_tuple(builder, shape)) if is_tuple else ([shape_type], [shape])
    dims = [context.cast(builder, dim, dim_type, types.intp) for dim, dim_type in zip(dims, dim_types)]
    element = context.get_data_type(kind.dtype)
    itemsize = cgutils.intp_t(context.get_abi_sizeof(element))
    strides: list[Any] = []
    size = itemsize
    for dim in reversed(dims):
        strides.insert(0, size)
        size = builder.mul(size, dim)
    address, meminfo = place(size)
    array = make_array(kind)(context, builder)
    data = builder.bitcast(address, element.as_pointer())
    populate_array(array, data=data, shape=dims, strides=strides, itemsize=itemsize, meminfo=meminfo)
    return array._getvalue()


@type_callable(empty)
def _type_empty(context: Any) -> Any:
    return lambda shape, dtype: _type(shape, dtype)


@type_callable(array_at)
def _type_array_at(context: Any) -> Any:
    return lambda address, shape, dtype: _type(shape, dtype)


@lower_builtin(empty, types.Any, types.Any)
def _lower_empty(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    def place(size: Any) -> Any:
        meminfo = context.nrt.meminfo_alloc_aligned(builder, size=size, align=32)  # may raise MemoryError
        return context.nrt.meminfo_data(builder, meminfo), meminfo

    return _emit_array(context, builder, signature.return_type, signature.args[0], arguments[0], place)


@lower_builtin(array_at, types.Integer, types.Any, types.Any)
def _lower_array_at(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    def place(size: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t), None

    return _emit_array(context, builder, signature.return_type, signature.args[1], arguments[1], place)
