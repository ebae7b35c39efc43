"""Helpers for kernels that are written in LLVM's vector instructions: see `vectors`, `idct` and `colour`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

U8, U16, U32, INDEX = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def compiles(definition: Callable[..., None]) -> Callable[[Callable[..., None]], None]:
    """Compile calls of `definition` to the code that the decorated function emits.

    The decorated function receives the builder and then the arguments: an array as the address of its first element, a
    number as int64, and a NamedTuple of these as the same NamedTuple.
    """

    def register(emit: Callable[..., None]) -> None:
        def typer(*arguments: Any) -> Any:
            passed = types.Array, types.BaseNamedTuple
            return types.void(*(kind if isinstance(kind, passed) else types.int64 for kind in arguments))

        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def value_of(kind: Any, value: Any) -> Any:
                if isinstance(kind, types.Array):
                    return cgutils.create_struct_proxy(kind)(context, builder, value).data
                if hasattr(kind, "instance_class"):
                    parts = [value_of(part, builder.extract_value(value, k)) for k, part in enumerate(kind)]
                    return kind.instance_class(*parts)
                return context.cast(builder, value, kind, types.int64)

            emit(builder, *map(value_of, signature.args, arguments))
            return context.get_dummy_value()

        typer.__signature__ = inspect.signature(definition)  # type: ignore[attr-defined]
        type_callable(definition)(lambda context: typer)
        lower_builtin(definition, types.VarArg(types.Any))(lower)

    return register


def index(value: int) -> Any:
    return ir.Constant(INDEX, value)


def constant(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def splat(builder: Any, value: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(U32, 0))
    return builder.shuffle_vector(one, undefined, constant(ir.VectorType(U32, lanes), 0))


def shuffle(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(U32, len(lanes)), lanes))


def load(builder: Any, address: Any, offset: Any, lanes: int) -> Any:
    kind = ir.VectorType(address.type.pointee, lanes)
    value = builder.load(builder.bitcast(builder.gep(address, [offset]), kind.as_pointer()))
    value.align = kind.element.width // 8
    return value


def store(builder: Any, vector: Any, address: Any, offset: Any) -> None:
    target = builder.bitcast(builder.gep(address, [offset]), vector.type.as_pointer())
    builder.store(vector, target).align = vector.type.element.width // 8
