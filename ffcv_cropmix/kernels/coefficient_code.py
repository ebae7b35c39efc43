"""A byte code for quantised DCT coefficients: one byte for a run of zeros and the coefficient that ends it.

A JPEG's Huffman codes must be decoded bit by bit. These bytes are decoded by independent table look-ups, and zstd,
which compresses them, does the entropy coding. docs/dct.md describes the layout.

The blocks of a component can be found independently: `counts` holds the number of codes of each. So rows and columns of
blocks that are not needed are skipped.
"""

from __future__ import annotations

import numpy as np

from .jit import uncounted

ZIGZAG = np.array(
    [
        [0, 1, 8, 16, 9, 2, 3, 10],
        [17, 24, 32, 25, 18, 11, 4, 5],
        [12, 19, 26, 33, 40, 48, 41, 34],
        [27, 20, 13, 6, 7, 14, 21, 28],
        [35, 42, 49, 56, 57, 50, 43, 36],
        [29, 22, 15, 23, 30, 37, 44, 51],
        [58, 59, 52, 45, 38, 31, 39, 46],
        [53, 60, 61, 54, 47, 55, 62, 63],
    ],
    np.uint8,
).ravel()
"""The index in a block (row by row) of each coefficient in JPEG's zigzag order."""

LARGEST = (78, 16, 6, 5, 3, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1)
"""The largest magnitude that has a code, for runs of 0, 1, ... zeros: the 254 commonest in 160 ImageNet photos."""

FIRST_ESCAPE = 254
"""The code of a coefficient without its own code; 255 if it is negative. An escape has 16 bits: run << 10 | magnitude.
"""

MOST_CODES = 63
"""Largest number of codes per block."""

LARGEST_MAGNITUDE = 1023
"""Largest magnitude of a coefficient other than the first of its block."""

V_STEP, H_STEP, ROWS, COLUMNS, FIRST_ROW, N_CODES, N_ESCAPES = range(7)
"""Columns that describe a component: pixels per sample, down and across; its size in blocks; the number of rows of
blocks of the components before it; its numbers of codes and of escapes."""

COMPONENTS, BLOCKS, ALL_ROWS, ALL_CODES, ALL_ESCAPES = range(5)
"""Items of the array that describes all components together: numbers of components, of blocks, of rows of blocks, of
codes and of escapes."""

CODES_AT, ESCAPES_AT, LEVEL, FIRST_BLOCK = range(4)
"""Columns of the index of the rows of blocks of all components: the offsets in the content of the row's first code and
of the low byte of its first escape; the first coefficient of its first block; the number of this block. The content
stores 16-bit numbers as all low bytes, then all high bytes."""


NOT_NEGATIVE = 2**62 - 1
"""A mask that changes no offset, but tells the compiler that offsets are not negative: 2 times as fast."""


def _meanings() -> np.ndarray:
    """Return value << 16 | number of steps in ZIGZAG of each code, int32 (256,)."""
    values = [
        (sign * magnitude) << 16 | (run + 1)
        for run, largest in enumerate(LARGEST)
        for magnitude in range(1, largest + 1)
        for sign in (1, -1)
    ]
    table = np.zeros(256, np.int32)
    table[: len(values)] = values
    return table


MEANING = _meanings()


def _first_codes() -> np.ndarray:
    """Of each run: its first code, and the largest magnitude that has one, int64 (64, 2)."""
    table = np.zeros((64, 2), np.int64)
    table[: len(LARGEST), 0] = 2 * (np.cumsum(LARGEST) - LARGEST)
    table[: len(LARGEST), 1] = LARGEST
    return table


FIRST_CODES = _first_codes()


@uncounted
def whole(number):
    """Convert to int64, so that compiled code and Python compute with the same type."""
    return np.int64(number)


@uncounted
def code_of(run, value):
    """Return the code of a coefficient after `run` zeros: 0 to 253, or FIRST_ESCAPE (positive), or 255 (negative)."""
    magnitude = abs(value)
    negative = 1 if value < 0 else 0
    if magnitude > FIRST_CODES[run, 1]:
        return FIRST_ESCAPE + negative
    return FIRST_CODES[run, 0] + 2 * (magnitude - 1) + negative


@uncounted
def _signed(number):
    """Map 0, 1, 2, 3, ... to 0, -1, 1, -2, ..."""
    return (number >> 1) ^ -(number & 1)


