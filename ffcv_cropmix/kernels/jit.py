"""How the kernels are compiled: one place for the flags.

Kernels take arrays and scalars, fill what they are given, allocate nothing, and know nothing of FFCV or torch.
They also run as plain Python (NUMBA_DISABLE_JIT=1), bit for bit the same: the tests do that.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import secrets
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.ccallback import CFunc
from numba.core.typing.ctypes_utils import from_ctypes
from numba.extending import intrinsic, lower_builtin, register_jitable, type_callable

from .cache import DiskCache, identity

# No fastmath: random numbers and pixels must agree across machines, and it lets LLVM reorder and contract. Set
# explicitly, because numba inherits the caller's setting, and FFCV turns it on.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": False}
_FOR_PYTHON: Any = {"no_cfunc_wrapper": True, **_OPTIONS}

# A kernel: compiled where compiled code calls it, plain Python where Python does. Half the compile time of njit, which
# wraps each function for both, and compiles it anew for each constant that it is called with.
_UNWRAPPED: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
jit = register_jitable(**_UNWRAPPED, **_OPTIONS)

# The same, for a kernel that is handed all arrays and returns numbers. Numba counts the references to each array of a
# tuple that a function is called with, by atomic additions; here it does not, and has less to compile.
uncounted = register_jitable(_nrt=False, **_UNWRAPPED, **_OPTIONS)

if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def entry(function: Any, parallel: bool = False) -> Any:
        """The function itself."""
        return function

    def compiled_once(function: Any, result: Any, *arguments: Any) -> Any:
        """The function itself."""
        return function

    def c_function(function: Any) -> Any:
        """The function itself."""
        return function

    def as_readonly(array: Any) -> Any:
        """The array itself: types do not matter to the interpreter."""
        return array

    def as_pointer(address: int) -> Any:
        """An address as numba.carray takes it."""
        return ctypes.c_void_p(int(address))

else:

    def _name(function: Any) -> str | None:
        """As `identity`; None where compiled code is not to be kept."""
        try:
            return identity(function)
        except TypeError:
            return None

    def entry(function: Any, parallel: bool = False) -> Any:
        """The function, compiled for calls from Python, once a machine.

        parallel: loops over prange run in numba's threads.
        """
        compiled = njit(parallel=parallel, **_FOR_PYTHON)(function)
        name = _name(function)
        if name is not None:
            compiled._cache = DiskCache(f"{name} parallel" if parallel else name)
        return compiled

    def compiled_once(function: Any, result: Any, *arguments: Any) -> Any:
        """The function of a signature (numba types), compiled once a machine, for calls from compiled code.

        Numba optimises a function again with each function that calls it, and again for parallel loops: here that ends.
        """
        compiled: Any = CFunc(function, (arguments, result), locals={}, options=_OPTIONS)
        name = _name(function)
        if name is not None:
            compiled._cache = DiskCache(name)
        compiled.compile()
        kind = repr([name or secrets.token_hex(16), str(arguments), str(result)])
        symbol = f"{function.__name__}-{hashlib.sha256(kind.encode()).hexdigest()}"
        call = _external(compiled, symbol, compiled.address, result, arguments)
        if name is not None:
            call.symbol = symbol
        return call

    def c_function(function: Any) -> Any:
        """A ctypes function, for calls from compiled code."""
        address = ctypes.cast(function, ctypes.c_void_p).value
        arguments = [from_ctypes(kind) for kind in function.argtypes]
        call = _external(function, function.__name__, address, from_ctypes(function.restype), arguments)
        call.symbol = function.__name__
        return call

    def _external(function: Any, symbol: str, address: Any, result: Any, arguments: Any) -> Any:
        """What Python and compiled code call alike: the latter through a symbol, which is linked when it is loaded.

        Numba makes constants of addresses, which are others in the next process.
        """
        symbol = f"ffcv_cropmix.{symbol}"
        llvmlite.binding.add_symbol(symbol, address)

        def call(*values: Any) -> Any:
            return function(*values)

        call.__wrapped__ = function  # type: ignore[attr-defined]

        def typer(*values: Any) -> Any:
            return result(*arguments)

        parameters = [inspect.Parameter(f"a{k}", inspect.Parameter.POSITIONAL_ONLY) for k in range(len(arguments))]
        typer.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        type_callable(call)(lambda context: typer)

        @lower_builtin(call, types.VarArg(types.Any))
        def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kinds = [context.get_value_type(kind) for kind in signature.args]
            kind = ir.FunctionType(context.get_value_type(signature.return_type), kinds)
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, symbol), values)

        return call

    @intrinsic
    def as_readonly(typing_context: Any, array: Any) -> Any:
        """The same array under numba's read-only type.

        Memory-mapped images are read-only, decoded ones are not: one type for both compiles each kernel once.
        """
        signature = array.copy(readonly=True)(array)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            context.nrt.incref(builder, signature.args[0], arguments[0])
            return arguments[0]

        return signature, codegen

    @intrinsic
    def as_pointer(typing_context: Any, address: Any) -> Any:
        """An address as numba.carray takes it."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)

        return types.voidptr(address), codegen
