"""Call a compiled function in numba's threads.

Numba's `parallel=True` takes 2.5 s to compile for each function. Here one parallel loop is compiled; it calls any
function through a pointer.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from .jit import UNWRAPPED, compiled_once

if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def task(function: Any) -> Any:
        """Return the function itself."""
        return function

    def compile_parallel_for() -> Any:
        """Do nothing: there is nothing to compile."""

    def parallel_for(function: Any, arguments: Any, count: int) -> bool:
        """Call the function in a loop."""
        for number in range(count):
            function(arguments, number)
        return True

else:
    _ADDRESS = ir.IntType(64)
    _TASK = ir.FunctionType(ir.VoidType(), [_ADDRESS, _ADDRESS])

    def task(function: Any) -> Any:
        """Compile a function for `parallel_for`."""
        return njit(**UNWRAPPED)(function)

    @intrinsic
    def _call(typing_context: Any, function: Any, data: Any, number: Any) -> Any:
        """Call the function at an address."""

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            builder.call(builder.inttoptr(values[0], _TASK.as_pointer()), values[1:])
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, types.int64), codegen

    def _call_all(function, data, count):
        for number in prange(count):
            _call(function, data, number)  # type: ignore[call-arg]  # numba passes the context
        return 1  # numba's wrapper prints an exception of this function, and returns 0

    @cache
    def compile_parallel_for() -> Any:
        """Compile the loop. Call this before a function that uses `parallel_for` is compiled, or loaded from disk."""
        return compiled_once(_call_all, types.int64, types.int64, types.int64, types.int64, parallel=True)

    @intrinsic
    def parallel_for(typing_context: Any, function: Any, arguments: Any, count: Any) -> Any:
        """Call function(arguments, number) for number in range(count), in numba's threads.

        Args:
            function: made by `task`.
            arguments: a tuple.
            count: number of calls.

        Returns:
            True, or False if a call raised an exception. The only one that is expected is MemoryError.
        """
        compiled = function.dispatcher.get_compile_result(types.none(arguments, types.int64))

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            module = builder.module
            # What the calls share: the arguments, and whether one failed.
            kind = ir.LiteralStructType([context.get_value_type(arguments), ir.IntType(1)])
            shared = cgutils.alloca_once(builder, kind)
            places = [cgutils.gep_inbounds(builder, shared, 0, k) for k in range(2)]
            builder.store(values[1], places[0])
            builder.store(cgutils.false_bit, places[1])

            called = ir.Function(module, _TASK, module.get_unique_name(f"{compiled.fndesc.llvm_func_name}.task"))
            called.linkage = "internal"
            inside = ir.IRBuilder(called.append_basic_block())
            data = inside.inttoptr(called.args[0], kind.as_pointer())
            context.active_code_library.add_linking_library(compiled.library)
            status, _ = context.call_conv.call_function(
                inside,
                context.declare_function(module, compiled.fndesc),
                types.none,
                compiled.signature.args,
                [inside.load(cgutils.gep_inbounds(inside, data, 0, 0)), called.args[1]],
            )
            with inside.if_then(status.is_error, likely=False):
                inside.store(cgutils.true_bit, cgutils.gep_inbounds(inside, data, 0, 1))
            inside.ret_void()

            loop = context.get_function(compile_parallel_for(), types.int64(types.int64, types.int64, types.int64))
            pointers = [builder.ptrtoint(value, _ADDRESS) for value in (called, shared)]
            finished = loop(builder, [*pointers, values[2]])
            failed = builder.or_(builder.icmp_signed("==", finished, _ADDRESS(0)), builder.load(places[1]))
            return builder.not_(failed)

        return types.boolean(function, arguments, types.int64), codegen
