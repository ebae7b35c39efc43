"""Render layers with a filter that has negative lobes: each crop equals Pillow's bit for bit.

Pillow resizes horizontally, then vertically, and rounds and clips after each pass. The order of `render`, rounded only
once, would differ by up to 29 levels. (Pillow 13 resizes vertically first if the height shrinks more. This module uses
the order of all earlier versions, with which models were trained.)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .arrays import empty
from .coefficients import FULL, most_taps, table_size, weight, window
from .jit import jit, uncounted
from .render import layer_share, padded
from .sampling import MAX_CROPS
from .vectors import LANES, PILLOW_BITS, REPLACE, Taps, Target, finish, horizontal, transpose, vertical


class TwoPassScratch(NamedTuple):
    """Working memory for rendering in two passes, owned by one thread."""

    counts: Any  # int64 (MAX_CROPS, 2): number of taps of the rows and the columns of each layer
    starts: Any  # int32 (MAX_CROPS, 2, output side): first tap of each output row and column, in the crop
    coefficients: Any  # int32 (MAX_CROPS, 2, n): the taps, one output position after the other
    narrow: Any  # uint8 (MAX_CROPS, largest height * 3 * output width): the crops, resampled horizontally
    rows: Any  # uint16 (LANES * n,)
    columns: Any  # uint16 (n * LANES,)
    mix: Any  # uint16 (3 * output width * LANES,)
    one: Any  # int32 (1,): the coefficient 1
    places: Any  # int32 (output width,): 0, 1, 2, ...
    shares: Any  # uint16 (MAX_CROPS, output width): each layer's share of the mix, repeated for each column
    order: Any  # int64 (3,): 0, 1, 2


@jit
def new_two_pass_scratch(interpolation, largest_height, largest_width, output_height, output_width):
    """Allocate scratch for images and outputs up to the given sizes, px."""
    table = table_size(interpolation, largest_height, largest_width, output_height, output_width)
    values = padded(3 * max(largest_width, output_width))
    return TwoPassScratch(
        empty((MAX_CROPS, 2), np.int64),
        empty((MAX_CROPS, 2, max(output_height, output_width)), np.int32),
        empty((MAX_CROPS, 2, table), np.int32),
        empty((MAX_CROPS, largest_height * 3 * output_width), np.uint8),
        empty(LANES * values, np.uint16),
        empty(values * LANES, np.uint16),
        empty(3 * output_width * LANES, np.uint16),
        np.full(1, 1 << PILLOW_BITS).astype(np.int32),
        np.arange(output_width).astype(np.int32),
        empty((MAX_CROPS, output_width), np.uint16),
        np.arange(3),
    )


@uncounted
def _fill_coefficients(interpolation, size, output_size, starts, coefficients):
    """Compute coefficients as `coefficients.fill_coefficients` does, but as Pillow's integers."""
    taps = min(most_taps(interpolation, size, output_size), size)
    for position in range(output_size):
        first, count = window(interpolation, position, size, output_size)
        start = min(first, size - taps)
        total = 0.0
        for k in range(first, first + count):
            total += weight(interpolation, position, k, size, output_size)
        for tap in range(taps):
            k = start + tap
            share = weight(interpolation, position, k, size, output_size) * (1 / total) * (1 << PILLOW_BITS)
            inside = first <= k < first + count
            coefficients[position * taps + tap] = int(share + math.copysign(0.5, share)) if inside else 0
        starts[position] = start
    return taps


@uncounted
def _narrow(pixels, origin, stride, height, width, k, scratch):
    """Resample the rows of layer k's crop to the output's width, LANES at a time."""
    copy = Taps(scratch.places, scratch.one, 1)
    columns = Taps(scratch.starts[k, 1], scratch.coefficients[k, 1], scratch.counts[k, 1])
    first = columns.starts[0]
    values = 3 * (columns.starts[width - 1] + columns.count - first)
    lanes = min(LANES, height)
    for block in range(0, height, LANES):
        row = min(block, height - lanes)
        for lane in range(lanes):
            at = origin + (row + lane) * stride + 3 * first
            vertical(pixels, at, stride, copy, 0, scratch.rows, lane * padded(values), values)
        transpose(scratch.rows, padded(values), scratch.columns, values)
        target = Target(0, width, 0, 1, 0, lanes, REPLACE)
        horizontal(scratch.columns, first, columns, 0, scratch.order, scratch.mix, target)
        finish(scratch.mix, lanes, scratch.narrow[k], 3 * width * row, 3 * width, 3 * width)


@uncounted
def prepare_two_pass(pixels, width, layers, count, interpolation, out, scratch):
    """Resample the crops of all layers horizontally, for `resample_two_pass`. See `renderer`."""
    for k in range(count):
        for axis in range(2):
            scratch.counts[k, axis] = _fill_coefficients(
                interpolation,
                layers.crops[k, 2 + axis],
                out.shape[axis],
                scratch.starts[k, axis],
                scratch.coefficients[k, axis],
            )
        for x in range(out.shape[1]):
            scratch.shares[k, x] = min(layer_share(layers.weights[k]), FULL - 1)
        origin = 3 * (layers.crops[k, 0] * width + layers.crops[k, 1])
        _narrow(pixels, origin, 3 * width, layers.crops[k, 2], out.shape[1], k, scratch)


@uncounted
def resample_two_pass(pixels, width, layers, k, row, out, target, scratch):
    """Resample a layer vertically, of an image of RGB rows whose layout is its width, px. See `renderer`."""
    rows = Taps(scratch.starts[k, 0], scratch.coefficients[k, 0], scratch.counts[k, 0])
    values = 3 * out.shape[1]
    for lane in range(target.top, target.bottom):
        vertical(scratch.narrow[k], 0, values, rows, row + lane, scratch.rows, lane * padded(values), values)
    transpose(scratch.rows, padded(values), scratch.columns, values)
    shares = Taps(scratch.places, scratch.shares[k], 1)
    horizontal(scratch.columns, 0, shares, 1, layers.permutations[k], scratch.mix, target)
