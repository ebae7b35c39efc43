"""How the kernels are compiled: one place for the flags.

Kernels take arrays and scalars, fill what they are given, allocate nothing, and know nothing of FFCV or torch.
They also run as plain Python (NUMBA_DISABLE_JIT=1), bit for bit the same: the tests do that.
"""

from __future__ import annotations

import ctypes
from typing import Any

from numba import cfunc, njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic, register_jitable

# No fastmath, said aloud because numba hands the caller's on and FFCV sets it: draws and pixels must agree across
# machines, and it lets LLVM reorder and contract. No on-disk cache: it segfaults when several processes fill it.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": False}

# A kernel: compiled where compiled code calls it, plain Python where Python does. Half the compile time of njit, which
# wraps each function for both, and compiles it anew for each constant that it is called with.
_UNWRAPPED: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
jit = register_jitable(**_UNWRAPPED, **_OPTIONS)

# A kernel with loops over prange, which run in numba's threads.
parallel_jit = njit(parallel=True, **_UNWRAPPED, **_OPTIONS)

# Compiled for calls from Python.
entry = njit(**_OPTIONS)

if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def compiled_once(function: Any, result: Any, *arguments: Any) -> Any:
        """The function itself."""
        return function

    def as_readonly(array: Any) -> Any:
        """The array itself: types do not matter to the interpreter."""
        return array

    def as_pointer(address: int) -> Any:
        """An address as numba.carray takes it."""
        return ctypes.c_void_p(int(address))

else:

    def compiled_once(function: Any, result: Any, *arguments: Any) -> Any:
        """The function of a signature (numba types), to be called from compiled code through its address.

        Numba optimises a function again with each function that calls it, and again for parallel loops: here that ends.
        """
        return cfunc(result(*arguments), **_OPTIONS)(function)

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
