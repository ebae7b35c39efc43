"""The entropy coding of baseline JPEG (ITU-T T.81): decode it to the byte code of `coefficient_code`, and encode it.

It is used for conversion, after libjpeg-turbo has checked the JPEG. Invalid data are rejected, not repaired.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .coefficient_code import FIRST_ESCAPE, LARGEST_MAGNITUDE, NOT_NEGATIVE, ZIGZAG, code_of, whole
from .jit import uncounted

FAST_BITS = 11
"""Codes and the bits of their coefficients are looked up together, as many as fit in this many bits: at most two."""

H, V, ROWS, COLUMNS, BLOCKS_BEFORE, DC_TABLE, AC_TABLE = range(7)
"""Columns of a frame, one row per component: sampling factors, size in blocks, number of blocks of the components
before it, numbers of its tables."""

_END_OF_BLOCK, _ZEROS = 0x00, 0xF0
_END, _CODE = 1 << 6, 255 << 8  # parts of an entry, see `prepare_fast_table`


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
    codes: Any  # uint8 (12 * n,), where a row of blocks and a padding block have fewer than n codes
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
def prepare_fast_table(counts, values, coefficients, single, fast):
    """Fill a look-up table that is indexed by the next FAST_BITS bits. Its entries are

    - bits | number << 4 | end << 6 | code << 8 | second << 16 | steps << 24 for one or two Huffman codes, decoded.
      `bits`: their length with the bits of their coefficients; `number`: coefficients, 0 to 2; `end`: 1 if the block
      ends; `code`, `second`: the codes of `coefficient_code`; `steps`: positions in the block, where the end counts as
      one (a full block has no end);
    - -(value << 8 | bits) for another Huffman code, alone;
    - 0 if the Huffman code is longer.

    Args:
        counts: uint8 (16,), as in a JPEG: there are at most as many codes of each length as possible.
        values: uint8 (n,), as in a JPEG.
        coefficients: whether to include entries with coefficients and the end of a block.
        single: int32 (1 << FAST_BITS,), working memory.
        fast: int32 (1 << FAST_BITS,), filled.
    """
    for k in range(fast.size):
        single[k] = 0
    code = number = 0
    for length in range(1, FAST_BITS + 1):
        for _ in range(counts[length - 1]):
            value = whole(values[number])
            run, size = value >> 4, value & 15
            for k in range(code << (FAST_BITS - length), (code + 1) << (FAST_BITS - length)):
                single[k] = -(value << 8 | length)
            spare = FAST_BITS - length - size
            if coefficients and value == _END_OF_BLOCK:
                for k in range(code << spare, (code + 1) << spare):
                    single[k] = length | _END | 1 << 24
            elif coefficients and size > 0 and spare >= 0:
                for bits in range(1 << size):
                    found = code_of(run, _value(bits, size))
                    if found < FIRST_ESCAPE:
                        begin = (code << size | bits) << spare
                        for k in range(begin, begin + (1 << spare)):
                            single[k] = (length + size) | 1 << 4 | found << 8 | (run + 1) << 24
            code += 1
            number += 1
        code <<= 1
    for k in range(fast.size):
        first = whole(single[k])
        second = whole(single[k << (first & 15) & (fast.size - 1)])
        both = first > 0 and not first & _END and second > 0 and (first & 15) + (second & 15) <= FAST_BITS
        fast[k] = first + (second & ~_CODE) + ((second & _CODE) << 8) if both else first


@uncounted
def _value(bits, size):
    """Return the number that the `size` bits after a code represent."""
    return bits if bits >> (size - 1) else bits - (1 << size) + 1


@uncounted
def _bits_from(scan, bit):
    """Return the bits from number `bit` on: at least 57, the first in the highest place, then zeros."""
    at = (bit >> 3) & NOT_NEGATIVE
    word = np.uint64(0)
    for k in range(8):  # one load for LLVM
        word |= np.uint64(scan[at + k]) << np.uint64(56 - 8 * k)
    return word << np.uint64(bit & 7)


@uncounted
def _find(word, least, number, tables):
    """Return (bits, value) of the code of at least `least` bits that a word begins with; bits is 0 if there is none.

    `number` is the number of the table.
    """
    code = whole(word >> np.uint64(48))
    for length in range(least, 17):
        if code < tables.limits[number, length]:
            place = tables.offsets[number, length] + (code >> (16 - length))
            return length, whole(tables.values[number, place & 255])
    return 0, 0


@uncounted
def _copy(source, first, target, place, count):
    """Copy `count` items, from `first` on, to `place` and on."""
    first &= NOT_NEGATIVE
    place &= NOT_NEGATIVE
    for k in range(count):
        target[place + k] = source[first + k]


@uncounted
def unstuff(data, start, marks, scan, segments):
    """Copy the entropy-coded data without the zeros after 0xFF and without restart markers.

    Args:
        data: uint8 (n,), the file.
        start: offset of the entropy-coded data.
        marks: int64 (k,), offsets of all bytes 0xFF from there on.
        scan: uint8, filled, with 16 zeros after each segment.
        segments: int64 (m,), filled with the offset of each segment between restart markers, and the end of the last.

    Returns:
        Number of segments; 0 if they do not fit `segments`, or no marker ends the last.
    """
    at = count = segments[0] = 0
    for mark in marks:
        if mark < start:  # a fill byte
            continue
        _copy(data, start, scan, at, mark - start)
        at += mark - start
        start = mark + 1
        while start < data.size and data[start] == 0xFF:
            start += 1
        marker = whole(data[start]) if start < data.size else 0xD9
        start += 1
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
            return count
    return 0


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
    bit, end = 8 * segments[0], 8 * (segments[1] - 16)
    for component in range(components):
        totals[component, 0] = totals[component, 1] = predicted[component] = 0
    for mcu_row in range(grid.rows):
        for strip in range(12):
            cursors[0, strip] = cursors[1, strip] = 0
        for mcu_column in range(grid.columns):
            if left == 0:
                if bit > end:
                    return False
                segment += 1
                left = interval
                bit, end = 8 * segments[segment], 8 * (segments[segment + 1] - 16)
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
                        if bit > end:
                            return False
                        word = _bits_from(scan, bit)
                        entry = -whole(fast[(dc << FAST_BITS) + whole(word >> np.uint64(64 - FAST_BITS))])
                        length, size = entry & 255, entry >> 8
                        if length == 0:
                            length, size = _find(word, FAST_BITS + 1, dc, tables)
                        if length == 0 or size > 15:
                            return False
                        word <<= np.uint64(length)
                        if size > 0:
                            predicted[component] += _value(whole(word >> np.uint64(64 - size)), size)
                        bit += length + size
                        code, escape = cursors[0, strip], cursors[1, strip]
                        lookup, start, k = (ac << FAST_BITS) & NOT_NEGATIVE, strip * width + code, 0
                        at = start
                        while True:
                            word = _bits_from(scan, bit)
                            for _ in range(57 // FAST_BITS):
                                entry = whole(fast[lookup + whole(word >> np.uint64(64 - FAST_BITS))])
                                steps = entry >> 24
                                if entry <= 0 or k + steps > 63:
                                    break
                                word <<= np.uint64(entry & 15)
                                bit += entry & 15
                                place = at & NOT_NEGATIVE
                                strip_codes[place] = entry >> 8 & 255
                                strip_codes[place + 1] = entry >> 16 & 255  # overwritten if there is none
                                at += entry >> 4 & 3
                                k = k + steps | entry & _END  # more than 63 after the end
                            else:
                                continue
                            if k >= 63:
                                break
                            # Decode one Huffman code: `fast` has none, or its two go beyond the end of the block.
                            run, least, entry = 0, 1 if entry > 0 else FAST_BITS + 1, min(entry, 0)
                            while True:
                                word = _bits_from(scan, bit)
                                length, symbol = -entry & 255, -entry >> 8
                                if length == 0:
                                    length, symbol = _find(word, least, ac, tables)
                                    if length == 0:
                                        return False
                                bit += length
                                run, size = run + (symbol >> 4), symbol & 15
                                if symbol != _ZEROS:
                                    break
                                if run > 63:
                                    return False
                                run, least, entry = run + 1, 1, 0  # `fast` assumes that no zeros precede
                            if size == 0:  # the end of the block
                                break
                            value = _value(whole(word << np.uint64(length) >> np.uint64(64 - size)), size)
                            bit += size
                            k += run + 1
                            if k > 63 or abs(value) > LARGEST_MAGNITUDE:
                                return False
                            found = code_of(run, value)
                            strip_codes[at] = found
                            at += 1
                            if found >= FIRST_ESCAPE:
                                strip_escapes[strip * width + escape] = run << 10 | abs(value)
                                escape += 1
                        if row < rows and column < columns:
                            if not -32768 <= predicted[component] < 32768:
                                return False
                            block = frame[component, BLOCKS_BEFORE] + row * columns + column
                            filled.counts[block], filled.levels[block] = at - start, predicted[component]
                            cursors[0, strip], cursors[1, strip] = code + at - start, escape
        for component in range(components):
            for y in range(frame[component, V]):
                row, strip = mcu_row * frame[component, V] + y, 4 * component + y
                if row < frame[component, ROWS]:
                    code, escape = totals[component]
                    _copy(strip_codes, strip * width, filled.codes[component], code, cursors[0, strip])
                    _copy(strip_escapes, strip * width, filled.escapes[component], escape, cursors[1, strip])
                    filled.row_escapes[component, row] = cursors[1, strip]
                    totals[component, 0] += cursors[0, strip]
                    totals[component, 1] += cursors[1, strip]
    return bit <= end


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
