"""How the kernels are compiled: one place for the flags.

Kernels take arrays and scalars, fill what they are given, allocate nothing, and know nothing of FFCV or torch.
They also run as plain Python (NUMBA_DISABLE_JIT=1), bit for bit the same: the tests do that.
"""

from __future__ import annotations

from typing import Any

from numba import config, njit
from numba.extending import intrinsic

# No fastmath: draws and pixels must agree across machines, and it lets LLVM reorder and contract.
# No on-disk cache: it segfaults when several processes fill it.
jit = njit(nogil=True, error_model="numpy")

if config.DISABLE_JIT:

    def as_readonly(array: Any) -> Any:
        """The array itself: types do not matter to the interpreter."""
        return array

else:

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
