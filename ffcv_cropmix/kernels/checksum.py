"""Compute XXH64 with seed 0 (xxHash specification 0.1.1), the checksum of a sample's bytes, as the package xxhash does.

Compiled, the checksum is computed where the bytes are decoded, in the same threads. All numbers are uint64 and wrap
around; if the code is interpreted (NUMBA_DISABLE_JIT=1), NumPy warns about that.
"""

from __future__ import annotations

import numpy as np

from .jit import jit

_PRIME_1, _PRIME_2, _PRIME_3, _PRIME_4, _PRIME_5 = (
    np.uint64(0x9E3779B185EBCA87),
    np.uint64(0xC2B2AE3D27D4EB4F),
    np.uint64(0x165667B19E3779F9),
    np.uint64(0x85EBCA77C2B2AE63),
    np.uint64(0x27D4EB2F165667C5),
)
_PRIMES_1_2, _MINUS_PRIME_1 = np.uint64(0x60EA27EEADC0B5D6), np.uint64(0x61C8864E7A143579)  # their sum; 0 - _PRIME_1


@jit
def _rotate(value, bits):
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@jit
def _word(data, at, size):
    """Read `size` bytes, little-endian. LLVM turns this into one load."""
    value = np.uint64(0)
    for k in range(size):
        value |= np.uint64(data[at + k]) << np.uint64(8 * k)
    return value


@jit
def _round(accumulator, word):
    return _rotate(accumulator + word * _PRIME_2, 31) * _PRIME_1


@jit
def xxh64(data):
    """Return the XXH64 of `data`, uint8 (n,), as uint64."""
    size = data.size
    at = 0
    if size >= 32:
        a, b, c, d = _PRIMES_1_2, _PRIME_2, np.uint64(0), _MINUS_PRIME_1
        while at + 32 <= size:
            a = _round(a, _word(data, at, 8))
            b = _round(b, _word(data, at + 8, 8))
            c = _round(c, _word(data, at + 16, 8))
            d = _round(d, _word(data, at + 24, 8))
            at += 32
        result = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        for accumulator in (a, b, c, d):
            result = (result ^ _round(np.uint64(0), accumulator)) * _PRIME_1 + _PRIME_4
    else:
        result = _PRIME_5
    result += np.uint64(size)
    while at + 8 <= size:
        result = _rotate(result ^ _round(np.uint64(0), _word(data, at, 8)), 27) * _PRIME_1 + _PRIME_4
        at += 8
    if at + 4 <= size:
        result = _rotate(result ^ (_word(data, at, 4) * _PRIME_1), 23) * _PRIME_2 + _PRIME_3
        at += 4
    while at < size:
        result = _rotate(result ^ (np.uint64(data[at]) * _PRIME_5), 11) * _PRIME_1
        at += 1
    result = (result ^ (result >> np.uint64(33))) * _PRIME_2
    result = (result ^ (result >> np.uint64(29))) * _PRIME_3
    return result ^ (result >> np.uint64(32))
