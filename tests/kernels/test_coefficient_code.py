"""The byte code of DCT coefficients, against its definition in tests/naive.py."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from backports import zstd

from ffcv_cropmix import dct
from ffcv_cropmix.kernels import coefficient_code
from ffcv_cropmix.kernels.coefficient_code import ALL_ROWS, COLUMNS, FIRST_BLOCK, FIRST_ROW, ROWS, decode_row
from ffcv_cropmix.kernels.jit import entry
from tests import naive

_new_buffers, _open_dct, _decode_row = entry(dct.new_buffers), entry(dct.open_dct), entry(decode_row)
FACTORS = {"gray": [(1, 1)], "444": [(1, 1)] * 3, "420": [(2, 2), (1, 1), (1, 1)], "411": [(4, 1), (1, 1), (1, 1)]}


def shapes(factors: list[tuple[int, int]], height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns of the blocks of each component."""
    most = [max(sides) for sides in zip(*factors)]
    return [(-(-height * v // (8 * most[1])), -(-width * h // (8 * most[0]))) for h, v in factors]


def image(kind: str, height: int, width: int, seed: int = 0) -> tuple[list, list[np.ndarray], list[np.ndarray]]:
    """Sampling factors, quantisation tables, and coefficients, with the rarest values and runs that there are."""
    random = np.random.default_rng(seed)
    planes = []
    for rows, columns in shapes(FACTORS[kind], height, width):
        plane = random.integers(-3, 4, (rows, columns, 64)) * (random.random((rows, columns, 64)) < 0.2)
        plane[random.random(plane.shape) < 0.01] = 1023
        plane[random.random(plane.shape) < 0.01] = -1023
        plane[:, :, 0] = random.choice([-(2**15), -1, 0, 1, 70, 2**15 - 1], (rows, columns))
        plane[0, 0] = 0
        plane[-1, -1, 1:63] = 0
        plane[-1, -1, 63] = -1  # after 62 zeros
        if columns > 1:
            plane[0, 1] = 7
        planes.append(plane)
    return FACTORS[kind], [random.integers(1, 65_536, 64) for _ in planes], planes


def opened(sample: bytes, height: int, width: int, jitted: bool = True):
    """The code of `open_dct`, and its buffers."""
    new_buffers, open_dct = (_new_buffers, _open_dct) if jitted else (dct.new_buffers, dct.open_dct)
    buffers = new_buffers(height, width)
    context = dct.new_context()
    code = open_dct(context, np.frombuffer(sample, np.uint8), height, width, buffers)
    dct.destroy_context(context)
    return code, buffers


def decoded(decode, buffers, row: int, first: int, columns: int) -> tuple[bool, np.ndarray, list[int]]:
    """Whether a part of a row is valid, its blocks, and where each ends. Nothing else may be written."""
    coefficients, last = np.full(64 * columns + 256, 99, np.int16), np.full(columns + 4, 99, np.uint8)
    target, target_last = coefficients[128:-128], last[2:-2]
    sound = decode(buffers.content, buffers.together, buffers.index, row, first, columns, target, target_last)
    assert set(coefficients[:128]) == set(coefficients[-128:]) == {99}
    assert [*last[:2], *last[-2:]] == [99] * 4
    return sound, target.reshape(-1, 64), target_last.tolist()


def ends(blocks: np.ndarray) -> list[int]:
    """Where in the zigzag the last coefficient of each block is that is not 0."""
    return [max([k for k, place in enumerate(naive.zigzag()) if k and block[place]], default=0) for block in blocks]


@pytest.mark.parametrize("size", [(1, 1), (8, 17), (37, 50)])
@pytest.mark.parametrize("kind", FACTORS)
def test_as_defined(kind: str, size: tuple[int, int]) -> None:
    factors, tables, planes = image(kind, *size)
    sample = naive.dct_sample(*size, factors, tables, planes)
    blocks = np.concatenate([plane.reshape(-1, 64) for plane in planes])
    for jitted, decode in ((True, _decode_row), (False, decode_row)):
        code, buffers = opened(sample, *size, jitted)
        assert code == dct.OK
        assert buffers.parts[: len(planes), [ROWS, COLUMNS]].tolist() == [list(plane.shape[:2]) for plane in planes]
        assert (buffers.quantisation[: len(planes)] == tables).all()
        assert buffers.index[buffers.together[ALL_ROWS], FIRST_BLOCK] == len(blocks)
        for row, expected in enumerate([row for plane in planes for row in plane]):
            sound, found, last = decoded(decode, buffers, row, 0, len(expected))
            assert sound
            assert (found == expected).all()
            assert last == ends(expected)


def test_part_of_a_row() -> None:
    height, width = 40, 70
    factors, tables, planes = image("420", height, width, seed=1)
    _, buffers = opened(naive.dct_sample(height, width, factors, tables, planes), height, width)
    for decode in (_decode_row, decode_row):
        for component, row, first, columns in ((0, 4, 0, 9), (0, 0, 3, 1), (2, 2, 1, 4), (1, 1, 4, 1), (0, 2, 8, 1)):
            sound, found, last = decoded(decode, buffers, buffers.parts[component, FIRST_ROW] + row, first, columns)
            expected = planes[component][row, first : first + columns]
            assert sound
            assert (found == expected).all()
            assert last == ends(expected)


def test_what_a_header_may_not_say() -> None:
    height, width = 20, 30
    sample = bytearray(naive.dct_sample(height, width, *image("420", height, width)))

    def changed(at: int, *values: int) -> bytes:
        copy = bytearray(sample)
        copy[at : at + len(values)] = bytes(values)
        return bytes(copy)

    assert opened(sample, height, width)[0] == dct.OK
    assert opened(sample, height + 1, width)[0] == dct.OTHER_SIZE
    assert opened(changed(6, 31), height, width)[0] == dct.OTHER_SIZE
    wrong = [bytes(sample[:size]) for size in (0, 3, 35, 36, len(sample) - 1)]
    wrong += [changed(0, 0), changed(3, 2), changed(4, 0, 0), changed(8, 0), changed(8, 2), changed(8, 4)]
    wrong += [changed(9, 0x02), changed(9, 0x20), changed(9, 0x52), changed(9, 0x32, 0x21), changed(9, 0x11)]
    wrong += [changed(12, 255, 255, 255, 255), changed(12, sample[12] ^ 1), changed(24, sample[24] ^ 1), changed(40, 9)]
    for data in wrong:
        assert opened(data, height, width)[0] == dct.BAD_DCT, data[:36]
    for size in ((0, 8), (8, 0)):  # as the metadata say
        empty = naive.dct_header(*size, [(1, 1)], [0], [0]) + zstd.compress(bytes(128 + 2 * (size[0] > 0)))
        assert opened(empty, *size)[0] == dct.BAD_DCT
    for codes, expected in ((1, dct.BAD_DCT), (2, dct.OK)):  # of a block with 2 escapes
        content = bytes(128) + bytes([codes, 0, 0, 2, 0, *[254] * codes, 1, 1, 0, 0])
        data = naive.dct_header(8, 8, [(1, 1)], [codes], [2]) + zstd.compress(content)
        assert opened(data, 8, 8)[0] == expected


def test_damaged_codes_stay_in_their_blocks() -> None:
    """With a checksum that is right: made by hand, from any bytes."""
    height, width = 33, 47
    factors, tables, planes = image("444", height, width, seed=2)
    content, codes, escapes = naive.dct_content(tables, planes)
    header = naive.dct_header(height, width, factors, codes, escapes)
    first_code = len(content) - sum(codes) - 2 * sum(escapes)
    random = np.random.default_rng(3)
    results = []
    for number in range(300):
        damaged = bytearray(content)
        begin = first_code if number % 2 else 0
        for at in random.integers(begin, len(content), random.integers(1, 40)):
            damaged[at] = random.integers(256) if number % 3 else 255
        code, buffers = opened(header + zstd.compress(bytes(damaged)), height, width)
        if code != dct.OK:
            results.append(code)
            continue
        for row in range(buffers.together[ALL_ROWS]):
            columns = int(buffers.index[row + 1, FIRST_BLOCK] - buffers.index[row, FIRST_BLOCK])
            first, count = (int(k) for k in sorted(random.integers(0, columns, 2)))
            sound, blocks, last = decoded(_decode_row, buffers, row, first, max(count - first, 1))
            results.append(dct.OK if sound else dct.BAD_DCT)
            assert all(end <= said <= 63 for end, said in zip(ends(blocks), last))
    assert set(results) == {dct.OK, dct.BAD_DCT}


def test_constants() -> None:
    assert coefficient_code.ZIGZAG.tolist() == naive.zigzag()
    assert coefficient_code.LARGEST == naive.LARGEST
    assert coefficient_code.FIRST_CODES[: len(naive.LARGEST), 0].tolist() == [
        0,
        *accumulate(2 * most for most in naive.LARGEST[:-1]),
    ]
    codes = [(run, v) for run in range(17) for v in range(-80, 81) if v]
    assert all(
        coefficient_code.MEANING[coefficient_code.code_of(run, v)] == (v << 16 | run + 1)
        for run, v in codes
        if coefficient_code.code_of(run, v) < 254
    )
    assert sum(coefficient_code.code_of(run, v) < 254 for run, v in codes) == 254