@uncounted
def _pair(content, low, high):
    """Return the 16-bit number that has its low and its high byte at these offsets."""
    return whole(content[low]) | whole(content[high]) << 8


@uncounted
def _wrapped(value):
    """Wrap to the range of int16."""
    return ((value + 32768) & 65535) - 32768


@uncounted
def index_rows(content, parts, together, index):
    """Find where each row of blocks begins.

    Args:
        content: uint8 (n,), the decompressed sample.
        parts: int64 (components, 7), see V_STEP.
        together: int64 (5,), see COMPONENTS.
        index: int64 (n, 4), see CODES_AT; filled for all rows. One more row says where the last ends.

    Returns:
        Whether the numbers of codes and escapes are consistent.
    """
    blocks, rows = together[BLOCKS], together[ALL_ROWS]
    counts = 128 * together[COMPONENTS]
    low, row_escapes = counts + blocks, counts + 3 * blocks
    code, row, block = row_escapes + 2 * rows, 0, 0
    escape = code + together[ALL_CODES]
    for component in range(together[COMPONENTS]):
        part = parts[component]
        last_code, last_escape, level = code + part[N_CODES], escape + part[N_ESCAPES], 0
        for _ in range(part[ROWS]):
            level = _wrapped(level + _signed(_pair(content, low + block, low + blocks + block)))
            index[row, CODES_AT], index[row, ESCAPES_AT], index[row, LEVEL] = code, escape, level
            index[row, FIRST_BLOCK] = block
            for _ in range(part[COLUMNS]):
                count = whole(content[counts + block])
                if count > MOST_CODES:
                    return False
                code += count
                block += 1
            escape += _pair(content, row_escapes + row, row_escapes + rows + row)
            row += 1
        if code != last_code or escape != last_escape:
            return False
    index[row, ESCAPES_AT], index[row, FIRST_BLOCK] = escape, block
    return True


@uncounted
def decode_row(content, together, index, row, first_column, columns, coefficients, last):
    """Decode some neighbouring blocks of one row of blocks.

    Args:
        content: uint8 (n,), the decompressed sample.
        together, index: see `index_rows`, which must have returned True.
        row: row of the index.
        first_column, columns: first block in the row, and number of blocks.
        coefficients: int16 (at least 64 * columns,), filled in natural order, not dequantised.
        last: uint8 (at least columns,), filled with the position in ZIGZAG of each block's last nonzero coefficient.

    Returns:
        Whether the codes are valid. Invalid codes write nothing outside these blocks either.
    """
    # Loaded once: the compiler has to assume that the stores below change these values.
    blocks, escapes = together[BLOCKS], together[ALL_ESCAPES]
    counts = 128 * together[COMPONENTS]
    low = counts + blocks
    code, escape, level, first = (
        index[row, CODES_AT],
        index[row, ESCAPES_AT],
        index[row, LEVEL],
        index[row, FIRST_BLOCK],
    )
    escape_end, row_end = index[row + 1, ESCAPES_AT], index[row + 1, FIRST_BLOCK]
    end = first + first_column + columns
    furthest = 0
    for block in range(first, end):
        if block > first:
            level += _signed(_pair(content, low + block, low + blocks + block))
        count, column = whole(content[counts + block]), block - first - first_column
        code &= NOT_NEGATIVE
        if column < 0:
            for number in range(count):
                escape += content[code + number] >= FIRST_ESCAPE
        else:
            target, position = 64 * column & NOT_NEGATIVE, 0
            for k in range(64):
                coefficients[target + k] = 0
            for number in range(count):
                found = content[code + number]
                meaning = whole(MEANING[found])
                if found >= FIRST_ESCAPE:
                    meaning = 0
                    if escape < escape_end:
                        bits = _pair(content, escape, escape + escapes)
                        meaning = ((bits & 1023) * (1 - 2 * (whole(found) & 1))) << 16 | ((bits >> 10) + 1)
                    escape += 1
                position += meaning & 127
                coefficients[target + whole(ZIGZAG[position & 63])] = meaning >> 16
            coefficients[target] = _wrapped(level)
            last[column] = min(position, 63)
            furthest = max(furthest, position)
        code += count
    return furthest < 64 and (escape == escape_end if end == row_end else escape <= escape_end)
