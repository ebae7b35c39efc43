"""JPEG decoding in compiled code, every return code checked.

FFCV's extension module is linked with libjpeg-turbo: its functions are called through that, so nothing is compiled or
installed besides. Pixels are those of FFCV's own `imdecode`, which ignores what went wrong (hazard: the sample then
has another sample's pixels).
"""

from __future__ import annotations

from . import patches  # noqa: F401

# isort: split
import ctypes
from typing import Any

import ffcv._libffcv

from .kernels.jit import jit

_library = ctypes.CDLL(ffcv._libffcv.__file__)
_ADDRESS, _INT, _SIZE = ctypes.c_int64, ctypes.c_int32, ctypes.c_uint64


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = _library[name]
    function.restype, function.argtypes = result, arguments
    return function


new_handle = _function("tjInitDecompress", _ADDRESS)
destroy_handle = _function("tjDestroy", _INT, _ADDRESS)
_read_header = _function("tjDecompressHeader3", _INT, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)
_decompress = _function("tjDecompress2", _INT, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS, _INT, _INT, _INT, _INT, _INT)

_TJPF_RGB = 0
_TJFLAG_NOREALLOC, _TJFLAG_FASTDCT = 1024, 2048  # FFCV's choice

OK, BAD_HEADER, OTHER_SIZE, BAD_DATA = range(4)


@jit
def decode_jpeg(handle, data, height, width, header, out):
    """Decode a JPEG into the first height * width * 3 bytes of `out`, as RGB rows.

    Args:
        handle: from `new_handle`, of one thread.
        data: uint8 (n,), the JPEG file.
        height, width: the size that the JPEG must have, px.
        header: int32 (4,), working memory.
        out: uint8, at least height * width * 3.

    Returns:
        OK, or what is wrong: BAD_HEADER (not a JPEG), OTHER_SIZE, BAD_DATA (damaged, or not RGB or gray); `out` then
        holds anything.
    """
    address = data.ctypes.data
    at = header.ctypes.data
    if _read_header(handle, address, data.size, at, at + 4, at + 8, at + 12) != 0:
        return BAD_HEADER
    if header[0] != width or header[1] != height:  # decoding reports success, and shears the image
        return OTHER_SIZE
    flags = _TJFLAG_NOREALLOC | _TJFLAG_FASTDCT
    if _decompress(handle, address, data.size, out.ctypes.data, width, 0, height, _TJPF_RGB, flags) != 0:
        return BAD_DATA
    return OK
