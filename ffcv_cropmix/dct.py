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
    ALL_ESCAPES,
    ALL_ROWS,
    BLOCKS,
    CODES,
    COLUMNS,
    COMPONENTS,
    COUNTS,
    DIFFERENCES,
    ESCAPES,
    FIRST_BLOCK,
    FIRST_INDEX,
    MOST_CODES,
    N_CODES,
    N_ESCAPES,
    ROW_ESCAPES,
    ROWS,
    H,
    V,
    decode_row,
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
    together: Any  # int64 (4,), see coefficient_code.BLOCKS
    geometry: Any  # int64 (3, 13), one row per component, see coefficient_code.ROWS
    quantisation: Any  # uint16 (3, 64), in natural order
    index: Any  # int64 (n, 3), see coefficient_code.index_rows


@jit
def new_buffers(largest_content, largest_rows):
    """Allocate buffers.

    Args:
        largest_content: largest size of a decompressed sample, bytes; see the function `largest_content`.
        largest_rows: largest number of rows of blocks per component.

    Returns:
        DctBuffers.
    """
    return DctBuffers(
        empty(largest_content, np.uint8),
        empty(4, np.int64),
        empty((MOST_COMPONENTS, 13), np.int64),
        empty((MOST_COMPONENTS, 64), np.uint16),
        empty((MOST_COMPONENTS * (largest_rows + 1), 3), np.int64),
    )


@uncounted
def _number(data, at, size):
    """Read an unsigned little-endian integer of `size` bytes."""
    number = np.int64(0)
    for k in range(size):
        number |= np.int64(data[at + k]) << (8 * k)
    return number


@uncounted
def _fixed_size(blocks, rows, components):
    """Return the size of what precedes the codes, bytes: tables, code counts, differences, and escape counts."""
    return 128 * components + 3 * blocks + 2 * rows


@uncounted
def _check_header(data):
    """Return whether a sample begins with a valid header, and its height, width, and number of components."""
    if data.size < HEADER or not (data[0] == 68 and data[1] == 67 and data[2] == 84 and data[3] == 1):
        return False, 0, 0, 0
    height, width, components = _number(data, 4, 2), _number(data, 6, 2), _number(data, 8, 1)
    return height > 0 and width > 0 and (components == 1 or components == 3), height, width, components


@jit
def largest_content(height, width):
    """Return the largest possible size of the decompressed sample of an image of this size, bytes."""
    rows, columns = (height + 7) // 8, (width + 7) // 8
    blocks = MOST_COMPONENTS * rows * columns
    return _fixed_size(blocks, MOST_COMPONENTS * rows, MOST_COMPONENTS) + 3 * MOST_CODES * blocks


@uncounted
def _read_geometry(data, height, width, buffers):
    """Fill `together` and `geometry` from a header; return the decompressed size in bytes, 0 if it is invalid."""
    together, components = buffers.together, _number(data, 8, 1)
    most_h = most_v = blocks = rows = codes = escapes = 0
    for component in range(components):
        part, factors = buffers.geometry[component], _number(data, 9 + component, 1)
        part[H], part[V] = factors >> 4, factors & 15
        if not (1 <= part[H] <= LARGEST_FACTOR and 1 <= part[V] <= LARGEST_FACTOR):
            return 0
        most_h, most_v = max(most_h, part[H]), max(most_v, part[V])
    for component in range(components):
        part = buffers.geometry[component]
        if most_h % part[H] != 0 or most_v % part[V] != 0:
            return 0
        part[ROWS] = (height * part[V] + 8 * most_v - 1) // (8 * most_v)
        part[COLUMNS] = (width * part[H] + 8 * most_h - 1) // (8 * most_h)
        part[FIRST_BLOCK], part[FIRST_INDEX] = blocks, rows + component
        part[N_CODES], part[N_ESCAPES] = _number(data, 12 + 4 * component, 4), _number(data, 24 + 4 * component, 4)
        if part[N_CODES] > MOST_CODES * part[ROWS] * part[COLUMNS] or part[N_ESCAPES] > part[N_CODES]:
            return 0
        blocks += part[ROWS] * part[COLUMNS]
        rows += part[ROWS]
    together[BLOCKS], together[ALL_ROWS], together[COMPONENTS] = blocks, rows, components
    fixed = _fixed_size(blocks, rows, components)
    for component in range(components):
        part = buffers.geometry[component]
        part[COUNTS] = 128 * components + part[FIRST_BLOCK]
        part[DIFFERENCES] = part[COUNTS] + blocks
        part[ROW_ESCAPES] = 128 * components + 3 * blocks + part[FIRST_INDEX] - component
        part[CODES] = fixed + codes
        codes += part[N_CODES]
    for component in range(components):
        part = buffers.geometry[component]
        part[ESCAPES] = fixed + codes + escapes
        escapes += part[N_ESCAPES]
    together[ALL_ESCAPES] = escapes
    return fixed + codes + 2 * escapes


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
    sound, own_height, own_width, components = _check_header(data)
    if not sound:
        return BAD_DCT
    if own_height != height or own_width != width:
        return OTHER_SIZE
    size = _read_geometry(data, height, width, buffers)
    content = buffers.content
    if size == 0 or size > content.size:
        return BAD_DCT
    source, target = data.ctypes.data + HEADER, content.ctypes.data
    if decompress(context, target, size, source, data.size - HEADER) != size:
        return BAD_DCT
    for component in range(components):
        for k in range(64):
            at = 64 * component + k
            buffers.quantisation[component, k] = np.int64(content[at]) | np.int64(content[at + 64 * components]) << 8
        if not index_rows(content, buffers.geometry[component], buffers.together, buffers.index):
            return BAD_DCT
    return OK


@uncounted
def decode_blocks(buffers, component, row, first_column, columns, coefficients, place, last, last_place):
    """Call `coefficient_code.decode_row` for the image opened by `open_dct`; return OK or BAD_DCT."""
    part = buffers.geometry[component]
    sound = decode_row(
        buffers.content,
        part,
        buffers.together,
        buffers.index,
        row,
        first_column,
        columns,
        coefficients,
        place,
        last,
        last_place,
    )
    return OK if sound else BAD_DCT


@uncounted
def decode_codes(buffers, coefficients, last):
    """Decode all blocks of the image opened by `open_dct`, component after component.

    Args:
        coefficients: int16 (at least 64 * blocks,), filled as by `coefficient_code.decode_row`.
        last: uint8 (at least blocks,), filled likewise.

    Returns:
        OK or BAD_DCT.
    """
    for component in range(buffers.together[COMPONENTS]):
        part = buffers.geometry[component]
        for row in range(part[ROWS]):
            block = part[FIRST_BLOCK] + row * part[COLUMNS]
            code = decode_blocks(buffers, component, row, 0, part[COLUMNS], coefficients, 64 * block, last, block)
            if code != OK:
                return code
    return OK
