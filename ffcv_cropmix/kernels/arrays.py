"""Make arrays, in Python and in compiled code. Numba would compile np.empty and carray for each shape and type."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable
from numba.np.arrayobj import make_array, populate_array


def empty(shape: Any, dtype: Any) -> np.ndarray:
    """Return a new array, not initialised.

    Args:
        shape: an integer, or a tuple of integers.
        dtype: a NumPy scalar type.
    """
    return np.empty(shape, dtype)


def array_at(address: int, shape: Any, dtype: Any) -> np.ndarray:
    """Return the array at an address, in memory that is managed elsewhere.

    Args:
        address: of the first byte.
        shape, dtype: see `empty`.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(int(address)), dtype).reshape(shape)


def _type(shape: Any, dtype: Any) -> Any:
    return types.Array(dtype.dtype, len(shape) if isinstance(shape, types.BaseTuple) else 1, "C")


def _emit_array(context: Any, builder: Any, kind: Any, asked: Any, shape: Any, place: Callable[[Any], Any]) -> Any:
    """Emit an array of type `kind`; `place` emits (address, numba's meminfo or None) for a size in bytes."""
    many = isinstance(asked, types.BaseTuple)
    kinds, sides = (list(asked), cgutils.unpack_tuple(builder, shape)) if many else ([asked], [shape])
    sides = [context.cast(builder, side, given, types.intp) for side, given in zip(sides, kinds)]
    element = context.get_data_type(kind.dtype)
    itemsize = cgutils.intp_t(context.get_abi_sizeof(element))
    strides: list[Any] = []
    size = itemsize
    for side in reversed(sides):
        strides.insert(0, size)
        size = builder.mul(size, side)
    address, meminfo = place(size)
    array = make_array(kind)(context, builder)
    data = builder.bitcast(address, element.as_pointer())
    populate_array(array, data=data, shape=sides, strides=strides, itemsize=itemsize, meminfo=meminfo)
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
