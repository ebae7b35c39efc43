"""Functions of C libraries, for Python and for compiled code."""

from __future__ import annotations

import ctypes
from typing import Any


def declare(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of a C library, with the types of its result and arguments.

    Example:
        >>> declare(ctypes.CDLL(None), "abs", ctypes.c_int32, ctypes.c_int32)(-3)
        3
    """
    function = library[name]
    function.restype, function.argtypes = result, arguments
    return function
