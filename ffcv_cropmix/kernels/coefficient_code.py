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

ROWS, COLUMNS, COUNTS, DIFFERENCES, CODES, ESCAPES, ROW_ESCAPES, FIRST_INDEX, N_CODES, N_ESCAPES, FIRST_BLOCK, H, V = (
    range(13)
)
"""Columns that describe a component: its size in blocks; the offsets in the content of its counts, its differences of
first coefficients, its codes, its escapes and its numbers of escapes per row; its first row in the index; its number of
codes and of escapes; the number of blocks of the components before it; its sampling factors."""

BLOCKS, ALL_ROWS, ALL_ESCAPES, COMPONENTS = range(4)
"""Columns that describe all components together: number of blocks, rows of blocks, escapes and components. The content
stores 16-bit numbers as all low bytes, then all high bytes."""

CODES_AT, ESCAPES_AT, LEVEL = range(3)
"""Columns of the index, for each row of blocks: the number of its first code, the number of its first escape, and the
first coefficient of its first block."""


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
def index_rows(content, part, together, index):
    """Find where each row of blocks of a component begins.

    Args:
        content: uint8 (n,), the decompressed sample.
        part: int64 (13,), see ROWS.
        together: int64 (4,), see BLOCKS.
        index: int64 (n, 3), see CODES_AT; filled from row part[FIRST_INDEX] on, for the component's rows and one more.

    Returns:
        Whether the numbers of codes and escapes are consistent.
    """
    code = escape = level = 0
    for row in range(part[ROWS]):
        first, at = row * part[COLUMNS], part[FIRST_INDEX] + row
        low = part[DIFFERENCES] + first
        level = _wrapped(level + _signed(_pair(content, low, low + together[BLOCKS])))
        index[at, CODES_AT], index[at, ESCAPES_AT], index[at, LEVEL] = code, escape, level
        for block in range(part[COUNTS] + first, part[COUNTS] + first + part[COLUMNS]):
            count = whole(content[block])
            if count > MOST_CODES:
                return False
            code += count
        escape += _pair(content, part[ROW_ESCAPES] + row, part[ROW_ESCAPES] + row + together[ALL_ROWS])
    at = part[FIRST_INDEX] + part[ROWS]
    index[at, CODES_AT], index[at, ESCAPES_AT], index[at, LEVEL] = code, escape, 0
    return code == part[N_CODES] and escape == part[N_ESCAPES]


@uncounted
def decode_row(content, part, together, index, row, first_column, columns, coefficients, place, last, last_place):
    """Decode some neighbouring blocks of one row of blocks.

    Args:
        content: uint8 (n,), the decompressed sample.
        part, together, index: see `index_rows`, which must have returned True.
        row: row of blocks.
        first_column, columns: first block in the row, and number of blocks.
        coefficients: int16 (n,); 64 per block are filled from `place` on, in natural order, not dequantised.
        place: offset in `coefficients`.
        last: uint8 (n,); filled from `last_place` on with the position in ZIGZAG of each block's last nonzero
            coefficient.
        last_place: offset in `last`.

    Returns:
        Whether the codes are valid. Invalid codes write nothing outside these blocks either.
    """
    # Loaded once: the compiler has to assume that the stores below change these values.
    counts, low, high = part[COUNTS], part[DIFFERENCES], part[DIFFERENCES] + together[BLOCKS]
    escapes_low, escapes_high = part[ESCAPES], part[ESCAPES] + together[ALL_ESCAPES]
    first, at = row * part[COLUMNS], part[FIRST_INDEX] + row
    code, escape, level = part[CODES] + index[at, CODES_AT], index[at, ESCAPES_AT], index[at, LEVEL]
    escape_end = index[at + 1, ESCAPES_AT]
    whole_row = first_column + columns == part[COLUMNS]
    for block in range(first, first + first_column):
        if block > first:
            level += _signed(_pair(content, low + block, high + block))
        count = whole(content[counts + block])
        for skipped in range(code, code + count):
            escape += content[skipped] >= FIRST_ESCAPE
        code += count
    furthest = 0
    for column in range(columns):
        block, target = first + first_column + column, (place + 64 * column) & NOT_NEGATIVE
        for k in range(64):
            coefficients[target + k] = 0
        count = whole(content[counts + block])
        code &= NOT_NEGATIVE
        position = 0
        for number in range(count):
            found = content[code + number]
            meaning = whole(MEANING[found])
            if found >= FIRST_ESCAPE:
                meaning = 0
                if escape < escape_end:
                    bits = _pair(content, escapes_low + escape, escapes_high + escape)
                    meaning = ((bits & 1023) * (1 - 2 * (whole(found) & 1))) << 16 | ((bits >> 10) + 1)
                escape += 1
            position += meaning & 127
            coefficients[target + whole(ZIGZAG[position & 63])] = meaning >> 16
        code += count
        if block > first:
            level += _signed(_pair(content, low + block, high + block))
        coefficients[target] = _wrapped(level)
        last[last_place + column] = min(position, 63)
        furthest = max(furthest, position)
    return furthest < 64 and (escape == escape_end if whole_row else escape <= escape_end)
