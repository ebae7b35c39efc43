"""Compute samples from quantised DCT coefficients: libjpeg's accurate inverse transform (jidctint), bit for bit.

Two blocks at a time fill the sixteen lanes of a vector. If only their first coefficients are not zero, which the
decoder of the coefficients reports, a shorter computation gives the same samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from .llvm import INDEX, U8, compiles, constant, index, load, shuffle, splat, store

SHORT = 10  # zigzag positions 0 to 9 lie in the upper left 4 x 4 coefficients of a block
FIRST_SHIFT, SECOND_SHIFT = 11, 18  # after the columns, which keep 2 bits more; after the rows
BIAS = (128 << 5) + (1 << 4)  # added between the passes: the level of a zero coefficient, and half a level to round

# cos(k pi / 16) * sqrt(2) in 1/8192, and their sums as in jidctint. Output k of 8 is the sum of the even inputs' terms
# and the odd inputs' terms; output 7 - k is their difference.
ONE = 8192
EVEN = np.array(  # inputs 0, 2, 4, 6
    [[ONE, 10703, ONE, 4433], [ONE, 4433, -ONE, -10704], [ONE, -4433, -ONE, 10704], [ONE, -10703, ONE, -4433]]
)
ODD = np.array(  # inputs 1, 3, 5, 7
    [[11363, 9633, 6437, 2260], [9633, -2259, -11362, -6436], [6437, -11362, 2261, 9633], [2260, -6436, 9633, -11363]]
)


def _transform(values: np.ndarray, rounding: int, shift: int) -> np.ndarray:
    """Apply the inverse transform along the second to last axis; return int16, which valid blocks do not exceed."""
    even = np.tensordot(EVEN.astype(np.int32), values[..., 0::2, :].astype(np.int32), (1, -2)) + np.int32(rounding)
    odd = np.tensordot(ODD.astype(np.int32), values[..., 1::2, :].astype(np.int32), (1, -2))
    outputs = np.concatenate([even + odd, (even - odd)[::-1]]) >> shift
    return np.moveaxis(outputs.astype(np.int16), 0, -2)


def inverse_dct(coefficients, quantisation, last, pairs, plane, offset, stride):
    """Transform 2 * `pairs` neighbouring blocks, from left to right, into 8 rows of samples.

    Args:
        coefficients: int16 (blocks * 64,), quantised, each block row by row.
        quantisation: uint16 (64,), row by row.
        last: uint8 (blocks,), zigzag position of the last nonzero coefficient of each block.
        pairs: number of pairs of blocks.
        plane: uint8 (n,), filled from `offset` on.
        offset: index of the first sample in `plane`.
        stride: samples from row to row in `plane`.
    """
    blocks = coefficients[: 128 * pairs].reshape(-1, 8, 8) * quantisation.view(np.int16).reshape(8, 8)
    half_done = _transform(blocks, 1 << (FIRST_SHIFT - 1), FIRST_SHIFT).swapaxes(1, 2).copy()
    half_done[:, 0] += BIAS
    samples = _transform(half_done, 0, SECOND_SHIFT)  # (blocks, columns, rows)
    samples = np.clip(samples, 0, 255).astype(np.uint8).transpose(2, 0, 1).reshape(8, -1)
    for row in range(8):
        plane[offset + row * stride :][: 16 * pairs] = samples[row]


_I16, _I32 = ir.IntType(16), ir.IntType(32)
_WORDS, _LONGS = ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
WOVEN = [0, 4, 1, 5, 2, 6, 3, 7]  # the order in which `_shift_and_weave` leaves a block's eight lanes


def _unpack(size: int, high: bool, group: int) -> list[int]:
    """List the lanes that interleave two vectors, `group` lanes at a time.

    A vector has two blocks of `size` lanes; the low or the high half of each is taken.
    """
    half = size // 2
    return [
        side * 2 * size + block * size + high * half + k * group + j
        for block in (0, 1)
        for k in range(half // group)
        for side in (0, 1)
        for j in range(group)
    ]


def _interleave(builder: Any, first: Any, second: Any, group: int = 1) -> list[Any]:
    size = first.type.count // 2
    return [shuffle(builder, first, second, _unpack(size, high, group)) for high in (False, True)]


def _weighted_pairs(builder: Any, pairs: Any, first: int, second: int) -> Any:
    """Emit the weighted sum of each two lanes: one instruction, vpmaddwd."""
    wide = ir.VectorType(_I32, pairs.type.count)
    products = builder.mul(builder.sext(pairs, wide), ir.Constant(wide, [first, second] * (wide.count // 2)))
    lanes = range(0, wide.count, 2)
    return builder.add(
        shuffle(builder, products, products, list(lanes)),
        shuffle(builder, products, products, [k + 1 for k in lanes]),
    )


def _saturate(builder: Any, first: Any, second: Any, low: int, high: int, kind: Any) -> Any:
    """Clip two vectors to bounds, narrow them to `kind`, and take their blocks of lanes in turn: vpackuswb."""
    size = first.type.count // 2
    lanes = [side * 2 * size + group * size + k for group in (0, 1) for side in (0, 1) for k in range(size)]
    both = shuffle(builder, first, second, lanes)
    for relation, limit in ((">", low), ("<", high)):
        limits = constant(both.type, limit)
        both = builder.select(builder.icmp_signed(relation, both, limits), both, limits)
    return builder.trunc(both, ir.VectorType(kind, both.type.count))


def _emit_two(builder: Any, pairs: list[list[Any]], k: int, rounding: int) -> tuple[Any, Any]:
    """Emit outputs k and 7 - k of `_transform`, before the shift.

    Args:
        builder: LLVM's.
        pairs: interleaved vectors of inputs (0, 2), (4, 6) and (1, 3), (5, 7); without (4, 6) and (5, 7) if these are
            zero.
        k: 0 to 3.
        rounding: added before the shift.
    """

    def total(parts: list[Any], weights: np.ndarray) -> Any:
        terms = [_weighted_pairs(builder, part, *weights[2 * k :][:2].tolist()) for k, part in enumerate(parts)]
        return terms[0] if len(terms) == 1 else builder.add(*terms)

    even, odd = total(pairs[0], EVEN[k]), total(pairs[1], ODD[k])
    if rounding:
        even = builder.add(even, constant(even.type, rounding))
    return builder.add(even, odd), builder.sub(even, odd)


def _weave(builder: Any, first: Any, second: Any) -> Any:
    """Take the even lanes of `first` and the odd lanes of `second`: vpblendw, cheaper than moving lanes."""
    return shuffle(builder, first, second, [16 * (lane % 2) + lane for lane in range(16)])


def _shift_and_weave(builder: Any, first: Any, second: Any, shift: int) -> Any:
    """Shift both vectors right, truncate to int16, and interleave them: first[0], second[0], first[1], ..."""
    up = shift - 16
    second = builder.ashr(second, constant(_LONGS, up)) if up > 0 else builder.shl(second, constant(_LONGS, -up))
    first = builder.ashr(first, constant(_LONGS, shift))
    return _weave(builder, *(builder.bitcast(part, _WORDS) for part in (first, second)))


def _emit_whole(builder: Any, inputs: list[Any], rounding: int, shift: int) -> list[Any]:
    """Emit `_transform` of 8 int16 vectors of 16 lanes, or of the first 4 if the others are zero.

    The lanes of the result are in the order WOVEN.
    """
    mixed = [[_interleave(builder, inputs[k], inputs[k + 2]) for k in range(first, len(inputs), 4)] for first in (0, 1)]
    outputs: list[Any] = [None] * 8
    for k in range(4):
        low, high = (
            _emit_two(builder, [[halves[side] for halves in pairs] for pairs in mixed], k, rounding) for side in (0, 1)
        )
        outputs[k], outputs[7 - k] = (_shift_and_weave(builder, *both, shift) for both in zip(low, high))
    return outputs


@compiles(inverse_dct)
def _emit_inverse_dct(builder, coefficients, quantisation, last, pairs, plane, offset, stride):
    plane = builder.gep(plane, [offset])
    places = [builder.mul(stride, index(row)) for row in range(8)]
    twice = [*range(8), *range(8)]

    def inputs_of(block: Any, row: int) -> Any:
        first, second = (load(builder, coefficients, builder.add(block, index(64 * k + 8 * row)), 8) for k in (0, 1))
        weights = load(builder, quantisation, index(8 * row), 8)
        both = shuffle(builder, first, second, list(range(16)))
        return builder.mul(both, shuffle(builder, weights, weights, twice))

    def rows(columns: list[Any], column: Any) -> None:
        """Emit the second pass and the stores."""
        columns = [columns[WOVEN.index(k)] for k in range(len(columns))] if len(columns) == 8 else columns
        columns[0] = builder.add(columns[0], constant(_WORDS, BIAS))
        samples = _emit_whole(builder, columns, 0, SECOND_SHIFT)
        packed = [_saturate(builder, samples[k], samples[k + 4], 0, 255, U8) for k in range(4)]
        pairs = [_interleave(builder, packed[k], packed[k + 1]) for k in (0, 2)]
        fours = [_interleave(builder, first, second, 2) for first, second in zip(*pairs)]  # [columns 0, 4 and on][rows]
        eights = [vector for first, second in zip(*fours) for vector in _interleave(builder, first, second, 4)]
        for k, both in enumerate(eights):
            for side in (0, 1):
                lanes = [16 * block + 8 * side + lane for block in (0, 1) for lane in range(8)]
                place = builder.add(places[WOVEN[2 * k + side]], column)
                store(builder, shuffle(builder, both, both, lanes), plane, place)

    with cgutils.for_range(builder, pairs, intp=INDEX) as loop:
        block, column = builder.mul(loop.index, index(128)), builder.mul(loop.index, index(16))
        ends = [
            builder.load(builder.gep(last, [builder.add(builder.mul(loop.index, index(2)), index(k))])) for k in (0, 1)
        ]
        end = builder.select(builder.icmp_unsigned(">", *ends), *ends)
        with builder.if_else(builder.icmp_unsigned(">=", end, ir.Constant(U8, SHORT))) as (long, short):
            with long:
                inputs = [inputs_of(block, row) for row in range(8)]
                outputs = _emit_whole(builder, inputs, 1 << (FIRST_SHIFT - 1), FIRST_SHIFT)
                for _ in range(3):
                    outputs = [part for k in range(4) for part in _interleave(builder, outputs[k], outputs[k + 4])]
                rows(outputs, column)
            with short, builder.if_else(builder.icmp_unsigned(">", end, ir.Constant(U8, 0))) as (few, none):
                with few:
                    inputs = [inputs_of(block, row) for row in range(4)]
                    pairs_ = [[_interleave(builder, inputs[k], inputs[k + 2])[0]] for k in (0, 1)]
                    outputs = [_emit_two(builder, pairs_, k, 1 << (FIRST_SHIFT - 1)) for k in range(4)]
                    outputs = [first for first, _ in outputs] + [second for _, second in reversed(outputs)]
                    woven = [_shift_and_weave(builder, outputs[k], outputs[k + 1], FIRST_SHIFT) for k in (0, 2, 4, 6)]
                    halves = [_interleave(builder, woven[k], woven[k + 1], 2) for k in (0, 2)]
                    columns = [part for both in zip(*halves) for part in _interleave(builder, both[0], both[1], 4)]
                    rows(columns, column)
                with none:
                    constants = []
                    for k in (0, 1):
                        at = builder.add(block, index(64 * k))
                        value = builder.mul(builder.load(builder.gep(coefficients, [at])), builder.load(quantisation))
                        value = builder.sext(value, _I32)
                        value = builder.add(builder.shl(value, ir.Constant(_I32, 2)), ir.Constant(_I32, BIAS))
                        value = builder.ashr(value, ir.Constant(_I32, 5))
                        for relation, limit in (("<", 0), (">", 255)):
                            bound = ir.Constant(_I32, limit)
                            value = builder.select(builder.icmp_signed(relation, value, bound), bound, value)
                        constants.append(splat(builder, builder.trunc(value, U8), 8))
                    row = shuffle(builder, constants[0], constants[1], list(range(16)))
                    for place in places:
                        store(builder, row, plane, builder.add(place, column))
