"""The entropy coding of JPEG, against plain definitions. tests/data/test_dct.py has whole files."""

from __future__ import annotations

import numpy as np
import pytest

from ffcv_cropmix.kernels import huffman
from ffcv_cropmix.kernels.huffman import FAST_BITS
from ffcv_cropmix.kernels.jit import entry
from tests import naive

_prepare_fast_table, _unstuff = entry(huffman.prepare_fast_table), entry(huffman.unstuff)


def _table(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """A random Huffman table: numbers of codes of each length, symbols, and the codes with their symbols."""
    counts, codes, code = np.zeros(16, np.uint8), [], 0
    for length in range(1, 17):
        code *= 2
        most = 2**length - code - 1  # one is left: no code consists of ones
        counts[length - 1] = min(random.integers(0, 1 + max(most * 2 // 3, 1)), most, 255 - len(codes))
        for _ in range(counts[length - 1]):
            codes.append(f"{code:0{length}b}")
            code += 1
    common = random.permutation([0x00, 0xF0, 0x01, 0x02, 0x03, 0x11, 0x12, 0x21, 0x31, 0x0A])
    others = [symbol for symbol in random.permutation(256) if symbol not in common]
    symbols = np.array([*common, *others], np.uint8)[: len(codes)]
    return counts, symbols, dict(zip(codes, symbols.tolist()))


@pytest.mark.parametrize("coefficients", [True, False])
def test_fast_table(coefficients: bool) -> None:
    random = np.random.default_rng(0)
    numbers = set()
    for function in (_prepare_fast_table, *[huffman.prepare_fast_table] * 2):
        counts, symbols, table = _table(random)
        single, fast = np.empty((2, 1 << FAST_BITS), np.int32)
        function(counts, symbols, coefficients, single, fast)
        expected = [naive.fast_entry(f"{k:0{FAST_BITS}b}", table, coefficients) for k in range(1 << FAST_BITS)]
        assert fast.tolist() == expected
        numbers |= {(entry >> 4 & 3, entry >> 6 & 1) for entry in expected if entry > 0}
    assert numbers == ({(0, 1), (1, 0), (1, 1), (2, 0)} if coefficients else set())


def test_unstuff() -> None:
    random = np.random.default_rng(1)
    for number in range(300):
        function = huffman.unstuff if number % 10 == 0 else _unstuff
        pieces = [b"\xff\0", b"\xff\xff\0", b"\xff\xd0", b"\xff\xff\xd7", b"\xff\xff\xff\xd3", b"a", b"bcdefghijkl"]
        scan = b"".join(pieces[k] for k in random.integers(0, len(pieces), random.integers(0, 20)))
        end = (b"\xff\xd9", b"\xff\xff\xd9", b"\xff\xda rest \xff\xd0", b"\xff", b"\xff\xff")[number % 5]
        data = np.frombuffer(b"head\xff\xd0" + scan + end, np.uint8)
        marks = 6 + np.flatnonzero(data[6:] == 0xFF)
        expected = naive.unstuffed(scan + b"\xff\xd9")
        segments = np.full(len(expected) + 1, 99)
        filled = np.full(len(data) + 16 * len(segments), 99, np.uint8)
        assert function(data, 6, marks, filled, segments) == len(expected)
        for first, following, part in zip(segments, segments[1:], expected):
            assert filled[first:following].tobytes() == part + bytes(16)
        assert function(data, 6, marks, filled, segments[:-1].copy()) == 0
    assert _unstuff(np.frombuffer(b"no end", np.uint8), 0, np.empty(0, np.int64), filled, segments) == 0
