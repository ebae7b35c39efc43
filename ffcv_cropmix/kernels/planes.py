"""Render layers from the planes of a JPEG: resample colours at their own resolution, then convert to RGB.

libjpeg's upsampling of the colours, a triangle filter, becomes part of the coefficients. It is truncated at the image's
borders, not at the crop's. One difference from the RGB path remains: the RGB path clips each pixel before resampling,
this one clips after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arrays import empty
from .coefficients import FULL, table_size
from .jit import jit, uncounted
from .render import Scratch, layer_share, prepare_rgb, truncation_bias
from .sampling import MAX_CROPS
from .vectors import MAX_TRUNCATED_TAPS, Colours, Taps, horizontal_planes, transpose, vertical

# Columns of a layout, int64 (3, LAYOUT), with a row for luma, blue and red: offset of the first sample; samples from
# row to row; size; pixels per sample, down and across; whether libjpeg upsamples with a triangle filter, down and
# across (it repeats samples otherwise); first column in use and number of columns in use (`dct_pixels` only).
PLANE, STRIDE, HEIGHT, WIDTH, DOWN, ACROSS, DOWN_TRIANGLE, ACROSS_TRIANGLE, FIRST, COUNT = range(10)
LAYOUT = 10


class PlanesScratch(NamedTuple):
    """Working memory for rendering planes, owned by one thread."""

    mix: Any  # luma's
    luma: Scratch
    counts: Any  # int64 (MAX_CROPS, 2): number of taps of the rows and the columns of each layer's colours
    starts: Any  # int32 (MAX_CROPS, 2, output side): first tap, in the plane
    coefficients: Any  # uint16 (MAX_CROPS, 2, n)
    sums: Any  # int64 (n,): the coefficients of one position


@jit
def new_planes_scratch(scratch, interpolation, largest_height, largest_width, output_height, output_width):
    """Allocate scratch for images up to the given size, px; it shares memory with a `render.Scratch` for that size."""
    table = table_size(interpolation, largest_height, largest_width, output_height, output_width)
    side = max(output_height, output_width)
    return PlanesScratch(
        scratch.mix,
        scratch,
        empty((MAX_CROPS, 2), np.int64),
        empty((MAX_CROPS, 2, side), np.int32),
        empty((MAX_CROPS, 2, table + 2 * side), np.uint16),
        empty(table + 2, np.int64),
    )


@uncounted
def compose_upsampling(taps, offset, factor, triangle, size, output_size, starts, coefficients, sums):
    """Convert coefficients for the full resolution into coefficients for a plane at 1 / factor of it.

    Args:
        taps: Taps, from `fill_coefficients`.
        offset: offset of the crop in the image, px.
        factor: 1, 2 or 4.
        triangle: 1 if the factor is 2 and libjpeg upsamples the plane with a triangle filter; otherwise 0.
        size: size of the plane, samples.
        output_size: size of the output, px.
        starts, coefficients: int32 and uint16 (n,), filled; the sum of each position's coefficients is preserved.
        sums: int64 (n,), working memory.

    Returns:
        Number of taps, the same for all positions.
    """
    shift = factor // 2  # for 1, 2, 4; dividing by the factor for each tap would take half as long as all rendering
    count = min(((taps.count + 2 * triangle + factor - 2) >> shift) + 1, size)
    for position in range(output_size):
        first = taps.starts[position] + offset
        start = min(max((first - triangle) >> shift, 0), size - count)
        for tap in range(count):
            sums[tap] = 0
        for tap in range(taps.count):
            coefficient = int(taps.coefficients[position * taps.count + tap])
            near = far = (first + tap) >> shift
            if triangle:  # 3/4 of the nearer sample, 1/4 of the farther; replicated at the border
                far = min(max(near - 1 + 2 * ((first + tap) & 1), 0), size - 1)
            sums[near - start] += 3 * coefficient
            sums[far - start] += coefficient
        running, before = 0, 0
        for tap in range(count):
            running += sums[tap]
            now = (running + 2) // 4
            coefficients[position * count + tap] = min(now - before, FULL - 1)
            before = now
        starts[position] = start
    return count


@uncounted
def prepare_planes(pixels, layout, layers, count, interpolation, out, scratch):
    """Fill the tables of coefficients of all layers, for `resample_planes`. See `renderer`."""
    luma, plane = scratch.luma, layout[1]
    prepare_rgb(pixels, 0, layers, count, interpolation, out, luma)
    for k in range(count):
        for axis in range(2):
            scratch.counts[k, axis] = compose_upsampling(
                Taps(luma.starts[k, axis], luma.coefficients[k, axis], luma.counts[k, axis]),
                layers.crops[k, axis],
                plane[DOWN + axis],
                plane[DOWN_TRIANGLE + axis],
                plane[HEIGHT + axis],
                out.shape[axis],
                scratch.starts[k, axis],
                scratch.coefficients[k, axis],
                scratch.sums,
            )


@uncounted
def resample_planes(pixels, layout, layers, k, row, out, target, scratch):
    """Resample a layer of an image of planes, whose layout is int64 (3, LAYOUT), see PLANE. See `renderer`.

    Luma has the full resolution, and blue and red have the same resolution as each other.
    """
    luma, weight = scratch.luma, layers.weights[k]
    rows = Taps(luma.starts[k, 0], luma.coefficients[k, 0], luma.counts[k, 0])
    columns = Taps(luma.starts[k, 1], luma.coefficients[k, 1], luma.counts[k, 1])
    colour_rows = Taps(scratch.starts[k, 0], scratch.coefficients[k, 0], scratch.counts[k, 0])
    colour_columns = Taps(scratch.starts[k, 1], scratch.coefficients[k, 1], scratch.counts[k, 1])
    first, colour_first = columns.starts[target.begin], colour_columns.starts[target.begin]
    values = columns.starts[target.end - 1] + columns.count - first
    colour_values = colour_columns.starts[target.end - 1] + colour_columns.count - colour_first
    # Rows of luma, blue and red are transposed together, each padded to a multiple of 8: they fit the memory for RGB,
    # which has 24 values for each 8 px.
    blue = (values + 7) // 8 * 8
    red = blue + (colour_values + 7) // 8 * 8
    width = red + red - blue
    stride, colour_stride = layout[0, STRIDE], layout[1, STRIDE]
    luma_at = layout[0, PLANE] + layers.crops[k, 0] * stride + layers.crops[k, 1] + first
    blue_at, red_at = layout[1, PLANE] + colour_first, layout[2, PLANE] + colour_first
    for lane in range(target.top, target.bottom):
        at, y = lane * width, row + lane
        vertical(pixels, luma_at, stride, rows, y, luma.rows, at, values)
        vertical(pixels, blue_at, colour_stride, colour_rows, y, luma.rows, at + blue, colour_values)
        vertical(pixels, red_at, colour_stride, colour_rows, y, luma.rows, at + red, colour_values)
    transpose(luma.rows, width, luma.columns, width)
    share = layer_share(weight)
    colour_bias = colour_columns.count if columns.count <= MAX_TRUNCATED_TAPS else 1
    centre = share // 2 - int((truncation_bias(colour_rows.count) * weight + colour_bias + 1) / 2)
    # One more, for the colour's product that the conversion to RGB truncates.
    bias = int((truncation_bias(rows.count) * weight + truncation_bias(columns.count) + 2) / 2)
    colours = Colours(blue - colour_first, red - colour_first, colour_columns, centre)
    limit = share * 255 // 256
    horizontal_planes(luma.columns, first, columns, bias, colours, limit, layers.permutations[k], luma.mix, target)
