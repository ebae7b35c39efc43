"""Drawing layers: separable resampling of each layer's crop straight into the mix, one output row at a time.

The seam: `render` and `new_scratch` are all that the rest of the package calls.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .jit import as_readonly, jit
from .sampling import MAX_VIEWS, MIXUP


class Scratch(NamedTuple):
    """Working memory of one `render`, owned by one thread. Sizes depend on the largest image and the output."""

    starts: Any  # int64 (2, MAX_VIEWS, output side): first tap of each output row [0] and column [1], in the crop
    counts: Any  # int64, same shape: number of taps
    coefficients: Any  # float32 (2, MAX_VIEWS, n): the taps, one output position after the other
    row: Any  # float32 (3 * largest width,): one row of a crop after the vertical pass
    mix: Any  # float32 (3 * output width,): one output row


@jit
def _taps(size, output_size):
    """The largest number of taps of a triangle filter from `size` to `output_size` samples."""
    return 2 * math.ceil(max(size / output_size, 1.0)) + 1


@jit
def new_scratch(largest_height, largest_width, output_height, output_width):
    """Scratch for images up to the given size (px)."""
    output_side = max(output_height, output_width)
    # _taps is at most 2 * size / output + 5, so this bounds output * taps along either axis
    table = 2 * max(largest_height, largest_width) + 5 * output_side
    return Scratch(
        np.empty((2, MAX_VIEWS, output_side), np.int64),
        np.empty((2, MAX_VIEWS, output_side), np.int64),
        np.empty((2, MAX_VIEWS, table), np.float32),
        np.empty(3 * largest_width, np.float32),
        np.empty(3 * output_width, np.float32),
    )


@jit
def triangle_coefficients(size, output_size, starts, counts, coefficients):
    """Fill the taps of Pillow's antialiased bilinear filter from `size` samples of a crop to `output_size`.

    Output position k is the sum of counts[k] inputs from starts[k] on, times coefficients[k * taps], ..., where
    taps = _taps(size, output_size). The support is max(scale, 1) to each side of the centre, cut at the crop's edges
    (crop first, then resize) and normalised to 1.
    """
    scale = size / output_size
    support = max(scale, 1.0)
    taps = _taps(size, output_size)
    for position in range(output_size):
        center = (position + 0.5) * scale
        start = max(int(center - support + 0.5), 0)
        stop = min(int(center + support + 0.5), size)
        total = 0.0
        for k in range(start, stop):
            total += max(1.0 - abs((k - center + 0.5) / support), 0.0)
        base = position * taps
        for k in range(start, stop):
            weight = max(1.0 - abs((k - center + 0.5) / support), 0.0)
            coefficients[base + k - start] = weight / total
        starts[position] = start
        counts[position] = stop - start


@jit
def vertical(image, first_row, count, coefficients, base, first_column, columns, row):
    """row[3 * x + c] = sum over `count` rows of the image from first_row, for `columns` columns from first_column."""
    for k in range(3 * columns):
        row[k] = 0.0
    for tap in range(count):
        weight = coefficients[base + tap]
        source = image[first_row + tap]
        for column in range(columns):
            for channel in range(3):
                row[3 * column + channel] += weight * np.float32(source[first_column + column, channel])


@jit
def horizontal(row, starts, counts, coefficients, taps, offset, first, last, permutation, keep, weight, mix):
    """mix = keep * mix + weight * (the row resampled to output columns first to last - 1, channels permuted).

    offset: the column of the crop that row[0] holds.
    """
    for column in range(first, last):
        start = 3 * (starts[column] - offset)
        base = column * taps
        for channel in range(3):
            total = np.float32(0.0)
            source = start + permutation[channel]
            for tap in range(counts[column]):
                total += coefficients[base + tap] * row[source + 3 * tap]
            mix[3 * column + channel] = keep * mix[3 * column + channel] + weight * total


@jit
def store(mix, flip, out):
    """Round the mix half up to uint8 into out (width, 3), mirrored if `flip`."""
    width = out.shape[0]
    for column in range(width):
        target = width - 1 - column if flip else column
        for channel in range(3):
            value = math.floor(mix[3 * column + channel] + np.float32(0.5))
            out[target, channel] = min(max(int(value), 0), 255)


@jit
def render(image, layers, count, operation, flip, out, scratch):
    """Fill `out` (height, width, 3) uint8 with the mix of `count` layers of `image` (height, width, 3) uint8.

    Bilinear, antialiased, the filter never sees pixels outside a crop (Pillow's crop, then resize). Rounded once.
    """
    image = as_readonly(image)
    output_height, output_width, _ = out.shape
    for k in range(count):
        for axis in range(2):
            triangle_coefficients(
                layers.crops[k, 2 + axis],
                output_width if axis else output_height,
                scratch.starts[axis, k],
                scratch.counts[axis, k],
                scratch.coefficients[axis, k],
            )
    keep = np.float32(1.0 if operation == MIXUP else 0.0)
    for y in range(output_height):
        for k in range(3 * output_width):
            scratch.mix[k] = 0.0
        for k in range(count):
            top, left, height, width = layers.crops[k]
            first_row, first, last_row, last = layers.rectangles[k]
            if y < first_row or y >= last_row:
                continue
            starts = scratch.starts[1, k]
            counts = scratch.counts[1, k]
            first_column = starts[first]
            columns = starts[last - 1] + counts[last - 1] - first_column
            vertical(
                image,
                top + scratch.starts[0, k, y],
                scratch.counts[0, k, y],
                scratch.coefficients[0, k],
                y * _taps(height, output_height),
                left + first_column,
                columns,
                scratch.row,
            )
            horizontal(
                scratch.row,
                starts,
                counts,
                scratch.coefficients[1, k],
                _taps(width, output_width),
                first_column,
                first,
                last,
                layers.permutations[k],
                keep,
                np.float32(layers.weights[k]),
                scratch.mix,
            )
        store(scratch.mix, flip, out[y])
