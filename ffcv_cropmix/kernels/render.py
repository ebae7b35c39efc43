"""Rendering layers: separable resampling of each layer's crop straight into the mix, sixteen output rows at a time.

What is under way stays in the first-level cache: the rows of one layer, turned into columns, and the mix of the rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .coefficients import FULL, fill_coefficients, table_size, window
from .jit import jit
from .sampling import CUTMIX, MAX_CROPS, MIXUP
from .vectors import LANES, MAX_TRUNCATED_TAPS, finish, horizontal, transpose, vertical


class Scratch(NamedTuple):
    """Working memory of one `render`, owned by one thread. Sizes depend on the largest image and the output."""

    taps: Any  # int64 (MAX_CROPS, 2): number of taps of the rows and the columns of each layer
    starts: Any  # int32 (MAX_CROPS, 2, output side): first tap of each output row and column, in the crop
    coefficients: Any  # uint16 (MAX_CROPS, 2, n): the taps, one output position after the other
    rows: Any  # uint16 (LANES * n,): LANES rows of a layer, resampled vertically
    columns: Any  # uint16 (n * LANES,): the same, transposed
    mix: Any  # uint16 (3 * output width * LANES,): LANES output rows, transposed


@jit
def padded(values):
    """Length for rows of that many values: `transpose` takes eight at a time, and pixels are whole."""
    return (values + 23) // 24 * 24


@jit
def new_scratch(interpolation, largest_height, largest_width, output_height, output_width):
    """Scratch for images up to the given size, px."""
    table = table_size(interpolation, largest_height, largest_width, output_height, output_width)
    values = padded(3 * largest_width)
    return Scratch(
        np.empty((MAX_CROPS, 2), np.int64),
        np.empty((MAX_CROPS, 2, max(output_height, output_width)), np.int32),
        np.empty((MAX_CROPS, 2, table), np.uint16),
        np.empty(LANES * values, np.uint16),
        np.empty(values * LANES, np.uint16),
        np.empty(3 * output_width * LANES, np.uint16),
    )


@jit
def layer_share(weight):
    """A layer's weight in 1/65536."""
    return int(weight * FULL + 0.5)


@jit
def visible_lanes(layers, k, count, operation, row, lanes):
    """(first, last + 1) of the lanes, output rows from `row` on, that show layer k; empty if a later one hides it."""
    rectangle = layers.rectangles[k]
    top, bottom = max(rectangle[0] - row, 0), min(rectangle[2] - row, lanes)
    for later in range(k + 1, count if operation == CUTMIX else 0):
        above = layers.rectangles[later]
        if above[0] <= row + top and above[1] <= rectangle[1] and above[2] >= row + bottom and above[3] >= rectangle[3]:
            return top, top
    return top, bottom


@jit
def pixels_needed(layers, count, interpolation, output_height, output_width, box):
    """Widen `box`, int64 (4,), top, left, bottom, right in the image, to the pixels that the layers are made of."""
    for k in range(count):
        for axis in range(2):
            corner, size = layers.crops[k, axis], layers.crops[k, 2 + axis]
            output_size = output_width if axis else output_height
            first, _ = window(interpolation, layers.rectangles[k, axis], size, output_size)
            last, taps = window(interpolation, layers.rectangles[k, 2 + axis] - 1, size, output_size)
            box[axis] = min(box[axis], corner + first)
            box[2 + axis] = max(box[2 + axis], corner + last + taps)


@jit
def truncation_bias(taps):
    """How often a sum of that many taps is cut by up to 1/256 level."""
    return taps if taps <= MAX_TRUNCATED_TAPS else 1


@jit
def render(pixels, width, layers, count, operation, flip, interpolation, out, scratch):
    """Fill `out` (height, width, 3) uint8 with the mix of `count` layers of an image `width` px wide.

    pixels: uint8 (n,), read-only: the image, row by row.

    The filter never sees pixels outside a crop (Pillow's crop, then resize). Rounded once.
    """
    stride = 3 * width
    output_height, output_width, _ = out.shape
    for k in range(count):
        for axis in range(2):
            scratch.taps[k, axis] = fill_coefficients(
                interpolation,
                layers.crops[k, 2 + axis],
                out.shape[axis],
                FULL if axis == 0 else layer_share(layers.weights[k]),
                scratch.starts[k, axis],
                scratch.coefficients[k, axis],
            )
    lanes = min(LANES, output_height)
    for block in range(0, output_height, LANES):
        row = min(block, output_height - lanes)  # the last block ends with the rows
        for k in range(count):
            top, bottom = visible_lanes(layers, k, count, operation, row, lanes)
            if top >= bottom:
                continue
            begin, end = layers.rectangles[k, 1], layers.rectangles[k, 3]
            row_taps, column_taps = scratch.taps[k]
            row_starts, column_starts = scratch.starts[k]
            row_coefficients, column_coefficients = scratch.coefficients[k]
            first = column_starts[begin]
            values = 3 * (column_starts[end - 1] + column_taps - first)
            corner = layers.crops[k, 0] * stride + 3 * (layers.crops[k, 1] + first)
            for lane in range(top, bottom):
                vertical(
                    pixels,
                    corner + row_starts[row + lane] * stride,
                    stride,
                    row_coefficients,
                    (row + lane) * row_taps,
                    row_taps,
                    scratch.rows,
                    lane * padded(values),
                    values,
                )
            transpose(scratch.rows, padded(values), scratch.columns, values)
            horizontal(
                scratch.columns,
                first,
                column_starts,
                column_coefficients,
                column_taps,
                int((truncation_bias(row_taps) * layers.weights[k] + truncation_bias(column_taps) + 1) / 2),
                begin,
                end,
                layers.permutations[k],
                scratch.mix,
                output_width - 1 if flip else 0,
                -1 if flip else 1,
                top,
                bottom,
                operation == MIXUP and k > 0,
            )
        finish(scratch.mix, lanes, out, 3 * output_width * row, 3 * output_width, 3 * output_width)
