"""JPEG decoding in compiled code, every return code checked.

Pixels are those of FFCV's own `imdecode`, which ignores what went wrong (hazard: the sample then has another sample's
pixels).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from . import libturbojpeg
from .kernels.jit import as_pointer, c_function, jit
from .kernels.planes import (
    ACROSS,
    ACROSS_TRIANGLE,
    DOWN,
    DOWN_TRIANGLE,
    HEIGHT,
    LAYOUT,
    PLANE,
    STRIDE,
    WIDTH,
)
from .libturbojpeg import FLAGS, TJCS_YCBCR, TJERR_FATAL, TJPF_RGB, TJSAMP_420

new_handle = c_function(libturbojpeg.new_handle)
destroy_handle = c_function(libturbojpeg.destroy_handle)
error_code = c_function(libturbojpeg.error_code)
error_text = c_function(libturbojpeg.error_text)
read_header = c_function(libturbojpeg.read_header)
decompress = c_function(libturbojpeg.decompress)
decompress_to_planes = c_function(libturbojpeg.decompress_to_planes)

_REST = np.frombuffer(b"Corrupt JPEG data: ", np.uint8)
"""How libjpeg's message begins that bytes follow the last row; their number is next."""

OK, BAD_HEADER, OTHER_SIZE, BAD_DATA, NOT_420 = range(5)


class JpegBuffers(NamedTuple):
    """Working memory of the decoding of one JPEG after the other, owned by one thread."""

    header: Any  # int32 (4,): width, height, subsampling, colour space
    pixels: Any  # uint8 (n,): RGB rows, or planes
    shortened: Any  # uint8 (n,): a JPEG with another height
    planes: Any  # int64 (3,): addresses of the planes
    layout: Any  # int64 (3, 8): of the planes, see kernels.planes.PLANE


@jit
def new_buffers(largest_area, largest_file):
    """Buffers for images of up to so many pixels, a row and a column added, and files of so many bytes.

    Files are copied to decode less than all of them: 0 where that is not done.
    """
    return JpegBuffers(
        np.empty(4, np.int32),
        np.empty(3 * largest_area, np.uint8),
        np.empty(largest_file, np.uint8),
        np.empty(3, np.int64),
        np.zeros((3, LAYOUT), np.int64),
    )


@jit
def _check_header(handle, data, height, width, header):
    for k in range(4):  # of a file with tables only, it reports success and leaves them as they were
        header[k] = 0
    at = header.ctypes.data
    result = read_header(handle, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12)
    unusual = header[2] < 0 and error_code(handle) == TJERR_FATAL  # a sampling without a name, which it decodes
    if result != 0 and not unusual:
        return BAD_HEADER
    if header[0] != width or header[1] != height:  # decoding reports success, and shears the image
        return OTHER_SIZE
    return OK


@jit
def _height_offset(data):
    """Where the height stands in a JPEG whose first rows can be decoded alone: baseline, in one scan; else 0."""
    frame = 0
    components = 0
    at = 2
    while at + 10 < data.size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xC0 or marker == 0xC1:
            frame, components = at + 5, data[at + 9]
        elif marker == 0xDA:
            return frame if data[at + 4] == components else 0
        at += 2 + 256 * int(data[at + 2]) + int(data[at + 3])
    return 0


@jit
def _shorten(data, rows, height, buffers):
    """Put the JPEG with a lower height into buffers.shortened: decoding stops there. Return whether that was done."""
    if rows >= height:
        return False
    at = _height_offset(data)
    if at == 0:
        return False
    for k in range(data.size):  # as a slice, numba compiles for 3 s what would report a wrong shape
        buffers.shortened[k] = data[k]
    buffers.shortened[at] = rows >> 8
    buffers.shortened[at + 1] = rows & 255
    return True


