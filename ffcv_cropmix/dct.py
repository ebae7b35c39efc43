"""Read images stored as quantised DCT coefficients (byte code, compressed by zstd) in compiled code.

docs/dct.md describes the layout. Every value of a file is checked before use: damaged data give an error code or wrong
coefficients, but never an access outside the arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import libzstd
from .kernels.arrays import empty
from .kernels.coefficient_code import (
    ALL_CODES,
    ALL_ESCAPES,
    ALL_ROWS,
    BLOCKS,
    COLUMNS,
    COMPONENTS,
    FIRST_ROW,
    H_STEP,
    MOST_CODES,
    N_CODES,
    N_ESCAPES,
    ROWS,
    V_STEP,
    index_rows,
)
from .kernels.jit import c_function, jit, uncounted

new_context, destroy_context = c_function(libzstd.new_context), c_function(libzstd.destroy_context)
decompress = c_function(libzstd.decompress)

OK, BAD_DCT, OTHER_SIZE = 0, 20, 21

MAGIC = b"DCT\1"
HEADER = 36
"""Bytes of the header."""
MOST_COMPONENTS = 3
LARGEST_FACTOR = 4


class DctBuffers(NamedTuple):
    """Working memory for reading images one after another, owned by one thread; `open_dct` fills it."""

    content: Any  # uint8 (n,): the decompressed sample
    together: Any  # int64 (5,), see coefficient_code.COMPONENTS
    parts: Any  # int64 (3, 7), one row per component, see coefficient_code.V_STEP
    quantisation: Any  # uint16 (3, 64), in natural order
    index: Any  # int64 (n, 4), see coefficient_code.CODES_AT


@uncounted
def _content_size(components, blocks, rows, codes, escapes):
    """Return the size of a decompressed sample, bytes."""
    return 128 * components + 3 * blocks + 2 * rows + codes + 2 * escapes


@jit
def new_buffers(largest_height, largest_width):
    """Allocate buffers for images up to the given size, px.

    Returns:
        DctBuffers.
    """
    rows = MOST_COMPONENTS * ((largest_height + 7) // 8)
    blocks = rows * ((largest_width + 7) // 8)
    codes = MOST_CODES * blocks
    return DctBuffers(
        empty(_content_size(MOST_COMPONENTS, blocks, rows, codes, codes), np.uint8),
        empty(5, np.int64),
        empty((MOST_COMPONENTS, 7), np.int64),
        empty((MOST_COMPONENTS, 64), np.uint16),
        empty((rows + 1, 4), np.int64),
    )


@uncounted
def _number(data, at, size):
    """Read an unsigned little-endian integer of `size` bytes."""
    number = np.int64(0)
    for k in range(size):
        number |= np.int64(data[at + k]) << (8 * k)
    return number


@uncounted
def _read_header(data, height, width, parts, together):
    """Fill `parts` and `together` from the header of a sample; return OK, BAD_DCT or OTHER_SIZE."""
    if data.size < HEADER or not (data[0] == 68 and data[1] == 67 and data[2] == 84 and data[3] == 1):
        return BAD_DCT
    own_height, own_width, components = _number(data, 4, 2), _number(data, 6, 2), np.int64(data[8])
    if own_height == 0 or own_width == 0 or (components != 1 and components != 3):
        return BAD_DCT
    if own_height != height or own_width != width:
        return OTHER_SIZE
    most_h = most_v = np.int64(0)
    for component in range(components):
        factors = np.int64(data[9 + component])
        most_h, most_v = max(most_h, factors >> 4), max(most_v, factors & 15)
    if most_h > LARGEST_FACTOR or most_v > LARGEST_FACTOR:
        return BAD_DCT
    blocks = rows = codes = escapes = 0
    for component in range(components):
        part, factors = parts[component], np.int64(data[9 + component])
        h, v = factors >> 4, factors & 15
        if h == 0 or v == 0 or most_h % h != 0 or most_v % v != 0:
            return BAD_DCT
        part[V_STEP], part[H_STEP] = most_v // v, most_h // h
        part[ROWS] = (height * v + 8 * most_v - 1) // (8 * most_v)
        part[COLUMNS] = (width * h + 8 * most_h - 1) // (8 * most_h)
        part[N_CODES], part[N_ESCAPES] = _number(data, 12 + 4 * component, 4), _number(data, 24 + 4 * component, 4)
        part[FIRST_ROW] = rows
        if part[N_ESCAPES] > part[N_CODES]:
            return BAD_DCT
        blocks += part[ROWS] * part[COLUMNS]
        rows += part[ROWS]
        codes += part[N_CODES]
        escapes += part[N_ESCAPES]
    together[COMPONENTS], together[BLOCKS], together[ALL_ROWS] = components, blocks, rows
    together[ALL_CODES], together[ALL_ESCAPES] = codes, escapes
    return OK


@uncounted
def open_dct(context, data, height, width, buffers):
    """Decompress a sample and locate its parts.

    Args:
        context: from `new_context`; used by one thread only.
        data: uint8 (n,), the sample.
        height, width: the expected size, px.
        buffers: from `new_buffers`; filled.

    Returns:
        OK, BAD_DCT or OTHER_SIZE. After an error the contents of the buffers are undefined.
    """
    together, content = buffers.together, buffers.content
    code = _read_header(data, height, width, buffers.parts, together)
    if code != OK:
        return code
    components, codes, escapes = together[COMPONENTS], together[ALL_CODES], together[ALL_ESCAPES]
    size = _content_size(components, together[BLOCKS], together[ALL_ROWS], codes, escapes)
    source, target = data.ctypes.data + HEADER, content.ctypes.data
    if size > content.size or decompress(context, target, size, source, data.size - HEADER) != size:
        return BAD_DCT
    for component in range(components):
        for k in range(64):
            low = 64 * component + k
            high = low + 64 * components
            buffers.quantisation[component, k] = np.int64(content[low]) | np.int64(content[high]) << 8
    return OK if index_rows(content, buffers.parts, together, buffers.index) else BAD_DCT
