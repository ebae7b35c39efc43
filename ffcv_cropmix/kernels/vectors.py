"""The vector code: loops over pixels, each defined in NumPy and compiled from LLVM's vector instructions.

Sixteen output rows at a time are the sixteen lanes of a vector. LLVM does not vectorise the same loops compiled by
numba: they take 2.7 times (`vertical`), 7 times (`horizontal`) and 50 times (`finish`) as long. The instructions are
LLVM's generic ones, so they run on any CPU; all use integers, so all CPUs give the same bytes.

Levels are uint16 in 1/256; `_weighted_sum` describes the coefficients. Arrays are flat and C-contiguous. Compiled code
does not check offsets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from .llvm import INDEX, U8, U16, U32, compiles, constant, index, load, shuffle, splat, store

LANES = 16
MAX_TRUNCATED_TAPS = 16
PILLOW_BITS = 22
REPLACE, ADD = 0, 1
RED_OF_RED, BLUE_OF_GREEN, RED_OF_GREEN, BLUE_OF_BLUE = 26345, -22553, 18734, -14942  # see `_rgb`, in 1/65536


class Taps(NamedTuple):
    """The inputs of each output position along an axis, and their weights."""

    starts: Any  # int32 (positions,): first input of each position
    coefficients: Any  # uint16 or int32 (positions * count,): see `_weighted_sum`
    count: Any  # inputs of each position


class Target(NamedTuple):
    """The place of a layer in the mix: output column x is column base + step * x of the mix."""

    begin: Any
    end: Any  # columns begin to end - 1
    base: Any
    step: Any
    top: Any
    bottom: Any  # lanes top to bottom - 1
    blend: Any  # REPLACE what is there, or ADD to it


class Colours(NamedTuple):
    """The places of the columns of blue and red, and how to resample them."""

    blue: Any  # blue's column k is column blue + k of the array
    red: Any
    taps: Any  # Taps
    centre: Any  # level of gray, including the layer's weight, 1/256


def _weighted_sum(coefficients: np.ndarray, levels: np.ndarray, decisive_taps: int = 0) -> np.ndarray:
    """Return the sum over the taps of coefficients[tap] * levels[tap], uint16.

    uint16 coefficients are in 1/65536. Up to MAX_TRUNCATED_TAPS taps (`decisive_taps`, if it is not 0), each product is
    truncated to 1/256 level; with more taps, only the sum is.

    int32 coefficients are in 1/2**22, with Pillow's arithmetic: whole levels in, whole levels out, rounded and clipped.
    """
    coefficients = coefficients.reshape(-1, *[1] * (levels.ndim - 1))
    if coefficients.dtype == np.int32:
        total = (coefficients * (levels >> 8).astype(np.int32)).sum(axis=0, dtype=np.int32)
        return np.clip(total + (1 << (PILLOW_BITS - 1)) >> PILLOW_BITS, 0, 255).astype(np.uint16) << 8
    products = coefficients * levels.astype(np.uint32)
    if (decisive_taps or len(products)) <= MAX_TRUNCATED_TAPS:
        return (products >> 16).sum(axis=0, dtype=np.uint16)
    return (products.sum(axis=0, dtype=np.uint32) >> 16).astype(np.uint16)


def vertical(image, origin, stride, taps, position, rows, start, count):
    """Resample `count` bytes of one output row: the weighted sum of some rows of an image.

    Args:
        image: uint8 (n,).
        origin: the first byte of row 0.
        stride: bytes from row to row.
        taps: Taps.
        position: which output row.
        rows: uint16 (n,); rows[start:] receives the levels.
    """
    offset = origin + taps.starts[position] * stride
    pixels = np.stack([image[offset + tap * stride :][:count] for tap in range(taps.count)])
    coefficients = taps.coefficients[position * taps.count :][: taps.count]
    rows[start : start + count] = _weighted_sum(coefficients, pixels.astype(np.uint16) << 8)


def transpose(rows, stride, columns, count):
    """Transpose the first `count` values, rounded up to a multiple of 8, of LANES rows of `stride` values."""
    count = (count + 7) // 8 * 8
    columns.reshape(-1, LANES)[:count] = rows[: LANES * stride].reshape(LANES, stride)[:, :count].T


def horizontal(columns, origin, taps, bias, permutation, mix, target):
    """Resample the output columns of a layer, all three channels, and blend them into the mix.

    Args:
        columns: uint16 (columns, 3, LANES): the layer's, from its column `origin` on.
        taps: Taps; the layer's weight is part of the coefficients.
        bias: level to add, 1/256.
        permutation: int64 (3,): output channel c is the layer's channel permutation[c].
        mix: uint16 (columns, 3, LANES).
        target: Target.
    """
    source = columns.reshape(-1, 3, LANES)
    for x in range(target.begin, target.end):
        values = source[taps.starts[x] - origin :][: taps.count][:, permutation]
        _blend(mix, target, x, _weighted_sum(taps.coefficients[x * taps.count :][: taps.count], values) + bias)


def _blend(mix: np.ndarray, target: Target, x: int, channels: np.ndarray) -> None:
    """Add output column x, (3, LANES), to what is in the mix, or replace that."""
    lanes = slice(target.top, target.bottom)
    place = mix.reshape(-1, 3, LANES)[target.base + target.step * x, :, lanes]
    place[:] = place * np.uint16(target.blend) + channels[:, lanes].astype(np.uint16)


def _rgb(luma: np.ndarray, blue: np.ndarray, red: np.ndarray, limit: int) -> np.ndarray:
    """Convert luma and centred colours to RGB, int64 (3, ...), clipped to 0 to `limit` (ITU-R BT.601, full range).

    Factors above 1/2 are split (1.402 = 1 + 0.402, 0.714 = 1 - 0.286, 1.772 = 2 - 0.228), so that the truncated
    products and the sums fit 16 bits. The colours' contribution to green is clipped to 16 bits, which changes no colour
    in gamut.
    """
    green = np.clip((RED_OF_GREEN * red >> 16) - red + (BLUE_OF_GREEN * blue >> 16), -(2**15), 2**15 - 1)
    channels = luma + red + (RED_OF_RED * red >> 16), luma + green, luma + 2 * blue + (BLUE_OF_BLUE * blue >> 16)
    return np.clip(channels, 0, limit)


def horizontal_planes(columns, origin, taps, bias, colours, limit, permutation, mix, target):
    """Resample planes as `horizontal` does, blue and red at another resolution than luma, then convert to RGB.

    Args:
        columns: uint16 (columns, LANES): luma's, from its column `origin` on, and blue's and red's, see `colours`.
        taps: Taps of luma. Their number decides how the products of all planes are truncated.
        bias: level to add to luma, 1/256.
        colours: Colours.
        limit: the highest level, weight included, 1/256.
        permutation, mix, target: as in `horizontal`.
    """
    source = columns.reshape(-1, LANES)

    def total(x: int, shift: int, of: Taps) -> np.ndarray:
        values = source[of.starts[x] + shift :][: of.count]
        return _weighted_sum(of.coefficients[x * of.count :][: of.count], values, taps.count).astype(np.int64)

    for x in range(target.begin, target.end):
        blue, red = (total(x, shift, colours.taps) - colours.centre for shift in (colours.blue, colours.red))
        channels = _rgb(total(x, -origin, taps) + bias, blue, red, limit)
        _blend(mix, target, x, channels[permutation])


def finish(mix, rows, out, offset, stride, count):
    """Round `rows` lanes of `count` columns to levels, and store them as rows of `stride` bytes in out[offset:]."""
    levels = (mix.reshape(-1, LANES)[:count, :rows] + np.uint16(128)) >> 8
    for row in range(rows):
        out.reshape(-1)[offset + row * stride :][:count] = levels[:, row]


def _emit_weighted_sums(
    builder: Any, taps: Taps, first: Any, levels_of: Callable[[Any], list[Any]], exact: bool
) -> list[Any]:
    """Emit `_weighted_sum` of the coefficients from `first` on with levels_of(0), levels_of(1), ...: lists of vectors.

    trunc(lshr(mul(zext, zext), 16)) is one instruction, vpmulhuw, which truncates the product. `exact` uses 32-bit
    products, which take 128 us instead of 51 for a crop of 375 x 500 px.
    Unrolling for each number of taps would make a pass 5 to 15 % faster, and compilation several times as long.
    """
    pillow = taps.coefficients.type.pointee.width == 32
    shapes = levels_of(index(0))  # LLVM drops loads that nothing uses
    narrow = shapes[0].type
    wide = ir.VectorType(U32, narrow.count)

    def cut(total: Any) -> Any:
        if pillow:
            total = builder.ashr(total, constant(wide, PILLOW_BITS))
            for relation, limit in (("<", 0), (">", 255)):
                limits = constant(wide, limit)
                total = builder.select(builder.icmp_signed(relation, total, limits), limits, total)
            return builder.trunc(builder.shl(total, constant(wide, 8)), narrow)
        return builder.trunc(builder.lshr(total, constant(wide, 16)), narrow)

    kind = wide if pillow or exact else narrow
    sums = [cgutils.alloca_once_value(builder, constant(kind, pillow << PILLOW_BITS - 1)) for _ in shapes]
    with cgutils.for_range(builder, taps.count, intp=INDEX) as loop:
        coefficient = builder.load(builder.gep(taps.coefficients, [builder.add(first, loop.index)]))
        coefficient = splat(builder, coefficient, wide.count)
        if not pillow:
            coefficient = builder.zext(coefficient, wide)
        for total, levels in zip(sums, levels_of(loop.index)):
            if pillow:
                levels = builder.lshr(levels, constant(narrow, 8))
            product = builder.mul(builder.zext(levels, wide), coefficient)
            if kind is narrow:
                product = cut(product)
            builder.store(builder.add(builder.load(total), product), total)
    totals = [builder.load(total) for total in sums]
    return totals if kind is narrow else [cut(total) for total in totals]


def _emit_few_or_many(builder: Any, taps: Taps, emit: Callable[[bool], None]) -> None:
    """Call emit(exact) for up to MAX_TRUNCATED_TAPS taps and for more; only once if that makes no difference."""
    if taps.coefficients.type.pointee.width == 32:
        emit(True)
        return
    with builder.if_else(builder.icmp_signed("<=", taps.count, index(MAX_TRUNCATED_TAPS))) as (few, many):
        with few:
            emit(False)
        with many:
            emit(True)


@compiles(vertical)
def _emit_vertical(builder, image, origin, stride, taps, position, rows, start, count):
    row = builder.sext(builder.load(builder.gep(taps.starts, [position])), INDEX)
    image = builder.gep(image, [builder.add(origin, builder.mul(row, stride))])
    rows, first = builder.gep(rows, [start]), builder.mul(position, taps.count)

    def chunks(exact: bool, lanes: int, vectors: int) -> None:
        # The last chunk is moved back to end with the columns. One vector at a time would take 1.3 times as long. One
        # value at a time below 64 columns would take 1.4 times as long for the planes of a JPEG: colours are narrow.
        last = builder.sub(count, index(lanes * vectors))
        with cgutils.for_range_slice(builder, index(0), count, index(lanes * vectors), INDEX) as (column, _):
            column = builder.select(builder.icmp_signed("<", column, last), column, last)

            def levels_of(tap: Any) -> list[Any]:
                row = builder.add(column, builder.mul(tap, stride))
                pixels = [load(builder, image, builder.add(row, index(lanes * k)), lanes) for k in range(vectors)]
                levels = [builder.zext(vector, ir.VectorType(U16, lanes)) for vector in pixels]
                return [builder.shl(vector, constant(vector.type, 8)) for vector in levels]

            totals = _emit_weighted_sums(builder, taps, first, levels_of, exact)
            for k, total in enumerate(totals):
                store(builder, total, rows, builder.add(column, index(lanes * k)))

    def emit(exact: bool) -> None:
        with builder.if_else(builder.icmp_signed(">=", count, index(64))) as (wide, narrow):
            with wide:
                chunks(exact, 32, 2)
            with narrow, builder.if_else(builder.icmp_signed(">=", count, index(16))) as (one, few):
                with one:
                    chunks(exact, 16, 1)
                with few:
                    chunks(exact, 1, 1)

    _emit_few_or_many(builder, taps, emit)


@compiles(transpose)
def _emit_transpose(builder, rows, stride, columns, count):
    # 8 columns at a time, as 8 vectors of 8 values of two rows: three rounds of interleaving within 128 bits, which are
    # cheap shuffles. Fused with `vertical` it takes 2.2 to 2.8 times as long: the sums no longer fit the registers.
    halves = [
        [lane + k + half + side * LANES for lane in (0, 8) for k in range(4) for side in (0, 1)] for half in (0, 4)
    ]
    with cgutils.for_range_slice(builder, index(0), count, index(8), INDEX) as (column, _):
        offsets = [builder.add(column, builder.mul(stride, index(row))) for row in range(LANES)]
        loaded = [load(builder, rows, offset, 8) for offset in offsets]
        vectors = [shuffle(builder, loaded[k], loaded[k + 8], list(range(16))) for k in range(8)]
        for _ in range(3):
            pairs = [(vectors[k], vectors[k + 4]) for k in range(4)]
            vectors = [shuffle(builder, *pair, half) for pair in pairs for half in halves]
        for k, vector in enumerate(vectors):
            store(builder, vector, columns, builder.mul(builder.add(column, index(k)), index(LANES)))


def _emit_blend(builder: Any, mix: Any, target: Target, places: list[Any]) -> Callable[[Any, list[Any]], None]:
    """Return a function that emits `_blend`: it blends the channels of an output column into the channels `places`.

    The code always loads and selects. Storing or adding without that takes 5 % less time, but three copies of all
    callers.
    """
    number = ir.Constant(ir.VectorType(U16, LANES), list(range(LANES)))
    top, bottom = (splat(builder, builder.trunc(value, U16), LANES) for value in (target.top, target.bottom))
    inside = builder.and_(builder.icmp_unsigned(">=", number, top), builder.icmp_unsigned("<", number, bottom))
    kept = splat(builder, builder.neg(builder.trunc(target.blend, U16)), LANES)  # all bits, or none
    offsets = [builder.mul(place, index(LANES)) for place in places]

    def blend(x: Any, channels: list[Any]) -> None:
        column = builder.mul(builder.add(target.base, builder.mul(target.step, x)), index(3 * LANES))
        for place, channel in zip(offsets, channels):
            place = builder.add(column, place)
            old = load(builder, mix, place, LANES)
            new = builder.add(channel, builder.and_(old, kept))
            store(builder, builder.select(inside, new, old), mix, place)

    return blend


@compiles(horizontal)
def _emit_horizontal(builder, columns, origin, taps, bias, permutation, mix, target):
    channels = [builder.mul(builder.load(builder.gep(permutation, [index(k)])), index(LANES)) for k in range(3)]
    bias = splat(builder, builder.trunc(bias, U16), LANES)
    blend = _emit_blend(builder, mix, target, [index(k) for k in range(3)])

    def emit(exact: bool) -> None:
        with cgutils.for_range_slice(builder, target.begin, target.end, index(1), INDEX) as (x, _):
            start = builder.sext(builder.load(builder.gep(taps.starts, [x])), INDEX)
            source = builder.mul(builder.sub(start, origin), index(3 * LANES))

            def levels_of(tap: Any) -> list[Any]:
                column = builder.add(source, builder.mul(tap, index(3 * LANES)))
                return [load(builder, columns, builder.add(column, channel), LANES) for channel in channels]

            totals = _emit_weighted_sums(builder, taps, builder.mul(x, taps.count), levels_of, exact)
            blend(x, [builder.add(total, bias) for total in totals])

    _emit_few_or_many(builder, taps, emit)


def _emit_rgb(builder: Any, luma: Any, blue: Any, red: Any, limit: Any) -> list[Any]:
    """Emit `_rgb` of 16-bit vectors. `luma` and `limit` are 2**15 lower, so that saturating signed sums clip at 0.

    The sums are vpaddsw; trunc(lshr(mul(sext, sext), 16)) is one instruction, vpmulhw. With 32-bit products, and planes
    stored between resampling and mixing, `horizontal_planes` took 97 us per image instead of 48.
    """
    kind = luma.type
    wide = ir.VectorType(U32, LANES)
    name = f"llvm.sadd.sat.v{LANES}i16"
    saturating = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, (kind, kind)), name)

    def times(value: Any, factor: int) -> Any:
        product = builder.mul(builder.sext(value, wide), constant(wide, factor))
        return builder.trunc(builder.lshr(product, constant(wide, 16)), kind)

    def plus(first: Any, second: Any) -> Any:
        return builder.call(saturating, [first, second])

    green = plus(builder.sub(times(red, RED_OF_GREEN), red), times(blue, BLUE_OF_GREEN))
    channels = (  # both terms that are added have the same sign, so clipping the first sum changes nothing
        plus(plus(luma, red), times(red, RED_OF_RED)),
        plus(luma, green),
        plus(plus(luma, blue), builder.add(blue, times(blue, BLUE_OF_BLUE))),
    )
    clipped = (builder.select(builder.icmp_signed("<", value, limit), value, limit) for value in channels)
    return [builder.add(value, constant(kind, 2**15)) for value in clipped]


@compiles(horizontal_planes)
def _emit_horizontal_planes(builder, columns, origin, taps, bias, colours, limit, permutation, mix, target):
    sources = [builder.load(builder.gep(permutation, [index(k)])) for k in range(3)]
    is_first, is_second = ([builder.icmp_signed("==", source, index(k)) for k in range(3)] for source in sources[:2])
    places = [  # the target of each channel of the layer; selecting among vectors takes 1.3 times as long
        builder.select(is_first[k], index(0), builder.select(is_second[k], index(1), index(2))) for k in range(3)
    ]
    bias, limit = (builder.sub(level, index(2**15)) for level in (bias, limit))
    bias, centre, limit = (splat(builder, builder.trunc(level, U16), LANES) for level in (bias, colours.centre, limit))
    blend = _emit_blend(builder, mix, target, places)

    def emit(exact: bool) -> None:
        with cgutils.for_range_slice(builder, target.begin, target.end, index(1), INDEX) as (x, _):

            def totals(taps: Taps, shifts: list[Any]) -> list[Any]:
                start = builder.sext(builder.load(builder.gep(taps.starts, [x])), INDEX)
                firsts = [builder.add(start, shift) for shift in shifts]

                def levels_of(tap: Any) -> list[Any]:
                    values = (builder.mul(builder.add(first, tap), index(LANES)) for first in firsts)
                    return [load(builder, columns, value, LANES) for value in values]

                return _emit_weighted_sums(builder, taps, builder.mul(x, taps.count), levels_of, exact)

            (luma,) = totals(taps, [builder.neg(origin)])
            planes = totals(colours.taps, [colours.blue, colours.red])
            of_blue, of_red = (builder.sub(colour, centre) for colour in planes)
            blend(x, _emit_rgb(builder, builder.add(luma, bias), of_blue, of_red, limit))

    _emit_few_or_many(builder, taps, emit)


@compiles(finish)
def _emit_finish(builder, mix, rows, out, offset, stride, count):
    out = builder.gep(out, [offset])

    def levels(column: Any, lanes: int) -> Any:
        vector = load(builder, mix, builder.mul(column, index(LANES)), lanes)
        rounded = builder.lshr(builder.add(vector, constant(vector.type, 128)), constant(vector.type, 8))
        return builder.trunc(rounded, ir.VectorType(U8, lanes))

    halves = [[half + k + side * LANES for k in range(8) for side in (0, 1)] for half in (0, 8)]
    all_rows, chunk = builder.icmp_signed("==", rows, index(LANES)), builder.icmp_signed(">=", count, index(LANES))
    with builder.if_else(builder.and_(all_rows, chunk)) as (whole, partly):
        with whole:  # 16 x 16 bytes at a time, four rounds of interleaving; the last chunk ends with the columns
            last = builder.sub(count, index(LANES))
            with cgutils.for_range_slice(builder, index(0), count, index(LANES), INDEX) as (column, _):
                column = builder.select(builder.icmp_signed("<", column, last), column, last)
                vectors = [levels(builder.add(column, index(k)), LANES) for k in range(LANES)]
                for _ in range(4):
                    pairs = [(vectors[k], vectors[k + 8]) for k in range(8)]
                    vectors = [shuffle(builder, *pair, half) for pair in pairs for half in halves]
                for row, vector in enumerate(vectors):
                    store(builder, vector, out, builder.add(column, builder.mul(stride, index(row))))
        with (
            partly,
            cgutils.for_range(builder, count, intp=INDEX) as outer,
            cgutils.for_range(builder, rows, intp=INDEX) as inner,
        ):
            place = builder.add(builder.mul(outer.index, index(LANES)), inner.index)
            value = builder.lshr(
                builder.add(builder.load(builder.gep(mix, [place])), ir.Constant(U16, 128)), ir.Constant(U16, 8)
            )
            at = builder.add(outer.index, builder.mul(inner.index, stride))
            builder.store(builder.trunc(value, U8), builder.gep(out, [at]))