@jit
def _decompress(handle, source, size, height, width, planar, buffers):
    pixels = buffers.pixels.ctypes.data
    if planar:
        return decompress_to_planes(handle, source, size, buffers.planes.ctypes.data, width, 0, height, FLAGS)
    return decompress(handle, source, size, pixels, width, 0, height, TJPF_RGB, FLAGS)


@jit
def _complains_of_the_rest(handle):
    """Whether what the library complains of is that bytes follow the last row, and nothing before that."""
    size = len(_REST)
    message = carray(as_pointer(error_text(handle)), (size + 1,), np.uint8)
    for k in range(size):
        if message[k] != _REST[k]:
            return False
    return 48 <= message[size] < 58


@jit
def _decode_with(handle, data, height, width, rows, planar, buffers):
    code = _check_header(handle, data, height, width, buffers.header)
    if code != OK:
        return code
    if planar:
        if buffers.header[2] != TJSAMP_420 or buffers.header[3] != TJCS_YCBCR:
            return NOT_420
        half_height, half_width = (height + 1) // 2, (width + 1) // 2
        buffers.planes[0] = buffers.pixels.ctypes.data
        buffers.planes[1] = buffers.planes[0] + 4 * half_height * half_width
        buffers.planes[2] = buffers.planes[1] + half_height * half_width
    if _shorten(data, rows + 2, height, buffers):  # the rows of colours above and below make up a row's
        result = _decompress(handle, buffers.shortened.ctypes.data, data.size, rows + 2, width, planar, buffers)
        if result == 0 or _complains_of_the_rest(handle):
            return OK
    result = _decompress(handle, data.ctypes.data, data.size, height, width, planar, buffers)
    return OK if result == 0 else BAD_DATA


@jit
def _decode(data, height, width, rows, planar, buffers):
    # A handle for each JPEG. It keeps the tables of the JPEG before, which one without tables would be decoded with,
    # and after an error in a header it refuses all that follow. A new one takes 0.2 us.
    handle = new_handle()
    code = _decode_with(handle, data, height, width, rows, planar, buffers)
    destroy_handle(handle)
    return code


@jit
def decode_jpeg(data, height, width, buffers):
    """Decode a JPEG into buffers.pixels, as RGB rows. What was decoded before makes no difference.

    Args:
        data: uint8 (n,), the JPEG file.
        height, width: the size that the JPEG must have, px.

    Returns:
        OK, or what is wrong: BAD_HEADER (not a JPEG), OTHER_SIZE, BAD_DATA (damaged, or not RGB or gray); the pixels
        then are anything.
    """
    return _decode(data, height, width, height, False, buffers)


@jit
def decode_jpeg_rows(data, height, width, rows, buffers):
    """`decode_jpeg` of the first `rows` rows, at least; what is decoded is the same to the bit.

    Damage below them may go unnoticed, but never that a row of them is missing.
    """
    return _decode(data, height, width, rows, False, buffers)


@jit
def _lay_out(height, width, layout):
    """Say where `decode_jpeg_planes` leaves the planes."""
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    for component in range(3):
        colour = min(component, 1)
        plane = layout[component]
        plane[PLANE] = (3 + component) * half_height * half_width if colour else 0
        plane[STRIDE] = half_width * (2 - colour)
        plane[HEIGHT], plane[WIDTH] = (half_height, half_width) if colour else (height, width)
        plane[DOWN], plane[ACROSS] = 1 + colour, 1 + colour
        plane[DOWN_TRIANGLE], plane[ACROSS_TRIANGLE] = colour, colour


@jit
def decode_jpeg_planes(data, height, width, rows, buffers):
    """Decode a JPEG's planes into buffers.pixels: at least the first `rows` rows, colours at half the resolution.

    Where they are, buffers.layout says then.

    Returns:
        As `decode_jpeg_rows` does, or NOT_420: it has no such planes; buffers.pixels are as they were.
    """
    _lay_out(height, width, buffers.layout)
    return _decode(data, height, width, rows, True, buffers)
