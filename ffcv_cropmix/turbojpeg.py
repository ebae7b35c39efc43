"""Decode JPEGs in compiled code and check every return code.

The pixels equal those of FFCV's own `imdecode`. That function ignores errors, so a damaged sample gets the pixels of
another one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import libturbojpeg
from .kernels.arrays import array_at, empty
from .kernels.jit import c_function, jit
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
"""The start of libjpeg's message that there are bytes after the last row; their number follows."""

OK, BAD_HEADER, OTHER_SIZE, BAD_DATA, NOT_420 = range(5)


class JpegBuffers(NamedTuple):
    """Working memory for decoding JPEGs one after another, owned by one thread."""

    header: Any  # int32 (4,): width, height, subsampling, colour space
    pixels: Any  # uint8 (n,): RGB rows, or planes
    shortened: Any  # uint8 (n,): a copy of a JPEG with a smaller height in its header
    planes: Any  # int64 (3,): addresses of the planes
    layout: Any  # int64 (3, LAYOUT): of the planes, see kernels.planes.PLANE


@jit
def new_buffers(largest_area, largest_file):
    """Allocate buffers.

    Args:
        largest_area: largest (height + 1) * (width + 1) of an image, px.
        largest_file: size of the largest file, bytes; 0 if every file is decoded whole. Files are copied only to
            decode their first rows.

    Returns:
        JpegBuffers.
    """
    return JpegBuffers(
        empty(4, np.int32),
        empty(3 * largest_area, np.uint8),
        empty(largest_file, np.uint8),
        empty(3, np.int64),
        empty((3, LAYOUT), np.int64),
    )


@jit
def _check_header(handle, data, height, width, header):
    for k in range(4):  # for a file with tables only, read_header reports success and leaves these unchanged
        header[k] = 0
    at = header.ctypes.data
    result = read_header(handle, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12)
    unusual = header[2] < 0 and error_code(handle) == TJERR_FATAL  # subsampling without a name: decoded all the same
    if result != 0 and not unusual:
        return BAD_HEADER
    if header[0] != width or header[1] != height:  # decoding would report success and shear the image
        return OTHER_SIZE
    return OK


@jit
def _height_offset(data):
    """Return the offset of the height if the first rows can be decoded alone (baseline, one scan); else 0."""
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
    """Copy the JPEG into buffers.shortened with height `rows`, where decoding will stop; return False if it cannot."""
    if rows >= height:
        return False
    at = _height_offset(data)
    if at == 0:
        return False
    for k in range(data.size):  # a slice takes 3 s more to compile, for numba's error about a wrong shape
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
    """Return whether the library complains only of bytes after the last row."""
    size = len(_REST)
    message = array_at(error_text(handle), size + 1, np.uint8)
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
    if _shorten(data, rows + 2, height, buffers):  # a row depends on the rows of colours above and below it
        result = _decompress(handle, buffers.shortened.ctypes.data, data.size, rows + 2, width, planar, buffers)
        if result == 0 or _complains_of_the_rest(handle):
            return OK
    result = _decompress(handle, data.ctypes.data, data.size, height, width, planar, buffers)
    return OK if result == 0 else BAD_DATA


@jit
def _decode(data, height, width, rows, planar, buffers):
    # Each JPEG gets a new handle, which takes 0.2 us. A handle that is used again decodes a JPEG without tables with
    # the tables of the JPEG before, and after an error in a header it refuses all JPEGs that follow.
    handle = new_handle()
    code = _decode_with(handle, data, height, width, rows, planar, buffers)
    destroy_handle(handle)
    return code


@jit
def decode_jpeg_rows(data, height, width, rows, buffers):
    """Decode at least the first `rows` rows of a JPEG into buffers.pixels as RGB rows.

    The result does not depend on what was decoded before. Damage below these rows may go undetected. A missing row
    among them is always detected.

    Args:
        data: uint8 (n,), the JPEG file.
        height, width: the expected size, px.
        rows: number of rows that are needed.
        buffers: JpegBuffers.

    Returns:
        OK, BAD_HEADER (not a JPEG), OTHER_SIZE or BAD_DATA (damaged, or neither RGB nor gray). After an error the
        pixels are undefined.
    """
    return _decode(data, height, width, rows, False, buffers)


@jit
def _lay_out(height, width, layout):
    """Fill the layout of the planes of `decode_jpeg_planes`."""
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
    """Decode at least the first `rows` rows of a 4:2:0 JPEG into planes, the colours at half the resolution.

    The planes are in buffers.pixels; buffers.layout describes them.

    Returns:
        A code of `decode_jpeg_rows`, or NOT_420 if the JPEG is not YCbCr 4:2:0; then buffers.pixels is unchanged.
    """
    _lay_out(height, width, buffers.layout)
    return _decode(data, height, width, rows, True, buffers)
