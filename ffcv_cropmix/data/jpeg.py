"""Convert a JPEG file to its tables and quantised DCT coefficients, as byte code, and back."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

from .. import libturbojpeg
from ..kernels import huffman
from ..kernels.coefficient_code import MOST_CODES, ZIGZAG
from ..kernels.jit import entry

_SOI, _EOI, _SOS, _DQT, _DHT, _DRI, _SOF0, _SOF1 = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xC0, 0xC1
_FRAMES = {*range(0xC0, 0xD0)} - {_DHT, 0xC8, 0xCC}

_prepare_table, _prepare_fast_table = entry(huffman.prepare_table), entry(huffman.prepare_fast_table)
_unstuff, _read_scan, _write_scan = entry(huffman.unstuff), entry(huffman.read_scan), entry(huffman.write_scan)


class Component(NamedTuple):
    """A colour component of a JPEG."""

    h: int
    v: int
    """Sampling factors"""
    quantisation: np.ndarray
    """uint16 (64,), in natural order"""


class Header(NamedTuple):
    """Size and components of a JPEG file."""

    height: int
    width: int
    components: list[Component]


class _Markers(NamedTuple):
    """The markers of a baseline JPEG file with one scan."""

    header: Header
    tables: list[tuple[int, int]]
    """Numbers of the Huffman tables of each component, (DC, AC)"""
    huffman: dict[int, bytes]
    """By class << 4 | number: counts of 16 lengths, then values"""
    interval: int
    """MCUs between restart markers; 0: there are none"""
    scan: int
    """Offset of the entropy-coded data"""


def _read_markers(data: bytes) -> _Markers | None:
    """Read the markers; None if the file is not baseline with one scan of all components."""
    quantisation: dict[int, np.ndarray] = {}
    tables: dict[int, bytes] = {}
    frame: tuple[int, int, list[tuple[int, int, int, int]]] | None = None
    interval, at = 0, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at + 4 : at + 2 + size]
        at += 2 + size
        if marker == _DQT:
            while segment:
                wide = 1 + (segment[0] >> 4)
                table = np.empty(64, np.uint16)
                table[ZIGZAG] = np.frombuffer(segment[1 : 1 + 64 * wide], f">u{wide}")
                quantisation[segment[0] & 15] = table
                segment = segment[1 + 64 * wide :]
        elif marker == _DHT:
            while segment:
                end = 17 + sum(segment[1:17])
                tables[segment[0]] = segment[1:end]
                segment = segment[end:]
        elif marker == _DRI:
            interval = int.from_bytes(segment[:2], "big")
        elif marker in (_SOF0, _SOF1) and segment[0] == 8:
            height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            each = [segment[6 + 3 * k : 9 + 3 * k] for k in range(segment[5])]
            frame = height, width, [(part[0], part[1] >> 4, part[1] & 15, part[2]) for part in each]
        elif marker in _FRAMES:
            return None
        elif marker == _SOS:
            chosen = {segment[1 + 2 * k]: segment[2 + 2 * k] for k in range(segment[0])}
            if frame is None or len(chosen) != len(frame[2]):
                return None
            height, width, parts = frame
            if len(parts) == 1:  # its blocks are in order, whatever the factors are
                parts = [(parts[0][0], 1, 1, parts[0][3])]
            header = Header(height, width, [Component(h, v, quantisation[number]) for _, h, v, number in parts])
            return _Markers(header, [(chosen[key] >> 4, chosen[key] & 15) for key, *_ in parts], tables, interval, at)
    return None


@cache
def _transformer() -> int:
    return libturbojpeg.new_transformer()


def _as_baseline(data: bytes, height: int, width: int) -> bytes | None:
    """Return a baseline JPEG with one scan and the same coefficients; None if libjpeg-turbo cannot make one."""
    stored = np.frombuffer(data, np.uint8)
    out = np.empty(libturbojpeg.largest_size(width, height, libturbojpeg.TJSAMP_444), np.uint8)
    places = np.array([out.ctypes.data], np.int64)
    sizes = np.array([out.size], np.uint64)
    transform = np.zeros(1, libturbojpeg.TRANSFORM)
    transform["options"] = libturbojpeg.TJXOPT_COPYNONE
    failed = libturbojpeg.transform(
        _transformer(),
        stored.ctypes.data,
        len(data),
        1,
        places.ctypes.data,
        sizes.ctypes.data,
        transform.ctypes.data,
        libturbojpeg.TJFLAG_NOREALLOC,
    )
    return None if failed else out[: int(sizes[0])].tobytes()


def grid_of(header: Header) -> huffman.Grid:
    """Return how the blocks of an image's scan are arranged."""
    most_h = max(part.h for part in header.components)
    most_v = max(part.v for part in header.components)
    frame = np.zeros((len(header.components), 7), np.int64)
    before = 0
    for k, (h, v, _) in enumerate(header.components):
        rows, columns = -(-header.height * v // (8 * most_v)), -(-header.width * h // (8 * most_h))
        frame[k] = h, v, rows, columns, before, min(k, 1), 4 + min(k, 1)
        before += rows * columns
    return huffman.Grid(-(-header.height // (8 * most_v)), -(-header.width // (8 * most_h)), frame)


class Coded(NamedTuple):
    """An image in the byte code of `kernels.coefficient_code`."""

    header: Header
    counts: np.ndarray
    """Number of codes of each block, uint8 (blocks,)"""
    levels: np.ndarray
    """First coefficient of each block, int16 (blocks,)"""
    columns: list[int]
    """Number of columns of blocks of each component"""
    codes: list[np.ndarray]
    escapes: list[np.ndarray]
    row_escapes: list[np.ndarray]
    """For each component: codes uint8 (codes,), escapes uint16 (escapes,), escapes before each row int64 (rows,)"""


def read_jpeg(data: bytes, height: int, width: int) -> Coded | None:
    """Return the coefficients of a JPEG of this size as byte code.

    Args:
        data: a JPEG, gray or YCbCr, that libjpeg-turbo decodes without a warning.

    Returns:
        the byte code; None if it cannot represent the file: 12 bits, unusual sampling factors, numbers out of range.
    """
    markers = _read_markers(data)
    if markers is None:
        data = _as_baseline(data, height, width) or b""
        markers = _read_markers(data) if data else None
        if markers is None:
            return None
    header, parts = markers.header, markers.header.components
    grid = grid_of(header)
    frame = grid.frame
    most = frame[:, [huffman.H, huffman.V]].max(axis=0)
    if len(parts) not in (1, 3) or (most > 4).any() or (most % frame[:, [huffman.H, huffman.V]]).any():
        return None
    for component, (dc, ac) in zip(frame, markers.tables):
        if dc not in markers.huffman or 16 | ac not in markers.huffman:
            return None
        component[huffman.DC_TABLE], component[huffman.AC_TABLE] = dc, 4 + ac
    fast = np.empty((8, 1 << huffman.FAST_BITS), np.int32)
    single = np.empty_like(fast[0])
    tables = huffman.Tables(
        np.empty((8, 17), np.int64), np.empty((8, 17), np.int64), np.zeros((8, 256), np.uint8), fast.ravel()
    )
    for key in {key for dc, ac in markers.tables for key in (dc, 16 | ac)}:  # libjpeg has checked no others
        table, number = markers.huffman[key], (key >> 4) * 4 + (key & 15)
        counts = np.frombuffer(table[:16], np.uint8)
        tables.values[number, : len(table) - 16] = np.frombuffer(table[16:], np.uint8)
        _prepare_table(counts, tables.limits[number], tables.offsets[number])
        _prepare_fast_table(counts, tables.values[number], number >= 4, single, fast[number])

    mcus = grid.rows * grid.columns
    segments = np.empty(2 + (mcus - 1) // (markers.interval or mcus), np.int64)
    scan = np.zeros(len(data) - markers.scan + 16 * len(segments) + 512, np.uint8)
    stored = np.frombuffer(data, np.uint8)
    marks = markers.scan + np.flatnonzero(stored[markers.scan :] == 0xFF)
    if _unstuff(stored, markers.scan, marks, scan, segments) != len(segments) - 1:
        return None
    each = frame[:, huffman.ROWS] * frame[:, huffman.COLUMNS]
    room = len(parts), MOST_CODES * int(each.max())
    strip = 12 * (MOST_CODES * (int(frame[:, huffman.COLUMNS].max()) + 1) + 1)
    strips = huffman.Strips(np.empty((3, 12), np.int64), np.empty(strip, np.uint8), np.empty(strip, np.uint16))
    found = huffman.ByteCode(
        counts=np.empty(each.sum(), np.uint8),
        levels=np.empty(each.sum(), np.int16),
        codes=np.empty(room, np.uint8),
        escapes=np.empty(room, np.uint16),
        row_escapes=np.empty((3, int(frame[:, huffman.ROWS].max())), np.int64),
        totals=np.empty((3, 2), np.int64),
    )
    if not _read_scan(scan, segments, markers.interval or mcus, grid, tables, strips, found):
        return None
    return Coded(
        header,
        found.counts,
        found.levels,
        frame[:, huffman.COLUMNS].tolist(),
        [part[:count] for part, (count, _) in zip(found.codes, found.totals)],
        [part[:count] for part, (_, count) in zip(found.escapes, found.totals)],
        [part[:rows] for part, rows in zip(found.row_escapes, frame[:, huffman.ROWS])],
    )


@cache
def _standard_tables() -> dict[int, bytes]:
    """Return the example Huffman tables of T.81, which encoders use; they have a code for every symbol."""
    _, data = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))
    markers = _read_markers(data.tobytes())
    assert markers is not None
    return markers.huffman


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (2 + len(content)).to_bytes(2, "big") + content


def write_jpeg(header: Header, coefficients: np.ndarray) -> bytes:
    """Write a baseline JPEG file, gray or YCbCr.

    Args:
        coefficients: int16 (blocks, 64), in natural order, component after component, row after row.
    """
    parts = header.components
    grid = grid_of(header)
    tables = {key: table for key, table in _standard_tables().items() if key & 15 < len(parts)}
    codes, lengths = np.zeros((8, 256), np.int64), np.zeros((8, 256), np.int64)
    for key, table in tables.items():
        number, code, position = (key >> 4) * 4 + (key & 15), 0, 16
        for length, count in enumerate(table[:16], 1):
            for value in table[position : position + count]:
                codes[number, value], lengths[number, value] = code, length
                code += 1
            position, code = position + count, code << 1
    blocks = grid.rows * grid.columns * int((grid.frame[:, huffman.H] * grid.frame[:, huffman.V]).sum())
    scan = np.empty(2 * 64 * 4 * blocks + 16, np.uint8)  # at most 26 bits per coefficient, and zeros after 0xFF
    size = _write_scan(coefficients, grid, codes, lengths, np.empty(3, np.int64), scan)
    wide = max(int(part.quantisation.max()) for part in parts) > 255
    pieces = [bytes((0xFF, _SOI)), _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")]
    for number, part in enumerate(parts):
        values = part.quantisation[ZIGZAG].astype(">u2" if wide else "u1").tobytes()
        pieces.append(_segment(_DQT, bytes([wide << 4 | number]) + values))
    sizes = header.height.to_bytes(2, "big") + header.width.to_bytes(2, "big")
    each = b"".join(bytes((k + 1, part.h << 4 | part.v, k)) for k, part in enumerate(parts))
    pieces.append(_segment(_SOF1 if wide else _SOF0, b"\x08" + sizes + bytes([len(parts)]) + each))
    pieces += [_segment(_DHT, bytes([key]) + table) for key, table in tables.items()]
    chosen = b"".join(bytes((k + 1, 0x11 * min(k, 1))) for k in range(len(parts)))
    pieces.append(_segment(_SOS, bytes([len(parts)]) + chosen + b"\0\x3f\0"))
    return b"".join([*pieces, scan[:size].tobytes(), bytes((0xFF, _EOI))])
