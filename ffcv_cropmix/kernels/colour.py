"""Convert samples to RGB pixels: libjpeg's upsampling of colours and its conversion from YCbCr, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from .idct import _I16, _I32, _LONGS, _WORDS, _interleave, _saturate, _weave, _weighted_pairs
from .llvm import INDEX, U8, compiles, constant, index, load, shuffle, splat, store

PIXELS, GROUP = 32, 16  # at a time

# ITU-R BT.601, full range (JFIF): what libjpeg adds to luma. Each sum of products is rounded.
RED = 123, 44, 747  # (factor * red + offset) * second factor / 65536; 123 * 747 is 1.402
BLUE = 91, 59, 556  # the same for blue, plus blue itself: 1.772
GREEN_OF_BLUE, GREEN_OF_RED = -11277, -23401  # in 1/32768: -0.344, -0.714


def blend_rows(samples, near, far, near_weight, far_weight, sums, start, count):
    """Compute near_weight * samples[near:] + far_weight * samples[far:], two rows of a plane, into sums[start:].

    Args:
        samples: uint8 (n,).
        near, far: offsets of the rows in `samples`.
        near_weight, far_weight: integers; the sums must fit uint16.
        sums: uint16 (n,), filled from `start` on.
        start: offset in `sums`.
        count: number of sums. It is rounded up to a multiple of GROUP; values beyond `count` are undefined.
    """
    first, second = (samples[at : at + count].astype(np.uint16) for at in (near, far))
    sums[start : start + count] = first * np.uint16(near_weight) + second * np.uint16(far_weight)


def widen(sums, start, bits, before, after, samples, target, count):
    """Make two samples of each sum: 3/4 of the sum plus 1/4 of its left neighbour, and the same with its right one.

    Args:
        sums: uint16 (n,), read from sums[start - 1] to sums[start + count].
        start: offset of the first sum.
        bits: number of bits to shift right by: log2 of the sum of all weights.
        before, after: rounding terms of the left and the right sample, added before the shift.
        samples: uint8 (n,), filled from `target` on.
        target: offset in `samples`.
        count: number of sums. It is rounded up to a multiple of GROUP; samples beyond 2 * `count` are undefined.
    """
    middle, left, right = (sums[start + k : start + k + count] for k in (0, -1, 1))
    pairs = np.stack([3 * middle + left + np.uint16(before), 3 * middle + right + np.uint16(after)], axis=1)
    samples[target : target + 2 * count] = (pairs >> bits).ravel()


def ycbcr_to_rgb(samples, luma, blue, red, pixels, start, count):
    """Convert `count` pixels of a row, from samples[luma:], samples[blue:], samples[red:], to RGB at pixels[start:].

    Both arrays are uint8 (n,). `count` is rounded up to a multiple of PIXELS; pixels beyond `count` are undefined.
    """
    y = samples[luma : luma + count].astype(np.int32)
    b, r = (samples[at : at + count].astype(np.int32) - 128 for at in (blue, red))
    of_red, of_blue = ((factor * value + add) * second >> 16 for (factor, add, second), value in ((RED, r), (BLUE, b)))
    channels = y + of_red, y + (GREEN_OF_BLUE * b + GREEN_OF_RED * r + 2**14 >> 15), y + b + of_blue
    pixels[start : start + 3 * count] = np.clip(np.stack(channels, axis=1), 0, 255).ravel()


@compiles(blend_rows)
def _emit_blend_rows(builder, samples, near, far, near_weight, far_weight, sums, start, count):
    sums = builder.gep(sums, [start])
    rows = [builder.gep(samples, [at]) for at in (near, far)]
    weights = [splat(builder, builder.trunc(weight, _I16), GROUP) for weight in (near_weight, far_weight)]
    with cgutils.for_range_slice(builder, index(0), count, index(GROUP), INDEX) as (column, _):
        values = [builder.zext(load(builder, row, column, GROUP), _WORDS) for row in rows]
        store(builder, builder.add(*(builder.mul(*both) for both in zip(values, weights))), sums, column)


@compiles(widen)
def _emit_widen(builder, sums, start, bits, before, after, samples, target, count):
    sums, target = builder.gep(sums, [start]), builder.gep(samples, [target])
    bits, before, after = (splat(builder, builder.trunc(value, _I16), GROUP) for value in (bits, before, after))
    with cgutils.for_range_slice(builder, index(0), count, index(GROUP), INDEX) as (column, _):
        left, middle, right = (load(builder, sums, builder.add(column, index(k)), GROUP) for k in (-1, 0, 1))
        middle = builder.mul(middle, constant(_WORDS, 3))
        first, second = (
            builder.lshr(builder.add(builder.add(middle, side), rounding), bits)
            for side, rounding in ((left, before), (right, after))
        )
        both = builder.or_(first, builder.shl(second, constant(_WORDS, 8)))
        pairs = builder.bitcast(both, ir.VectorType(U8, 2 * GROUP))
        store(builder, pairs, target, builder.mul(column, index(2)))


def _emit_convert(builder: Any, y: Any, b: Any, r: Any) -> list[Any]:
    """Emit the conversion of 16 lanes of int16 to RGB, not clipped."""

    def moved(value: Any, shift: Any, bits: int) -> Any:
        return builder.bitcast(shift(builder.bitcast(value, _LONGS), constant(_LONGS, bits)), _WORDS)

    def times(value: Any, factors: tuple[int, int, int]) -> Any:
        value = builder.add(builder.mul(value, constant(_WORDS, factors[0])), constant(_WORDS, factors[1]))
        wide = ir.VectorType(_I32, 16)
        product = builder.mul(builder.sext(value, wide), constant(wide, factors[2]))
        return builder.trunc(builder.lshr(product, constant(wide, 16)), _WORDS)  # vpmulhw

    b, r = (builder.sub(value, constant(_WORDS, 128)) for value in (b, r))
    # Blue and red of even pixels, and of odd pixels, become pairs of lanes: cheaper than interleaving.
    pairs = _weave(builder, b, moved(r, builder.shl, 16)), _weave(builder, moved(b, builder.lshr, 16), r)
    even, odd = (
        builder.add(_weighted_pairs(builder, pair, GREEN_OF_BLUE, GREEN_OF_RED), constant(_LONGS, 2**14))
        for pair in pairs
    )
    green = _weave(builder, moved(even, builder.lshr, 15), moved(odd, builder.shl, 1))
    return [builder.add(y, part) for part in (times(r, RED), green, builder.add(b, times(b, BLUE)))]


@compiles(ycbcr_to_rgb)
def _emit_ycbcr_to_rgb(builder, samples, luma, blue, red, pixels, start, count):
    sources = [builder.gep(samples, [at]) for at in (luma, blue, red)]
    pixels = builder.gep(pixels, [start])
    zero = constant(ir.VectorType(U8, PIXELS), 0)
    with cgutils.for_range_slice(builder, index(0), count, index(PIXELS), INDEX) as (column, _):
        halves = zip(*(_interleave(builder, load(builder, source, column, PIXELS), zero) for source in sources))
        channels = [_emit_convert(builder, *(builder.bitcast(half, _WORDS) for half in planes)) for planes in halves]
        red, green, blue = (_saturate(builder, low, high, 0, 255, U8) for low, high in zip(*channels))
        first = shuffle(builder, red, green, list(range(2 * PIXELS)))
        second = shuffle(builder, blue, blue, list(range(2 * PIXELS)))
        lanes = [channel * PIXELS + pixel for pixel in range(PIXELS) for channel in range(3)]
        store(builder, shuffle(builder, first, second, lanes), pixels, builder.mul(column, index(3)))
