"""Bicubic layers, each crop to the bit Pillow's: horizontally, then vertically, each time rounded and clipped.

The filter has negative lobes: in the other kernels' order and rounded once, it is up to 29 levels off. (Pillow 13
resizes vertically first where the height shrinks more; this is the order of all before, in which models were trained.)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .coefficients import BICUBIC, FULL, most_taps, table_size, weight, window
from .jit import as_readonly, jit
from .render import layer_share, padded, visible_lanes
from .sampling import MAX_CROPS, MIXUP
from .vectors import LANES, PILLOW_BITS, finish, horizontal, transpose, vertical


class BicubicScratch(NamedTuple):
    """Working memory of one `render_bicubic`, owned by one thread. Sizes depend on the largest image and the output."""

    taps: Any  # int64 (MAX_CROPS, 2): number of taps of the rows and the columns of each layer
    starts: Any  # int32 (MAX_CROPS, 2, output side): first tap of each output row and column, in the crop
    coefficients: Any  # int32 (MAX_CROPS, 2, n): the taps, one output position after the other
    narrow: Any  # uint8 (MAX_CROPS, largest height * 3 * output width): the crops, resampled horizontally
    rows: Any  # uint16 (LANES * n,)
    columns: Any  # uint16 (n * LANES,)
    mix: Any  # uint16 (3 * output width * LANES,)
    one: Any  # int32 (1,): the coefficient 1
    places: Any  # int32 (output width,): 0, 1, 2, ...
    weights: Any  # uint16 (output width,)
    order: Any  # int64 (3,): 0, 1, 2


@jit
def new_bicubic_scratch(interpolation, largest_height, largest_width, output_height, output_width):
    """`kernels.render.new_scratch`, bicubic."""
    table = table_size(BICUBIC, largest_height, largest_width, output_height, output_width)
    values = padded(3 * max(largest_width, output_width))
    return BicubicScratch(
        np.empty((MAX_CROPS, 2), np.int64),
        np.empty((MAX_CROPS, 2, max(output_height, output_width)), np.int32),
        np.empty((MAX_CROPS, 2, table), np.int32),
        np.empty((MAX_CROPS, largest_height * 3 * output_width), np.uint8),
        np.empty(LANES * values, np.uint16),
        np.empty(values * LANES, np.uint16),
        np.empty(3 * output_width * LANES, np.uint16),
        np.full(1, 1 << PILLOW_BITS).astype(np.int32),
        np.arange(output_width).astype(np.int32),
        np.empty(output_width, np.uint16),
        np.arange(3),
    )


@jit
def _fill_coefficients(size, output_size, starts, coefficients):
    """`coefficients.fill_coefficients`, with Pillow's integers."""
    taps = min(most_taps(BICUBIC, size, output_size), size)
    for position in range(output_size):
        first, count = window(BICUBIC, position, size, output_size)
        start = min(first, size - taps)
        total = 0.0
        for k in range(first, first + count):
            total += weight(BICUBIC, position, k, size, output_size)
        for tap in range(taps):
            k = start + tap
            share = weight(BICUBIC, position, k, size, output_size) * (1 / total) * (1 << PILLOW_BITS)
            inside = first <= k < first + count
            coefficients[position * taps + tap] = int(share + math.copysign(0.5, share)) if inside else 0
        starts[position] = start
    return taps


@jit
def _narrow(pixels, corner, stride, height, output_width, k, scratch):
    """Resample the rows of layer k's crop to the output's width, LANES at a time."""
    taps, starts = scratch.taps[k, 1], scratch.starts[k, 1]
    values = 3 * (starts[output_width - 1] + taps - starts[0])
    lanes = min(LANES, height)
    for block in range(0, height, LANES):
        row = min(block, height - lanes)
        for lane in range(lanes):
            start = corner + (row + lane) * stride + 3 * starts[0]
            vertical(pixels, start, 0, scratch.one, 0, 1, scratch.rows, lane * padded(values), values)
        transpose(scratch.rows, padded(values), scratch.columns, values)
        horizontal(
            scratch.columns,
            starts[0],
            starts,
            scratch.coefficients[k, 1],
            taps,
            0,
            0,
            output_width,
            scratch.order,
            scratch.mix,
            0,
            1,
            0,
            lanes,
            False,
        )
        finish(scratch.mix, lanes, scratch.narrow[k], 3 * output_width * row, 3 * output_width, 3 * output_width)


@jit
def render_bicubic(pixels, width, layers, count, operation, flip, interpolation, out, scratch):
    """`kernels.render.render`, bicubic."""
    stride = 3 * width
    output_height, output_width, _ = out.shape
    values = 3 * output_width
    for k in range(count):
        for axis in range(2):
            scratch.taps[k, axis] = _fill_coefficients(
                layers.crops[k, 2 + axis], out.shape[axis], scratch.starts[k, axis], scratch.coefficients[k, axis]
            )
        corner = layers.crops[k, 0] * stride + 3 * layers.crops[k, 1]
        _narrow(pixels, corner, stride, layers.crops[k, 2], output_width, k, scratch)
    lanes = min(LANES, output_height)
    for block in range(0, output_height, LANES):
        row = min(block, output_height - lanes)  # the last block ends with the rows
        for k in range(count):
            top, bottom = visible_lanes(layers, k, count, operation, row, lanes)
            if top >= bottom:
                continue
            taps = scratch.taps[k, 0]
            for lane in range(top, bottom):
                vertical(
                    as_readonly(scratch.narrow[k]),
                    scratch.starts[k, 0, row + lane] * values,
                    values,
                    scratch.coefficients[k, 0],
                    (row + lane) * taps,
                    taps,
                    scratch.rows,
                    lane * padded(values),
                    values,
                )
            transpose(scratch.rows, padded(values), scratch.columns, values)
            for x in range(output_width):
                scratch.weights[x] = min(layer_share(layers.weights[k]), FULL - 1)
            horizontal(
                scratch.columns,
                0,
                scratch.places,
                scratch.weights,
                1,
                1,
                layers.rectangles[k, 1],
                layers.rectangles[k, 3],
                layers.permutations[k],
                scratch.mix,
                output_width - 1 if flip else 0,
                -1 if flip else 1,
                top,
                bottom,
                operation == MIXUP and k > 0,
            )
        finish(scratch.mix, lanes, out, values * row, values, values)
