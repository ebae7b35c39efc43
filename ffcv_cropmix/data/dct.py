"""Encode and decode one image of mode dct. docs/dct.md describes the layout."""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import pairwise
from typing import Any
from weakref import finalize

import numpy as np
from backports import zstd

from .. import dct, dct_pixels
from ..dct import HEADER, MAGIC, OK
from ..kernels.coefficient_code import ALL_ROWS, BLOCKS, COMPONENTS, FIRST_BLOCK, decode_row
from ..kernels.jit import entry
from .jpeg import Coded, Component, Header, read_jpeg, write_jpeg

_new_dct_buffers, _open_dct, _decode_row = entry(dct.new_buffers), entry(dct.open_dct), entry(decode_row)
_new_buffers = entry(dct_pixels.new_buffers)
_destroy_context = dct_pixels.destroy_context
_STEP = 512  # px; working memory grows in steps of this


@cache
def _compressor(level: int) -> zstd.ZstdCompressor:
    parameters: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    return zstd.ZstdCompressor(options=parameters)


def _low_and_high(numbers: list[np.ndarray]) -> tuple[bytes, bytes]:
    """Split 16-bit numbers into their low and their high bytes."""
    both = np.concatenate(numbers).astype("<u2").view(np.uint8).reshape(-1, 2)
    return both[:, 0].tobytes(), both[:, 1].tobytes()


def _differences(levels: np.ndarray, columns: int) -> np.ndarray:
    """Return the differences of a component's first coefficients, uint16 (blocks,): 0, -1, 1, -2 as 0, 1, 2, 3."""
    grid = levels.reshape(-1, columns).astype(np.int64)
    before = np.zeros_like(grid)
    before[:, 1:] = grid[:, :-1]
    before[1:, 0] = grid[:-1, 0]
    difference = (grid - before).astype(np.int16).astype(np.int64)
    return (difference << 1 ^ difference >> 63).astype(np.uint16).ravel()


def pack(coded: Coded, level: int) -> bytes:
    """Pack an image's byte code into a sample, compressed at one of zstd's levels."""
    header = coded.header
    parts = header.components
    lengths = [*map(len, coded.codes), *[0] * (3 - len(parts)), *map(len, coded.escapes), *[0] * (3 - len(parts))]
    front = MAGIC + np.array([header.height, header.width], "<u2").tobytes() + bytes([len(parts)])
    front += bytes([part.h << 4 | part.v for part in parts] + [0] * (3 - len(parts)))
    front += np.array(lengths, "<u4").tobytes()
    assert len(front) == HEADER

    luma = len(coded.row_escapes[0]) * coded.columns[0]  # blocks
    borders = np.cumsum([len(rows) * columns for rows, columns in zip(coded.row_escapes, coded.columns)])[:-1]
    levels = np.split(coded.levels, borders)
    low, high = _low_and_high([_differences(part, columns) for part, columns in zip(levels, coded.columns)])
    streams: list[Any] = [
        b"".join(_low_and_high([part.quantisation for part in parts])),
        coded.counts[:luma],
        coded.counts[luma:],
        low[:luma],
        low[luma:],
        high,
        b"".join(_low_and_high(coded.row_escapes)),
        coded.codes[0],
        b"".join(part.tobytes() for part in coded.codes[1:]),
        b"".join(_low_and_high(coded.escapes)),
    ]
    compressor = _compressor(level)
    # One zstd block per stream, each with its own entropy code.
    blocks = [compressor.compress(stream, zstd.ZstdCompressor.FLUSH_BLOCK) for stream in streams if len(stream)]
    return b"".join([front, *blocks, compressor.flush(zstd.ZstdCompressor.FLUSH_FRAME)])


def encode_dct(data: bytes, height: int, width: int, level: int) -> bytes | None:
    """Encode a sound JPEG of this size, gray or YCbCr, as a sample; None if `read_jpeg` returns None."""
    coded = read_jpeg(data, height, width)
    return pack(coded, level) if coded else None


class _Reader:
    """Working memory for images up to a size. Allocating it takes longer than decoding many an image."""

    def __init__(self, height: int, width: int) -> None:
        self.buffers = _new_buffers(height, width)
        finalize(self, _destroy_context, self.buffers.context)


_reader = lru_cache(maxsize=1)(_Reader)


@cache
def _decoder() -> Any:
    decode = dct_pixels.compile_decode_dct()

    @entry
    def decode_rgb(data, height, width, box, buffers):
        return decode(data, height, width, box, False, buffers)

    return decode_rgb


def decode_dct(sample: bytes, height: int, width: int) -> np.ndarray | None:
    """Decode a sample of this size to RGB, uint8 (height, width, 3), as the decoders do; None if it is damaged.

    The result is a view of memory that the next call overwrites.
    """
    buffers = _reader(-(-height // _STEP) * _STEP, -(-width // _STEP) * _STEP).buffers
    box = np.array([0, 0, height, width])
    code = _decoder()(np.frombuffer(sample, np.uint8), height, width, box, buffers) >> 1
    return buffers.pixels[: 3 * height * width].reshape(height, width, 3) if code == OK else None


def unpack(sample: bytes, height: int, width: int) -> tuple[Header, np.ndarray] | None:
    """Return the JPEG's header and its coefficients, int16 (blocks, 64), in natural order; None if it is damaged."""
    data, context = np.frombuffer(sample, np.uint8), dct.new_context()
    buffers = _new_dct_buffers(height, width)
    code = _open_dct(context, data, height, width, buffers)
    dct.destroy_context(context)
    if code != OK:
        return None
    coefficients, last = np.empty(64 * buffers.together[BLOCKS], np.int16), np.empty(width, np.uint8)
    firsts = buffers.index[: buffers.together[ALL_ROWS] + 1, FIRST_BLOCK].tolist()
    for row, (first, end) in enumerate(pairwise(firsts)):
        target = coefficients[64 * first :]
        if not _decode_row(buffers.content, buffers.together, buffers.index, row, 0, end - first, target, last):
            return None
    components = buffers.together[COMPONENTS]
    parts = [Component(f >> 4, f & 15, q.copy()) for f, q in zip(sample[9 : 9 + components], buffers.quantisation)]
    return Header(height, width, parts), coefficients.reshape(-1, 64)


def to_jpeg(sample: bytes, height: int, width: int) -> bytes:
    """Return a JPEG file with the coefficients of a sample.

    Raises:
        ValueError: the sample is damaged.
    """
    found = unpack(sample, height, width)
    if found is None:
        raise ValueError("its coefficients are damaged")
    return write_jpeg(*found)
