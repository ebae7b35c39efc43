"""The entropy coding of baseline JPEG (ITU-T T.81): decode it to the byte code of `coefficient_code`, and encode it.

It is used for conversion, after libjpeg-turbo has checked the JPEG. Invalid data are rejected, not repaired.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .coefficient_code import FIRST_ESCAPE, LARGEST_MAGNITUDE, NOT_NEGATIVE, ZIGZAG, code_of, whole
from .jit import uncounted

FAST_BITS = 12
"""A code and the bits of its coefficient are looked up together if they have at most this many bits."""

H, V, ROWS, COLUMNS, BLOCKS_BEFORE, DC_TABLE, AC_TABLE = range(7)
"""Columns of a frame, one row per component: sampling factors, size in blocks, number of blocks of the components
before it, numbers of its tables."""

_END_OF_BLOCK, _ZEROS = 0x00, 0xF0


class Grid(NamedTuple):
    """The arrangement of the blocks of a scan."""

    rows: Any  # rows of MCUs
    columns: Any  # columns of MCUs
    frame: Any  # int64 (components, 7), see H


class Tables(NamedTuple):
    """The Huffman tables of an image: DC tables from number 0 on, AC tables from number 4 on."""

    limits: Any  # int64 (8, 17), see `prepare_table`
    offsets: Any  # int64 (8, 17)
    values: Any  # uint8 (8, 256)
    fast: Any  # int32 (8 << FAST_BITS,), see `prepare_fast_table`, one table after the other


class Strips(NamedTuple):
    """Working memory of `read_scan`: the codes of a row of MCUs, one strip per row of blocks of each component."""

    cursors: Any  # int64 (3, 12)
    codes: Any  # uint8 (12 * n,), where a row of blocks has at most n codes
    escapes: Any  # uint16 (12 * n,)


class ByteCode(NamedTuple):
    """An image in the byte code of `coefficient_code`, filled by `read_scan`."""

    counts: Any  # uint8 (blocks,): number of codes of each block
    levels: Any  # int16 (blocks,): first coefficient of each block
    codes: Any  # uint8 (components, n)
    escapes: Any  # uint16 (components, n)
    row_escapes: Any  # int64 (components, rows): number of escapes of each row of blocks
    totals: Any  # int64 (components, 2): number of codes and of escapes


@uncounted
def prepare_table(counts, limits, offsets):
    """Prepare a Huffman table for `_find`.

    Args:
        counts: uint8 (16,), of codes of 1 to 16 bits.
        limits, offsets: int64 (17,), filled.
    """
    code = first = 0
    for length in range(1, 17):
        count = whole(counts[length - 1])
        offsets[length] = first - code
        code += count
        first += count
        limits[length] = code << (16 - length)
        code <<= 1


@uncounted
def prepare_fast_table(counts, values, coefficients, fast):
    """Fill a look-up table that is indexed by the next FAST_BITS bits. Its entries are

    - bits | code << 8 | (run + 1) << 16 for a Huffman code with the bits of its coefficient, if both fit and
      `coefficient_code` has a code for the run and the coefficient; `bits` is the number of bits of both;
    - the number of bits, for the end of a block;
    - -(value << 8 | bits) for another Huffman code, alone;
    - 0 if the Huffman code is longer.

    Args:
        counts: uint8 (16,), as in a JPEG.
        values: uint8 (n,), as in a JPEG.
        coefficients: whether to include entries with coefficients and the end of a block.
        fast: int32 (1 << FAST_BITS,), filled.
    """
    for k in range(fast.size):
        fast[k] = 0
    code = number = 0
    for length in range(1, FAST_BITS + 1):
        for _ in range(counts[length - 1]):
            value = whole(values[number])
            run, size = value >> 4, value & 15
            for k in range(code << (FAST_BITS - length), (code + 1) << (FAST_BITS - length)):
                fast[k] = -(value << 8 | length)
            spare = FAST_BITS - length - size
            if coefficients and value == _END_OF_BLOCK:
                for k in range(code << spare, (code + 1) << spare):
                    fast[k] = length
            elif coefficients and size > 0 and spare >= 0:
                for bits in range(1 << size):
                    found = code_of(run, _value(bits, size))
                    if found < FIRST_ESCAPE:
                        begin = (code << size | bits) << spare
                        for k in range(begin, begin + (1 << spare)):
                            fast[k] = (length + size) | found << 8 | (run + 1) << 16
            code += 1
            number += 1
        code <<= 1


@uncounted
def _value(bits, size):
    """Return the number that the `size` bits after a code represent."""
    return bits if bits >> (size - 1) else bits - (1 << size) + 1


@uncounted
def _refilled(scan, position, buffer, bits):
    """Refill a buffer that has `bits` valid bits to at least 56."""
    at = position & NOT_NEGATIVE
    word = np.uint64(0)
    for k in range(8):  # one load for LLVM
        word |= np.uint64(scan[at + k]) << np.uint64(56 - 8 * k)
    return buffer | (word >> np.uint64(bits))


@uncounted
def _find(buffer, least, number, tables):
    """Return (bits, value) of the code of at least `least` bits that a buffer begins with; bits is 0 if there is none.

    `number` is the number of the table.
    """
    code = whole(buffer >> np.uint64(48))
    for length in range(least, 17):
        if code < tables.limits[number, length]:
            place = tables.offsets[number, length] + (code >> (16 - length))
            return length, whole(tables.values[number, place & 255])
    return 0, 0


@uncounted
def unstuff(data, start, scan, segments):
    """Copy the entropy-coded data without the zeros after 0xFF and without restart markers.

    Args:
        data: uint8 (n,), the file.
        start: offset of the entropy-coded data.
        scan: uint8, filled, with 16 zeros after each segment.
        segments: int64 (m,), filled with the offset of each segment between restart markers, and the end of the last.

    Returns:
        Number of segments; 0 if they do not fit `segments`.
    """
    at = count = 0
    k = start
    segments[0] = 0
    while k + 1 < data.size:
        byte = data[k]
        k += 1
        if byte != 0xFF:
            scan[at] = byte
            at += 1
            continue
        while k < data.size and data[k] == 0xFF:  # fill bytes
            k += 1
        marker = data[k] if k < data.size else 0xD9
        k += 1
        if marker == 0:
            scan[at] = 0xFF
            at += 1
            continue
        for zero in range(at, at + 16):
            scan[zero] = 0
        at += 16
        count += 1
        if count == segments.size:
            return 0
        segments[count] = at
        if not 0xD0 <= marker <= 0xD7:
            break
    else:
        for zero in range(at, at + 16):
            scan[zero] = 0
        count += 1
        segments[count if count < segments.size else 0] = at + 16
    return count


@uncounted
def read_scan(scan, segments, interval, grid, tables, strips, filled):
    """Convert the only scan of a baseline JPEG to byte code. Padding blocks are left out.

    Args:
        scan, segments: from `unstuff`; `scan` has at least 512 more bytes.
        interval: MCUs between restart markers.
        grid: Grid.
        tables: Tables.
        strips: Strips.
        filled: ByteCode.

    Returns:
        Whether it was converted. Damaged data and numbers that the byte code cannot express give False.
    """
    frame, fast = grid.frame, tables.fast
    cursors, strip_codes, strip_escapes = strips.cursors, strips.codes, strips.escapes
    totals = filled.totals
    components, width = len(frame), strip_codes.size // 12
    predicted = cursors[2]
    segment, left = 0, interval
    position, bits, buffer = segments[0], whole(0), np.uint64(0)
    for component in range(components):
        totals[component, 0] = totals[component, 1] = predicted[component] = 0
    for mcu_row in range(grid.rows):
        for strip in range(12):
            cursors[0, strip] = cursors[1, strip] = 0
        for mcu_column in range(grid.columns):
            if left == 0:
                if 8 * position - bits > 8 * (segments[segment + 1] - 16):
                    return False
                segment += 1
                left = interval
                position, bits, buffer = segments[segment], whole(0), np.uint64(0)
                for component in range(components):
                    predicted[component] = 0
            left -= 1
            for component in range(components):
                rows, columns = frame[component, ROWS], frame[component, COLUMNS]
                dc, ac = frame[component, DC_TABLE], frame[component, AC_TABLE]
                for y in range(frame[component, V]):
                    row, strip = mcu_row * frame[component, V] + y, 4 * component + y
                    for x in range(frame[component, H]):
                        column = mcu_column * frame[component, H] + x
                        if position > segments[segment + 1]:
                            return False
                        buffer = _refilled(scan, position, buffer, bits)
                        position += (63 - bits) >> 3
                        bits |= 56
                        entry = -whole(fast[(dc << FAST_BITS) + whole(buffer >> np.uint64(64 - FAST_BITS))])
                        length, size = entry & 255, entry >> 8
                        if length == 0:
                            length, size = _find(buffer, FAST_BITS + 1, dc, tables)
                        if length == 0 or size > 15:
                            return False
                        buffer <<= np.uint64(length)
                        if size > 0:
                            predicted[component] += _value(whole(buffer >> np.uint64(64 - size)), size)
                        buffer <<= np.uint64(size)
                        bits -= length + size
                        code, escape = cursors[0, strip], cursors[1, strip]
                        lookup, target = (ac << FAST_BITS) & NOT_NEGATIVE, (strip * width + code) & NOT_NEGATIVE
                        count = k = 0
                        while k < 63:
                            buffer = _refilled(scan, position, buffer, bits)
                            position += (63 - bits) >> 3
                            bits |= 56
                            entry = whole(fast[lookup + whole(buffer >> np.uint64(64 - FAST_BITS))])
                            if entry > 0:
                                used, run = entry & 255, entry >> 16
                                buffer <<= np.uint64(used)
                                bits -= used
                                if run == 0:
                                    break
                                k += run
                                if k > 63:
                                    return False
                                strip_codes[target + count] = entry >> 8 & 255
                                count += 1
                                continue
                            run, least = 0, FAST_BITS + 1
                            while True:
                                length, symbol = -entry & 255, -entry >> 8
                                if length == 0:
                                    length, symbol = _find(buffer, least, ac, tables)
                                    if length == 0:
                                        return False
                                buffer <<= np.uint64(length)
                                bits -= length
                                run, size = run + (symbol >> 4), symbol & 15
                                if symbol != _ZEROS:
                                    break
                                run += 1
                                buffer = _refilled(scan, position, buffer, bits)
                                position += (63 - bits) >> 3
                                bits |= 56
                                entry, least = 0, 1  # `fast` assumes that no zeros precede
                            if size == 0:  # the end of the block
                                break
                            value = _value(whole(buffer >> np.uint64(64 - size)), size)
                            buffer <<= np.uint64(size)
                            bits -= size
                            k += run + 1
                            if k > 63 or abs(value) > LARGEST_MAGNITUDE:
                                return False
                            found = code_of(run, value)
                            strip_codes[target + count] = found
                            count += 1
                            if found >= FIRST_ESCAPE:
                                strip_escapes[strip * width + escape] = run << 10 | abs(value)
                                escape += 1
                        if row < rows and column < columns:
                            if not -32768 <= predicted[component] < 32768:
                                return False
                            block = frame[component, BLOCKS_BEFORE] + row * columns + column
                            filled.counts[block], filled.levels[block] = count, predicted[component]
                            cursors[0, strip], cursors[1, strip] = code + count, escape
        for component in range(components):
            for y in range(frame[component, V]):
                row, strip = mcu_row * frame[component, V] + y, 4 * component + y
                if row < frame[component, ROWS]:
                    code, escape = totals[component]
                    for k in range(cursors[0, strip]):
                        filled.codes[component, code + k] = strip_codes[strip * width + k]
                    for k in range(cursors[1, strip]):
                        filled.escapes[component, escape + k] = strip_escapes[strip * width + k]
                    filled.row_escapes[component, row] = cursors[1, strip]
                    totals[component, 0] += cursors[0, strip]
                    totals[component, 1] += cursors[1, strip]
    return 8 * position - bits <= 8 * (segments[segment + 1] - 16)


@uncounted
def write_scan(coefficients, grid, codes, lengths, predicted, out):
    """Write the only scan of a baseline JPEG. A padding block repeats the first coefficient of the block before.

    Args:
        coefficients: int16 (blocks, 64), in natural order, component after component, row after row.
        grid: Grid.
        codes, lengths: int64 (8, 256): of the values of each table.
        predicted: int64 (3,), working memory.
        out: uint8, filled, with a zero after each 0xFF.

    Returns:
        Number of bytes written.
    """
    frame = grid.frame
    buffer = bits = at = 0
    for component in range(len(frame)):
        predicted[component] = 0
    for mcu in range(grid.rows * grid.columns):
        for component in range(len(frame)):
            rows, columns = frame[component, ROWS], frame[component, COLUMNS]
            dc, ac = frame[component, DC_TABLE], frame[component, AC_TABLE]
            for part in range(frame[component, V] * frame[component, H]):
                row = mcu // grid.columns * frame[component, V] + part // frame[component, H]
                column = mcu % grid.columns * frame[component, H] + part % frame[component, H]
                inside = row < rows and column < columns
                block = frame[component, BLOCKS_BEFORE] + row * columns + column if inside else 0
                level = whole(coefficients[block, 0]) if inside else predicted[component]
                value = level - predicted[component]
                predicted[component] = level
                buffer, bits, at = _put(codes[dc], lengths[dc], 0, value, buffer, bits, out, at)
                run = 0
                for k in range(1, 64):
                    value = whole(coefficients[block, ZIGZAG[k]]) if inside else 0
                    if value == 0:
                        run += 1
                        continue
                    while run > 15:
                        buffer, bits, at = _put(codes[ac], lengths[ac], 15, 0, buffer, bits, out, at)
                        run -= 16
                    buffer, bits, at = _put(codes[ac], lengths[ac], run, value, buffer, bits, out, at)
                    run = 0
                if run > 0:
                    buffer, bits, at = _put(codes[ac], lengths[ac], 0, 0, buffer, bits, out, at)
    return _flush(buffer << 7 | 127, bits + 7, out, at)[1]


@uncounted
def _put(codes, lengths, run, value, buffer, bits, out, at):
    """Write a run and the value after it; return (buffer, number of bits left, offset of the next byte)."""
    size = 0
    while abs(value) >> size:
        size += 1
    symbol = run << 4 | size
    low = value if value >= 0 else value + (1 << size) - 1
    buffer = (buffer << lengths[symbol] | codes[symbol]) << size | low
    bits, at = _flush(buffer, bits + lengths[symbol] + size, out, at)
    return buffer & ((1 << bits) - 1), bits, at


@uncounted
def _flush(buffer, bits, out, at):
    """Write the whole bytes of the last `bits` bits; return (number of bits left, offset of the next byte)."""
    while bits >= 8:
        bits -= 8
        out[at] = buffer >> bits & 255
        at += 1
        if out[at - 1] == 0xFF:
            out[at] = 0
            at += 1
    return bits, at
