"""Call libjpeg-turbo's decoding functions from Python and from compiled code.

FFCV's extension module is linked with libjpeg-turbo. The functions are called through that module, so nothing else has
to be compiled or installed. FFCV itself is not imported, because that takes seconds.
"""

from __future__ import annotations

import ctypes
from functools import partial
from importlib.machinery import PathFinder
from importlib.util import find_spec

import numpy as np

from .ctypes_functions import declare
from .errors import DataError

_INSTALL = "docs/install.md says how to install it"


def _open() -> ctypes.CDLL:
    package = find_spec("ffcv")
    if package is None:
        raise DataError(f"ffcv is not installed: {_INSTALL}")
    extension = PathFinder.find_spec("_libffcv", package.submodule_search_locations)
    if extension is None or extension.origin is None:
        places = ", ".join(package.submodule_search_locations or [])
        raise DataError(f"{places}: this ffcv was not compiled for this Python, it has no module _libffcv: {_INSTALL}")
    try:
        return ctypes.CDLL(extension.origin)
    except OSError as error:
        message = f"{extension.origin} does not load, ffcv has to be compiled again: {error}; {_INSTALL}"
        raise DataError(message) from None


_library = _open()
_ADDRESS, _INT, _SIZE = ctypes.c_int64, ctypes.c_int32, ctypes.c_uint64


_function = partial(declare, _library)

new_handle = _function("tjInitDecompress", _ADDRESS)
destroy_handle = _function("tjDestroy", _INT, _ADDRESS)
error_code = _function("tjGetErrorCode", _INT, _ADDRESS)
error_text = _function("tjGetErrorStr2", _ADDRESS, _ADDRESS)
read_header = _function("tjDecompressHeader3", _INT, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)
decompress = _function("tjDecompress2", _INT, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS, _INT, _INT, _INT, _INT, _INT)
decompress_to_planes = _function(
    "tjDecompressToYUVPlanes", _INT, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS, _INT, _ADDRESS, _INT, _INT
)
new_transformer = _function("tjInitTransform", _ADDRESS)
transform = _function("tjTransform", _INT, _ADDRESS, _ADDRESS, _SIZE, _INT, _ADDRESS, _ADDRESS, _ADDRESS, _INT)
largest_size = _function("tjBufSize", _SIZE, _INT, _INT, _INT)

TRANSFORM = np.dtype([("region", "i4", 4), ("operation", "i4"), ("options", "i4"), ("data", "u8"), ("filter", "u8")])
"""The argument of `transform`: struct tjtransform."""

TJPF_RGB, TJPF_GRAY, TJSAMP_444, TJSAMP_420, TJERR_FATAL = 0, 6, 0, 2, 1
TJXOPT_COPYNONE, TJFLAG_NOREALLOC = 64, 1024
TJCS_RGB, TJCS_YCBCR, TJCS_GRAY = 0, 1, 2
FLAGS = 1024 | 2048  # TJFLAG_NOREALLOC | TJFLAG_FASTDCT: FFCV's choice
ACCURATE = 1024 | 4096  # TJFLAG_NOREALLOC | TJFLAG_ACCURATEDCT: Pillow's
