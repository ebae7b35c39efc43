"""Decorators that compile the kernels: all compiler flags are set here.

Kernels take arrays and scalars, fill the arrays that they are given, allocate nothing, and do not depend on FFCV or
torch. They also run as plain Python (NUMBA_DISABLE_JIT=1) with bitwise equal results, which the tests check.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import secrets
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import _dynfunc, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils, config
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.environment import lookup_environment
from numba.core.typing.ctypes_utils import from_ctypes
from numba.extending import intrinsic, lower_builtin, register_jitable, type_callable

from .cache import DiskCache, identity

# fastmath lets LLVM reorder and contract operations, but random numbers and pixels must agree across machines. It is
# switched off explicitly, because numba inherits the caller's setting and FFCV switches it on.
OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": False}


class _CallerLibrary(JITCodeLibrary):
    """The machine code of a function that Python calls, with that of its callees.

    Numba sets the environment of a function, which it needs to print and to raise exceptions with arguments, only if
    the function has machine code of its own.
    """

    def _finalize_specific(self) -> None:
        super()._finalize_specific()
        codegen: Any = self._codegen
        for variable in self._final_module.global_variables:
            environment = lookup_environment(variable.name)
            if environment is not None:
                codegen.set_env(variable.name, environment)


class _CallerCompiler(Compiler):
    library: type[JITCodeLibrary] = _CallerLibrary

    def define_pipelines(self) -> Any:
        self.state.library = self.library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        self.state.library.enable_object_caching()
        return super().define_pipelines()


class _CalleeLibrary(JITCodeLibrary):
    """The LLVM code of a function that only compiled functions call. It is optimised and compiled in its callers."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class _CalleeCompiler(_CallerCompiler):
    """Compile a function into a `_CalleeLibrary`. Such functions must not call each other recursively.

    Numba's own compiler generates machine code for each function on its own, and again within each caller. That is a
    third of the compile time.
    """

    library = _CalleeLibrary

    def define_pipelines(self) -> Any:
        self.state.flags.no_compile = True
        return super().define_pipelines()

    def _compile_core(self) -> Any:
        result = super()._compile_core()
        # Numba looks up a callee by the Python function of its compiled code. This placeholder has no code: calling it
        # crashes.
        described, libraries = result.fndesc, (result.library,)
        module, name = described.lookup_module(), described.qualname
        key = _dynfunc.make_function(module, name, "", 0, result.environment, libraries)
        self.state.targetctx.insert_user_function(key, described, libraries)
        return result._replace(entry_point=key)


_FOR_PYTHON: Any = {"no_cfunc_wrapper": True, "pipeline_class": _CallerCompiler, **OPTIONS}

# A kernel: compiled if compiled code calls it, plain Python if Python does. It compiles in a third of the time of njit,
# which wraps each function for both, and compiles it again for each constant that it is called with.
UNWRAPPED: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": _CalleeCompiler, **OPTIONS}
jit = register_jitable(**UNWRAPPED)

# The same, for a kernel that gets all its arrays from the caller and returns only numbers. Numba counts references to
# each array in a tuple argument with atomic additions; without that, the kernel runs and compiles faster.
uncounted = register_jitable(_nrt=False, **UNWRAPPED)

if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def entry(function: Any) -> Any:
        """Return the function itself."""
        return function

    def compiled_once(function: Any, result: Any, *arguments: Any, parallel: bool = False) -> Any:
        """Return the function itself."""
        return function

    def c_function(function: Any) -> Any:
        """Return the function itself."""
        return function

    def as_readonly(array: Any) -> Any:
        """Return the array itself: the interpreter needs no types."""
        return array

else:

    def _name(function: Any) -> str | None:
        """Return the `identity`; None if compiled code must not be cached."""
        try:
            return identity(function)
        except TypeError:
            return None

    def entry(function: Any) -> Any:
        """Compile a function for calls from Python; other processes load the code from the cache."""
        compiled = njit(**_FOR_PYTHON)(function)
        name = _name(function)
        if name is not None:
            compiled._cache = DiskCache(name)
        return compiled

    def compiled_once(function: Any, result: Any, *arguments: Any, parallel: bool = False) -> Any:
        """Compile a function with one signature for calls from compiled code; other processes load it from the cache.

        Without this, numba optimises a function again within each caller.

        Args:
            function: a Python function.
            result: numba type of the result.
            arguments: numba types of the arguments.
            parallel: run loops over prange in numba's threads.
        """
        options = {"parallel": parallel, **OPTIONS}
        compiled: Any = CFunc(function, (arguments, result), {}, options, pipeline_class=_CallerCompiler)
        name = _name(function)
        if name is not None and parallel:
            name += " parallel"
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
        """Make a ctypes function callable from compiled code."""
        address = ctypes.cast(function, ctypes.c_void_p).value
        arguments = [from_ctypes(kind) for kind in function.argtypes]
        call = _external(function, function.__name__, address, from_ctypes(function.restype), arguments)
        call.symbol = function.__name__
        return call

    def _external(function: Any, symbol: str, address: Any, result: Any, arguments: Any) -> Any:
        """Return a function for Python and for compiled code, which calls it through a symbol linked at load time.

        Numba would compile the address in as a constant, and addresses differ in the next process.
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
        """Return the same array with numba's read-only type.

        Memory-mapped images are read-only and decoded images are not. With one type for both, each kernel is compiled
        once.
        """
        signature = array.copy(readonly=True)(array)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            context.nrt.incref(builder, signature.args[0], arguments[0])
            return arguments[0]

        return signature, codegen
