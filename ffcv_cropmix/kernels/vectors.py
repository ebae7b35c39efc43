"""The vector code: loops over pixels, each defined in NumPy and compiled from LLVM's vector instructions.

Sixteen output rows at a time are the sixteen lanes of a vector. As loops that numba compiles they take 2.7 times as
long (`vertical`), 7 times (`horizontal`) and 50 times (`finish`): LLVM does not vectorise them. The instructions are
LLVM's generic ones, so any CPU has them; all are of integers, so all CPUs give the same bytes.

Levels are uint16 in 1/256; coefficients as `_weighted_sum` says. Arrays are flat and C-contiguous. In compiled code
nothing checks an offset.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

LANES = 16
MAX_TRUNCATED_TAPS = 16
PILLOW_BITS = 22
RED_OF_RED, BLUE_OF_GREEN, RED_OF_GREEN, BLUE_OF_BLUE = 26345, -22553, 18734, -14942  # see `_rgb`, in 1/65536


def _weighted_sum(coefficients: np.ndarray, levels: np.ndarray, decisive_taps: int = 0) -> np.ndarray:
    """The sum over the taps of coefficients[tap] * levels[tap], uint16.

    Coefficients of uint16, in 1/65536: each product is cut to 1/256 level, or with many taps, of this sum or of the
    one that decides for it, only their sum.
    Coefficients of int32, in 1/2**22: whole levels in, whole levels out, rounded and clipped: Pillow's arithmetic.
    """
    coefficients = coefficients.reshape(-1, *[1] * (levels.ndim - 1))
    if coefficients.dtype == np.int32:
        total = (coefficients * (levels >> 8).astype(np.int32)).sum(axis=0, dtype=np.int32)
        return np.clip(total + (1 << (PILLOW_BITS - 1)) >> PILLOW_BITS, 0, 255).astype(np.uint16) << 8
    products = coefficients * levels.astype(np.uint32)
    if (decisive_taps or len(products)) <= MAX_TRUNCATED_TAPS:
        return (products >> 16).sum(axis=0, dtype=np.uint16)
    return (products.sum(axis=0, dtype=np.uint32) >> 16).astype(np.uint16)


def vertical(image, offset, stride, coefficients, first, taps, rows, start, count):
    """Resample `count` bytes of one output row: the weighted sum of `taps` rows of an image.

    Args:
        image: uint8; offset: its first byte; stride: bytes from row to row.
        coefficients: from coefficients[first] on.
        rows: uint16, to rows[start] and on, levels.
    """
    pixels = np.stack([image[offset + tap * stride :][:count] for tap in range(taps)])
    rows[start : start + count] = _weighted_sum(coefficients[first : first + taps], pixels.astype(np.uint16) << 8)


def transpose(rows, stride, columns, count):
    """Turn LANES rows of `stride` values into columns of LANES: the first `count`, rounded up to a multiple of 8."""
    count = (count + 7) // 8 * 8
    columns.reshape(-1, LANES)[:count] = rows[: LANES * stride].reshape(LANES, stride)[:, :count].T


def horizontal(
    columns, origin, starts, coefficients, taps, bias, begin, end, permutation, mix, base, step, top, bottom, add
):
    """Resample output columns begin to end - 1 of a layer, all three channels, and put them into the mix.

    Args:
        columns: uint16 (columns, 3, LANES): the layer's from its column `origin` on.
        starts: int32, first tap of each output column; coefficients: (output columns, taps), weight included.
        bias: level to add, 1/256.
        permutation: output channel c is the layer's permutation[c].
        mix: uint16 (columns, 3, LANES); output column x goes to base + step * x, lanes top to bottom - 1.
        add: to what is there, or instead of it.
    """
    source, target = columns.reshape(-1, 3, LANES), mix.reshape(-1, 3, LANES)
    for x in range(begin, end):
        values = source[starts[x] - origin :][:taps][:, permutation]
        total = _weighted_sum(coefficients[x * taps :][:taps], values) + np.uint16(bias)
        lanes = target[base + step * x, :, top:bottom]
        lanes[:] = lanes * np.uint16(add) + total[:, top:bottom]


def _rgb(luma: np.ndarray, blue: np.ndarray, red: np.ndarray, limit: int) -> np.ndarray:
    """(3, ...): RGB of luma and centred colours (ITU-R BT.601, full range: JFIF), int64, clipped to 0 to `limit`.

    A factor beyond 1/2 is split: 1.402 = 1 + 0.402, 0.714 = 1 - 0.286, 1.772 = 2 - 0.228, so that its product, cut,
    and the sums fit 16 bits; green's part of the colours is clipped to them, which changes nothing that is in gamut.
    """
    green = np.clip((RED_OF_GREEN * red >> 16) - red + (BLUE_OF_GREEN * blue >> 16), -(2**15), 2**15 - 1)
    channels = luma + red + (RED_OF_RED * red >> 16), luma + green, luma + 2 * blue + (BLUE_OF_BLUE * blue >> 16)
    return np.clip(channels, 0, limit)


def horizontal_planes(
    columns,
    origin,
    starts,
    coefficients,
    taps,
    bias,
    blue,
    red,
    half_starts,
    half_coefficients,
    half_taps,
    centre,
    limit,
    begin,
    end,
    permutation,
    mix,
    base,
    step,
    top,
    bottom,
    add,
):
    """`horizontal` from planes of luma and, at another resolution, blue and red: RGB is made of what is resampled.

    Args:
        columns: uint16 (columns, LANES): luma's from its column `origin` on; a column of blue is `blue` columns after
            its number, the same of red `red` columns.
        half_starts, half_coefficients, half_taps: as those of luma, whose number of taps decides how all are cut.
        bias: level to add to luma; centre: that of blue and red without colour; limit: the highest level; all of
            this layer, weight included, 1/256.
        The rest as `horizontal` has it.
    """
    source, target = columns.reshape(-1, LANES), mix.reshape(-1, 3, LANES)

    def total(x: int, shift: int, starts: np.ndarray, coefficients: np.ndarray, count: int) -> np.ndarray:
        values = source[starts[x] + shift :][:count]
        return _weighted_sum(coefficients[x * count :][:count], values, taps).astype(np.int64)

    half = half_starts, half_coefficients, half_taps
    for x in range(begin, end):
        luma = total(x, -origin, starts, coefficients, taps) + bias
        channels = _rgb(luma, total(x, blue, *half) - centre, total(x, red, *half) - centre, limit).astype(np.uint16)
        lanes = target[base + step * x, :, top:bottom]
        lanes[:] = lanes * np.uint16(add) + channels[permutation, top:bottom]


def finish(mix, rows, out, offset, stride, count):
    """Round `rows` lanes of `count` columns to levels, as rows of `stride` bytes of uint8 `out` from `offset` on."""
    levels = (mix.reshape(-1, LANES)[:count, :rows] + np.uint16(128)) >> 8
    for row in range(rows):
        out.reshape(-1)[offset + row * stride :][:count] = levels[:, row]


_U8, _U16, _U32, _INDEX = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _compiles(definition: Callable[..., None]) -> Callable[[Callable[..., None]], None]:
    """Compile calls of `definition` to what the decorated function emits.

    That gets the builder, then the arguments: of an array the address of its first element, of a number an int64.
    """

    def register(emit: Callable[..., None]) -> None:
        def typer(*arguments: Any) -> Any:
            return types.void(*(kind if isinstance(kind, types.Array) else types.int64 for kind in arguments))

        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = [
                cgutils.create_struct_proxy(kind)(context, builder, value).data
                if isinstance(kind, types.Array)
                else value
                for kind, value in zip(signature.args, arguments)
            ]
            emit(builder, *values)
            return context.get_dummy_value()

        typer.__signature__ = inspect.signature(definition)  # type: ignore[attr-defined]
        type_callable(definition)(lambda context: typer)
        lower_builtin(definition, types.VarArg(types.Any))(lower)

    return register


def _index(value: int) -> Any:
    return ir.Constant(_INDEX, value)


def _constant(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(_U32, 0))
    return builder.shuffle_vector(one, undefined, _constant(ir.VectorType(_U32, lanes), 0))


def _shuffle(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_U32, len(lanes)), lanes))


def _load(builder: Any, address: Any, offset: Any, lanes: int) -> Any:
    kind = ir.VectorType(address.type.pointee, lanes)
    value = builder.load(builder.bitcast(builder.gep(address, [offset]), kind.as_pointer()))
    value.align = kind.element.width // 8
    return value


def _store(builder: Any, vector: Any, address: Any, offset: Any) -> None:
    target = builder.bitcast(builder.gep(address, [offset]), vector.type.as_pointer())
    builder.store(vector, target).align = vector.type.element.width // 8


def _emit_weighted_sums(
    builder: Any, coefficients: Any, first: Any, taps: Any, load: Callable[[Any], list[Any]], exact: bool
) -> list[Any]:
    """`_weighted_sum` of the coefficients from `first` on and load(0), ... load(taps - 1), lists of vectors.

    trunc(lshr(mul(zext, zext), 16)) is one instruction, vpmulhuw, that cuts the product. Rounded, it is a product of
    32 bits: 128 us instead of 51 for a crop of 375 x 500 px. `exact` takes that.
    Unrolled for each number of taps a pass takes 5 to 15 % less, and the compiler several times as long.
    """
    pillow = coefficients.type.pointee.width == 32
    shapes = load(_index(0))  # LLVM drops loads that nothing uses
    narrow = shapes[0].type
    wide = ir.VectorType(_U32, narrow.count)

    def cut(total: Any) -> Any:
        if pillow:
            total = builder.ashr(total, _constant(wide, PILLOW_BITS))
            for relation, limit in (("<", 0), (">", 255)):
                limits = _constant(wide, limit)
                total = builder.select(builder.icmp_signed(relation, total, limits), limits, total)
            return builder.trunc(builder.shl(total, _constant(wide, 8)), narrow)
        return builder.trunc(builder.lshr(total, _constant(wide, 16)), narrow)

    kind = wide if pillow or exact else narrow
    sums = [cgutils.alloca_once_value(builder, _constant(kind, pillow << PILLOW_BITS - 1)) for _ in shapes]
    with cgutils.for_range(builder, taps, intp=_INDEX) as loop:
        coefficient = builder.load(builder.gep(coefficients, [builder.add(first, loop.index)]))
        coefficient = _splat(builder, coefficient, wide.count)
        if not pillow:
            coefficient = builder.zext(coefficient, wide)
        for total, levels in zip(sums, load(loop.index)):
            if pillow:
                levels = builder.lshr(levels, _constant(narrow, 8))
            product = builder.mul(builder.zext(levels, wide), coefficient)
            if kind is narrow:
                product = cut(product)
            builder.store(builder.add(builder.load(total), product), total)
    totals = [builder.load(total) for total in sums]
    return totals if kind is narrow else [cut(total) for total in totals]


def _emit_few_or_many(builder: Any, coefficients: Any, taps: Any, emit: Callable[[bool], None]) -> None:
    """emit(exact) for up to MAX_TRUNCATED_TAPS taps and for more; once where that makes no difference."""
    if coefficients.type.pointee.width == 32:
        emit(True)
        return
    with builder.if_else(builder.icmp_signed("<=", taps, _index(MAX_TRUNCATED_TAPS))) as (few, many):
        with few:
            emit(False)
        with many:
            emit(True)


@_compiles(vertical)
def _emit_vertical(builder, image, offset, stride, coefficients, first, taps, rows, start, count):
    image, rows = builder.gep(image, [offset]), builder.gep(rows, [start])

    def chunks(exact: bool, lanes: int, vectors: int) -> None:
        # The last chunk is moved back to end with the columns. One vector at a time takes 1.3 times as long; below 64
        # columns, one value at a time instead 1.4 times over all of a JPEG's planes, whose colours have few.
        last = builder.sub(count, _index(lanes * vectors))
        with cgutils.for_range_slice(builder, _index(0), count, _index(lanes * vectors), _INDEX) as (column, _):
            column = builder.select(builder.icmp_signed("<", column, last), column, last)

            def load(tap: Any) -> list[Any]:
                row = builder.add(column, builder.mul(tap, stride))
                pixels = [_load(builder, image, builder.add(row, _index(lanes * k)), lanes) for k in range(vectors)]
                levels = [builder.zext(vector, ir.VectorType(_U16, lanes)) for vector in pixels]
                return [builder.shl(vector, _constant(vector.type, 8)) for vector in levels]

            totals = _emit_weighted_sums(builder, coefficients, first, taps, load, exact)
            for k, total in enumerate(totals):
                _store(builder, total, rows, builder.add(column, _index(lanes * k)))

    def emit(exact: bool) -> None:
        with builder.if_else(builder.icmp_signed(">=", count, _index(64))) as (wide, narrow):
            with wide:
                chunks(exact, 32, 2)
            with narrow, builder.if_else(builder.icmp_signed(">=", count, _index(16))) as (one, few):
                with one:
                    chunks(exact, 16, 1)
                with few:
                    chunks(exact, 1, 1)

    _emit_few_or_many(builder, coefficients, taps, emit)


@_compiles(transpose)
def _emit_transpose(builder, rows, stride, columns, count):
    # 8 columns at a time, as 8 vectors of two rows' 8 values: three rounds of interleaving within 128 bits, the cheap
    # shuffles. Fused with `vertical` it takes 2.2 to 2.8 times as long: the sums no longer fit the registers.
    halves = [
        [lane + k + half + side * LANES for lane in (0, 8) for k in range(4) for side in (0, 1)] for half in (0, 4)
    ]
    with cgutils.for_range_slice(builder, _index(0), count, _index(8), _INDEX) as (column, _):
        offsets = [builder.add(column, builder.mul(stride, _index(row))) for row in range(LANES)]
        loaded = [_load(builder, rows, offset, 8) for offset in offsets]
        vectors = [_shuffle(builder, loaded[k], loaded[k + 8], list(range(16))) for k in range(8)]
        for _ in range(3):
            pairs = [(vectors[k], vectors[k + 4]) for k in range(4)]
            vectors = [_shuffle(builder, *pair, half) for pair in pairs for half in halves]
        for k, vector in enumerate(vectors):
            _store(builder, vector, columns, builder.mul(builder.add(column, _index(k)), _index(LANES)))


def _blend(
    builder: Any, mix: Any, base: Any, step: Any, top: Any, bottom: Any, add: Any, places: list[Any]
) -> Callable[[Any, list[Any]], None]:
    """What puts the channels of an output column into the mix's channels `places`, as `horizontal` says.

    Always loads and selects: to store or add without that takes 5 % less, and three copies of all that calls it.
    """
    number = ir.Constant(ir.VectorType(_U16, LANES), list(range(LANES)))
    top, bottom = (_splat(builder, builder.trunc(value, _U16), LANES) for value in (top, bottom))
    inside = builder.and_(builder.icmp_unsigned(">=", number, top), builder.icmp_unsigned("<", number, bottom))
    kept = _splat(builder, builder.neg(builder.trunc(add, _U16)), LANES)  # all bits, or none
    offsets = [builder.mul(place, _index(LANES)) for place in places]

    def blend(x: Any, channels: list[Any]) -> None:
        target = builder.mul(builder.add(base, builder.mul(step, x)), _index(3 * LANES))
        for place, channel in zip(offsets, channels):
            place = builder.add(target, place)
            old = _load(builder, mix, place, LANES)
            new = builder.add(channel, builder.and_(old, kept))
            _store(builder, builder.select(inside, new, old), mix, place)

    return blend


@_compiles(horizontal)
def _emit_horizontal(
    builder,
    columns,
    origin,
    starts,
    coefficients,
    taps,
    bias,
    begin,
    end,
    permutation,
    mix,
    base,
    step,
    top,
    bottom,
    add,
):
    channels = [builder.mul(builder.load(builder.gep(permutation, [_index(k)])), _index(LANES)) for k in range(3)]
    bias = _splat(builder, builder.trunc(bias, _U16), LANES)
    blend = _blend(builder, mix, base, step, top, bottom, add, [_index(k) for k in range(3)])

    def emit(exact: bool) -> None:
        with cgutils.for_range_slice(builder, begin, end, _index(1), _INDEX) as (x, _):
            start = builder.sext(builder.load(builder.gep(starts, [x])), _INDEX)
            source = builder.mul(builder.sub(start, origin), _index(3 * LANES))

            def load(tap: Any) -> list[Any]:
                column = builder.add(source, builder.mul(tap, _index(3 * LANES)))
                return [_load(builder, columns, builder.add(column, channel), LANES) for channel in channels]

            totals = _emit_weighted_sums(builder, coefficients, builder.mul(x, taps), taps, load, exact)
            blend(x, [builder.add(total, bias) for total in totals])

    _emit_few_or_many(builder, coefficients, taps, emit)


def _emit_rgb(builder: Any, luma: Any, blue: Any, red: Any, limit: Any) -> list[Any]:
    """`_rgb` of vectors of 16 bits, `luma` and `limit` 2**15 lower: signed, sums that saturate (vpaddsw) clip at 0.

    trunc(lshr(mul(sext, sext), 16)) is one instruction, vpmulhw. With products of 32 bits, and planes stored between
    resampling and mixing, `horizontal_planes` took 97 us an image instead of 48.
    """
    kind = luma.type
    wide = ir.VectorType(_U32, LANES)
    name = f"llvm.sadd.sat.v{LANES}i16"
    saturating = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, (kind, kind)), name)

    def times(value: Any, factor: int) -> Any:
        product = builder.mul(builder.sext(value, wide), _constant(wide, factor))
        return builder.trunc(builder.lshr(product, _constant(wide, 16)), kind)

    def plus(first: Any, second: Any) -> Any:
        return builder.call(saturating, [first, second])

    green = plus(builder.sub(times(red, RED_OF_GREEN), red), times(blue, BLUE_OF_GREEN))
    channels = (  # what is added twice has one sign: that the first sum is clipped changes nothing
        plus(plus(luma, red), times(red, RED_OF_RED)),
        plus(luma, green),
        plus(plus(luma, blue), builder.add(blue, times(blue, BLUE_OF_BLUE))),
    )
    clipped = (builder.select(builder.icmp_signed("<", value, limit), value, limit) for value in channels)
    return [builder.add(value, _constant(kind, 2**15)) for value in clipped]


@_compiles(horizontal_planes)
def _emit_horizontal_planes(
    builder,
    columns,
    origin,
    starts,
    coefficients,
    taps,
    bias,
    blue,
    red,
    half_starts,
    half_coefficients,
    half_taps,
    centre,
    limit,
    begin,
    end,
    permutation,
    mix,
    base,
    step,
    top,
    bottom,
    add,
):
    sources = [builder.load(builder.gep(permutation, [_index(k)])) for k in range(3)]
    is_first, is_second = ([builder.icmp_signed("==", source, _index(k)) for k in range(3)] for source in sources[:2])
    places = [  # where each channel of the layer goes; to select among vectors takes 1.3 times as long
        builder.select(is_first[k], _index(0), builder.select(is_second[k], _index(1), _index(2))) for k in range(3)
    ]
    bias, limit = (builder.sub(level, _index(2**15)) for level in (bias, limit))
    bias, centre, limit = (_splat(builder, builder.trunc(level, _U16), LANES) for level in (bias, centre, limit))
    blend = _blend(builder, mix, base, step, top, bottom, add, places)

    def emit(exact: bool) -> None:
        with cgutils.for_range_slice(builder, begin, end, _index(1), _INDEX) as (x, _):

            def totals(starts: Any, coefficients: Any, taps: Any, shifts: list[Any]) -> list[Any]:
                start = builder.sext(builder.load(builder.gep(starts, [x])), _INDEX)
                firsts = [builder.add(start, shift) for shift in shifts]

                def load(tap: Any) -> list[Any]:
                    values = (builder.mul(builder.add(first, tap), _index(LANES)) for first in firsts)
                    return [_load(builder, columns, value, LANES) for value in values]

                return _emit_weighted_sums(builder, coefficients, builder.mul(x, taps), taps, load, exact)

            (luma,) = totals(starts, coefficients, taps, [builder.neg(origin)])
            colours = totals(half_starts, half_coefficients, half_taps, [blue, red])
            of_blue, of_red = (builder.sub(colour, centre) for colour in colours)
            blend(x, _emit_rgb(builder, builder.add(luma, bias), of_blue, of_red, limit))

    _emit_few_or_many(builder, coefficients, taps, emit)


@_compiles(finish)
def _emit_finish(builder, mix, rows, out, offset, stride, count):
    out = builder.gep(out, [offset])

    def levels(column: Any, lanes: int) -> Any:
        vector = _load(builder, mix, builder.mul(column, _index(LANES)), lanes)
        rounded = builder.lshr(builder.add(vector, _constant(vector.type, 128)), _constant(vector.type, 8))
        return builder.trunc(rounded, ir.VectorType(_U8, lanes))

    halves = [[half + k + side * LANES for k in range(8) for side in (0, 1)] for half in (0, 8)]
    all_rows, chunk = builder.icmp_signed("==", rows, _index(LANES)), builder.icmp_signed(">=", count, _index(LANES))
    with builder.if_else(builder.and_(all_rows, chunk)) as (whole, partly):
        with whole:  # 16 x 16 bytes at a time, four rounds of interleaving; the last chunk ends with the columns
            last = builder.sub(count, _index(LANES))
            with cgutils.for_range_slice(builder, _index(0), count, _index(LANES), _INDEX) as (column, _):
                column = builder.select(builder.icmp_signed("<", column, last), column, last)
                vectors = [levels(builder.add(column, _index(k)), LANES) for k in range(LANES)]
                for _ in range(4):
                    pairs = [(vectors[k], vectors[k + 8]) for k in range(8)]
                    vectors = [_shuffle(builder, *pair, half) for pair in pairs for half in halves]
                for row, vector in enumerate(vectors):
                    _store(builder, vector, out, builder.add(column, builder.mul(stride, _index(row))))
        with (
            partly,
            cgutils.for_range(builder, count, intp=_INDEX) as outer,
            cgutils.for_range(builder, rows, intp=_INDEX) as inner,
        ):
            place = builder.add(builder.mul(outer.index, _index(LANES)), inner.index)
            value = builder.lshr(
                builder.add(builder.load(builder.gep(mix, [place])), ir.Constant(_U16, 128)), ir.Constant(_U16, 8)
            )
            at = builder.add(outer.index, builder.mul(inner.index, stride))
            builder.store(builder.trunc(value, _U8), builder.gep(out, [at]))
