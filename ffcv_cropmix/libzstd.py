"""Call Zstandard's decompression from Python and from compiled code.

The extension module of the package backports.zstd contains the library. It is called through that module, so nothing
else has to be compiled or installed. If the module does not contain it, the system's library is used.
"""

from __future__ import annotations

import ctypes
from functools import partial
from importlib.machinery import PathFinder
from importlib.util import find_spec

from .ctypes_functions import declare
from .errors import DataError


def _open() -> ctypes.CDLL:
    package = find_spec("backports.zstd") if find_spec("backports") else None
    extension = PathFinder.find_spec("_zstd", package.submodule_search_locations) if package else None
    for path in (extension.origin if extension else None, "libzstd.so.1"):
        try:
            library = ctypes.CDLL(path or "")
            library["ZSTD_decompressDCtx"]
        except (OSError, AttributeError):
            continue
        return library
    raise DataError("Zstandard's library is missing: pip install backports.zstd, or install libzstd (Debian: libzstd1)")


_library = _open()
_ADDRESS, _SIZE = ctypes.c_int64, ctypes.c_uint64


_function = partial(declare, _library)

new_context = _function("ZSTD_createDCtx", _ADDRESS)
destroy_context = _function("ZSTD_freeDCtx", _ADDRESS, _ADDRESS)
decompress = _function("ZSTD_decompressDCtx", _ADDRESS, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS, _SIZE)
"""(context, target, its size, source, its size) -> number of bytes, or an error as a negative number: the data are
damaged, the checksum differs, ..."""
