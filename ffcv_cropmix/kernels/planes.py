"""Rendering layers from the planes of a JPEG, colours at their own resolution: RGB is made after resampling.

libjpeg's upsampling of the colours, a triangle filter, goes into the coefficients, at the image's borders, not the
crop's. What remains different from the RGB path is that it clips each pixel before resampling, and this after.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .coefficients import FULL, fill_coefficients, table_size
from .jit import as_readonly, jit
from .render import layer_share, truncation_bias, visible_lanes
from .sampling import MAX_CROPS, MIXUP
from .vectors import LANES, MAX_TRUNCATED_TAPS, finish, horizontal_planes, transpose, vertical

# Columns of a layout, int64 (3, LAYOUT), of the planes of luma, blue and red: first sample; samples from row to row;
# size; how many pixels a sample stands for, down and across; along which of them libjpeg makes these of it and its
# neighbour (a triangle filter), else it is repeated; which of its columns are in use (`dct_pixels` only).
PLANE, STRIDE, HEIGHT, WIDTH, DOWN, ACROSS, DOWN_TRIANGLE, ACROSS_TRIANGLE, FIRST, COUNT = range(10)
LAYOUT = 10


class PlanesScratch(NamedTuple):
    """Working memory of one `render_planes`, owned by one thread, besides `render.Scratch`."""

    taps: Any  # int64 (MAX_CROPS, 2): number of taps of the rows and the columns of each layer's colours
    starts: Any  # int32 (MAX_CROPS, 2, output side): first tap, in the plane
    coefficients: Any  # uint16 (MAX_CROPS, 2, n)
    sums: Any  # int64 (n,): those of one position


@jit
def new_planes_scratch(interpolation, largest_height, largest_width, output_height, output_width):
    """Scratch for images up to the given size, px."""
    table = table_size(interpolation, largest_height, largest_width, output_height, output_width)
    side = max(output_height, output_width)
    return PlanesScratch(
        np.empty((MAX_CROPS, 2), np.int64),
        np.empty((MAX_CROPS, 2, side), np.int32),
        np.empty((MAX_CROPS, 2, table + 2 * side), np.uint16),
        np.empty(table + 2, np.int64),
    )


@jit
def compose_upsampling(
    taps, starts, coefficients, offset, factor, triangle, size, output_size, composed_starts, composed, sums
):
    """Turn coefficients over the full resolution into those over a plane of 1 / factor of it; return their number.

    Args:
        taps, starts, coefficients: from `fill_coefficients`; offset: of the crop in the image, px.
        factor: 1, 2 or 4.
        triangle: 1 where the factor is 2 and libjpeg's triangle filter upsamples the plane; else 0.
        size: of the plane, px.
        composed_starts, composed: filled, the sum of each position kept.
    """
    shift = factor // 2  # 1, 2, 4: a division by it, for each tap, would take half as long as all rendering
    composed_taps = min(((taps + 2 * triangle + factor - 2) >> shift) + 1, size)
    for position in range(output_size):
        first = starts[position] + offset
        start = min(max((first - triangle) >> shift, 0), size - composed_taps)
        for tap in range(composed_taps):
            sums[tap] = 0
        for tap in range(taps):
            coefficient = int(coefficients[position * taps + tap])
            near = far = (first + tap) >> shift
            if triangle:  # 3/4 of the nearer sample, 1/4 of the farther; replicated at the border
                far = min(max(near - 1 + 2 * ((first + tap) & 1), 0), size - 1)
            sums[near - start] += 3 * coefficient
            sums[far - start] += coefficient
        running, before = 0, 0
        for tap in range(composed_taps):
            running += sums[tap]
            now = (running + 2) // 4
            composed[position * composed_taps + tap] = min(now - before, FULL - 1)
            before = now
        composed_starts[position] = start
    return composed_taps


@jit
def _resample_rows(pixels, corner, stride, starts, coefficients, taps, row, top, bottom, values, scratch, place, width):
    """Resample `values` values of rows row + top to row + bottom - 1 of one plane, `place` on in rows of `width`."""
    for lane in range(top, bottom):
        start = corner + starts[row + lane] * stride
        vertical(
            pixels, start, stride, coefficients, (row + lane) * taps, taps, scratch.rows, lane * width + place, values
        )


@jit
def render_planes(pixels, layout, layers, count, operation, flip, interpolation, out, scratch, planes_scratch):
    """`kernels.render.render` from planes.

    Args:
        pixels: uint8 (n,), the samples.
        layout: see PLANE; the planes of the colours are alike, and luma has the full resolution.
    """
    pixels = as_readonly(pixels)
    luma_plane, colour_plane = layout[0], layout[1]
    output_height, output_width, _ = out.shape
    half = planes_scratch
    for k in range(count):
        for axis in range(2):
            starts, coefficients = scratch.starts[k, axis], scratch.coefficients[k, axis]
            scratch.taps[k, axis] = fill_coefficients(
                interpolation,
                layers.crops[k, 2 + axis],
                out.shape[axis],
                FULL if axis == 0 else layer_share(layers.weights[k]),
                starts,
                coefficients,
            )
            half.taps[k, axis] = compose_upsampling(
                scratch.taps[k, axis],
                starts,
                coefficients,
                layers.crops[k, axis],
                colour_plane[DOWN + axis],
                colour_plane[DOWN_TRIANGLE + axis],
                colour_plane[HEIGHT + axis],
                out.shape[axis],
                half.starts[k, axis],
                half.coefficients[k, axis],
                half.sums,
            )
    lanes = min(LANES, output_height)
    for block in range(0, output_height, LANES):
        row = min(block, output_height - lanes)  # the last block ends with the rows
        for k in range(count):
            top, bottom = visible_lanes(layers, k, count, operation, row, lanes)
            if top >= bottom:
                continue
            begin, end = layers.rectangles[k, 1], layers.rectangles[k, 3]
            weight, share = layers.weights[k], layer_share(layers.weights[k])
            row_taps, taps = scratch.taps[k]
            half_row_taps, half_taps = half.taps[k]
            row_starts, starts = scratch.starts[k]
            half_row_starts, half_starts = half.starts[k]
            row_coefficients, coefficients = scratch.coefficients[k]
            half_row_coefficients, half_coefficients = half.coefficients[k]
            first, half_first = starts[begin], half_starts[begin]
            values, half_values = starts[end - 1] + taps - first, half_starts[end - 1] + half_taps - half_first
            # Rows of luma, blue and red, transposed together: each in eights, as RGB's room is 24 values for each 8 px.
            blue = (values + 7) // 8 * 8
            red = blue + (half_values + 7) // 8 * 8
            width = red + red - blue
            _resample_rows(
                pixels,
                luma_plane[PLANE] + layers.crops[k, 0] * luma_plane[STRIDE] + layers.crops[k, 1] + first,
                luma_plane[STRIDE],
                row_starts,
                row_coefficients,
                row_taps,
                row,
                top,
                bottom,
                values,
                scratch,
                0,
                width,
            )
            for plane in range(2):
                _resample_rows(
                    pixels,
                    layout[1 + plane, PLANE] + half_first,
                    colour_plane[STRIDE],
                    half_row_starts,
                    half_row_coefficients,
                    half_row_taps,
                    row,
                    top,
                    bottom,
                    half_values,
                    scratch,
                    red if plane else blue,
                    width,
                )
            transpose(scratch.rows, width, scratch.columns, width)
            half_bias = half_taps if taps <= MAX_TRUNCATED_TAPS else 1
            horizontal_planes(
                scratch.columns,
                first,
                starts,
                coefficients,
                taps,
                int(
                    (truncation_bias(row_taps) * weight + truncation_bias(taps) + 2) / 2
                ),  # and one cut of a colour's product
                blue - half_first,
                red - half_first,
                half_starts,
                half_coefficients,
                half_taps,
                share // 2 - int((truncation_bias(half_row_taps) * weight + half_bias + 1) / 2),
                share * 255 // 256,
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
