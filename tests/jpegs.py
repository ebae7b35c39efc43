"""JPEG files with one thing wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from PIL import Image


def _at(data: bytes, marker: int) -> int:
    """Where a marker segment begins."""
    return data.index(bytes((0xFF, marker)))


def _with(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def _flipped(data: bytes, at: int, bits: int) -> bytes:
    return _with(data, at, data[at] ^ bits)


def _renamed(data: bytes, old: int, new: int) -> bytes:
    """All segments of a marker under another marker."""
    return data.replace(bytes((0xFF, old)), bytes((0xFF, new)))


SOF0, DHT, DQT, SOS = 0xC0, 0xC4, 0xDB, 0xDA
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "no JPEG": lambda data: b"xx" + data[2:],
    "height 0": lambda data: _with(_with(data, _at(data, SOF0) + 5, 0), _at(data, SOF0) + 6, 0),
    "width 0": lambda data: _with(_with(data, _at(data, SOF0) + 7, 0), _at(data, SOF0) + 8, 0),
    "12 bits": lambda data: _with(data, _at(data, SOF0) + 4, 12),
    "5 components": lambda data: _with(data, _at(data, SOF0) + 9, 5),
    "sampling factor 0": lambda data: _with(data, _at(data, SOF0) + 11, 0),
    "lossless": lambda data: _renamed(data, SOF0, 0xC3),
    "JPEG-LS": lambda data: _renamed(data, SOF0, 0xF7),
    "arithmetic": lambda data: _renamed(data, SOF0, 0xC9),
    "a bit of DQT": lambda data: _flipped(data, _at(data, DQT) + 4, 4),
    "a bit of DHT": lambda data: _flipped(data, _at(data, DHT) + 5, 0x80),
    "a bit of SOS": lambda data: _flipped(data, _at(data, SOS) + 5, 0x40),
    "a length": lambda data: _with(data, _at(data, DQT) + 2, 0xF0),
    "second SOI": lambda data: data[:20] + b"\xff\xd8" + data[20:],
    "second SOI at the end": lambda data: data[:-2] + b"\xff\xd8" + data[-2:],
    "second SOF": lambda data: data[: _at(data, SOS)] + data[_at(data, SOF0) : _at(data, DHT)] + data[_at(data, SOS) :],
    "no quantization tables": lambda data: _renamed(data, DQT, 0xEF),
    "tables only": lambda data: data[: _at(data, SOF0)] + b"\xff\xd9",
    "cut in the header": lambda data: data[: _at(data, SOF0) + 8],
    "truncated": lambda data: data[: len(data) // 2],
    "a marker in the data": lambda data: data[: len(data) // 2] + b"\xff\xd3" + data[len(data) // 2 :],
}


def sampled(factors: Sequence[tuple[int, int]], height: int, width: int, rest: str = "1010") -> bytes:
    """A JPEG of random blocks with components of these (horizontal, vertical) sampling factors.

    Args:
        factors: of each component.
        height, width: of the image, px.
        rest: bits of the coefficients but the first of each block, also of padding blocks; by default none.
    """
    random = np.random.default_rng(0)
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG", quality=90)
    header = file.getvalue()
    blocks = factors if len(factors) > 1 else [(1, 1)]  # a scan of one component is not interleaved
    most = [max(sides) for sides in zip(*blocks)]
    units = -(-width // (8 * most[0])) * -(-height // (8 * most[1]))
    values, bits = [0] * len(factors), ""
    for _ in range(units):
        for component, (horizontal, vertical) in enumerate(blocks):
            for _ in range(horizontal * vertical):
                value = int(random.integers(-70, 70))
                difference, values[component] = value - values[component], value
                size = abs(difference).bit_length()  # its code in the standard table, and the bits
                bits += ("00", "010", "011", "100", "101", "110", "1110", "11110", "111110")[size]
                bits += f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}" if size else ""
                bits += rest
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    numbers = range(1, len(factors) + 1)
    frame = b"".join(bytes((number, 16 * h + v, 0)) for number, (h, v) in zip(numbers, factors))
    scan = b"".join(bytes((number, 0)) for number in numbers)
    count = bytes([len(factors)])
    return b"".join(
        [
            header[: _at(header, SOF0)],
            struct.pack(">HHBHH", 0xFF00 + SOF0, 8 + len(frame), 8, height, width) + count + frame,
            header[_at(header, DHT) : _at(header, SOS)],
            struct.pack(">HH", 0xFF00 + SOS, 6 + len(scan)) + count + scan + bytes((0, 63, 0)),
            data + b"\xff\xd9",
        ]
    )
