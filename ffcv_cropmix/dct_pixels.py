"""From the coefficients of an image (`dct`) to its samples or RGB pixels: all, or those of a rectangle.

Pixels are those of libjpeg-turbo's accurate decoding of the JPEG, to the bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .dct import COLUMNS, ROWS, H, V, decode_row
from .kernels.colour import GROUP, PIXELS, blend_rows, widen, ycbcr_to_rgb
from .kernels.idct import inverse_dct
from .kernels.jit import jit

# Columns of PixelBuffers.planes, for each component
PLANE, STRIDE, HEIGHT, WIDTH, DOWN, ACROSS, DOWN_TRIANGLE, ACROSS_TRIANGLE = range(8)


class PixelBuffers(NamedTuple):
    """Working memory of one image after the other, owned by one thread."""

    coefficients: Any  # int16 (n,): of a row of blocks
    last: Any  # uint8 (n,): of the same blocks, see `inverse_dct`
    planes: Any  # int64 (3, 8): of each component, see `_lay_out`
    samples: Any  # uint8 (n,): the planes, then three rows at the full resolution
    sums: Any  # uint16 (n,): a row of a plane, and one sample more on each side
    pixels: Any  # uint8 (n,): RGB rows


@jit
def new_pixel_buffers(largest_height, largest_width, rgb):
    """Buffers for images up to the given size, px; `rgb`: also of their pixels."""
    height, width = (largest_height + 7) // 8 * 8, (largest_width + 7) // 8 * 8 + 8
    row = width + 2 * PIXELS
    return PixelBuffers(
        np.zeros(8 * width, np.int16),
        np.zeros(width // 8 + 1, np.uint8),
        np.zeros((3, 8), np.int64),
        np.zeros(3 * height * width + 3 * row, np.uint8),
        np.zeros(row, np.uint16),
        np.zeros(3 * (largest_height * largest_width + PIXELS) if rgb else 0, np.uint8),
    )


@jit
def _lay_out(count, geometry, height, width, planes):
    """Where the planes of an image are in `samples`, and how libjpeg makes the full resolution of each. Return the end.

    Columns of `planes`: address, samples from row to row, height, width, pixels that a sample stands for (down,
    across), and along which of them a triangle filter makes these of it and its neighbour; else it is repeated.
    """
    most_h = most_v = end = 0
    for component in range(count):
        most_h, most_v = max(most_h, geometry[component, H]), max(most_v, geometry[component, V])
    for component in range(count):
        plane, part = planes[component], geometry[component]
        down, across = most_v // part[V], most_h // part[H]
        plane[PLANE], plane[STRIDE] = end, 8 * (part[COLUMNS] + 1)  # blocks are transformed in pairs
        plane[HEIGHT], plane[WIDTH] = -(-height // down), -(-width // across)
        plane[DOWN], plane[ACROSS] = down, across
        wide = across == 1 or plane[WIDTH] > 2  # libjpeg's condition
        plane[DOWN_TRIANGLE] = down == 2 and across <= 2 and wide
        plane[ACROSS_TRIANGLE] = across == 2 and down <= 2 and wide
        end += 8 * part[ROWS] * plane[STRIDE]
    return end


@jit
def _blocks(first, stop, size, factor, triangle):
    """(first, last + 1) block along an axis of a plane that pixels first to stop - 1 are made of."""
    low = max(first // factor - triangle, 0)
    high = min((stop - 1) // factor + triangle, size - 1)
    return low // 8, high // 8 + 1


@jit
def decode_samples(dct, top, left, bottom, right, height, width, buffers):
    """Make the samples that the pixels of a rectangle are made of; return 0, or the error code of `decode_row`.

    Args:
        dct: DctBuffers, after `open_dct`.
        top, left, bottom, right: px, end-exclusive, not empty.
        height, width: of the image, px.
        buffers: PixelBuffers; fills planes, samples.
    """
    count = dct.components[0]
    _lay_out(count, dct.geometry, height, width, buffers.planes)
    for component in range(count):
        plane = buffers.planes[component]
        first_row, stop_row = _blocks(top, bottom, plane[HEIGHT], plane[DOWN], plane[DOWN_TRIANGLE])
        first, stop = _blocks(left, right, plane[WIDTH], plane[ACROSS], plane[ACROSS_TRIANGLE])
        columns = stop - first
        for row in range(first_row, stop_row):
            code = decode_row(dct, component, row, first, columns, buffers.coefficients, 0, buffers.last, 0)
            if code != 0:
                return code
            buffers.last[columns] = 0
            inverse_dct(
                buffers.coefficients,
                dct.quantisation[component],
                buffers.last,
                (columns + 1) // 2,
                buffers.samples,
                plane[PLANE] + 8 * (row * plane[STRIDE] + first),
                plane[STRIDE],
            )
    return 0


@jit
def _full_row(plane, y, left, right, buffers, target):
    """Row y of a component at the full resolution, columns left to right - 1: put at samples[target + column], or
    already somewhere in the samples. Return where its column 0 is."""
    samples, sums = buffers.samples, buffers.sums
    near = y // plane[DOWN]
    row = plane[PLANE] + near * plane[STRIDE]
    if plane[ACROSS] == 1 and not plane[DOWN_TRIANGLE]:
        return row
    across = plane[ACROSS]
    first, last = left // across, (right - 1) // across
    if plane[DOWN_TRIANGLE]:
        far = min(max(near - 1 + 2 * (y % 2), 0), plane[HEIGHT] - 1)
        weights, other = (3, 1), plane[PLANE] + far * plane[STRIDE]
    else:
        weights, other = (1, 0), row
    if plane[ACROSS_TRIANGLE]:
        first, last = max(first - 1, 0), min(last + 1, plane[WIDTH] - 1)
    count = last - first + 1
    blend_rows(samples, row + first, other + first, weights[0], weights[1], sums, 1, count)
    if plane[ACROSS_TRIANGLE]:
        # Its rounding is libjpeg's: of both axes at once, or of the one.
        bits, before, after = (4, 8, 7) if plane[DOWN_TRIANGLE] else (2, 1, 2)
        sums[0], sums[1 + count] = sums[1], sums[count]
        widen(sums, 1, bits, before, after, samples, target + 2 * first, count)
    elif plane[DOWN_TRIANGLE]:
        for k in range(count):
            samples[target + first + k] = (sums[1 + k] + 1 + y % 2) >> 2
    else:
        for x in range(left, right):
            samples[target + x] = samples[row + x // across]
    return target


@jit
def decode_rgb(dct, top, left, bottom, right, height, width, buffers):
    """`decode_samples`, and the RGB pixels of the rectangle in buffers.pixels, where they are in the whole image.

    What is to the right of the rectangle and below may be overwritten.
    """
    code = decode_samples(dct, top, left, bottom, right, height, width, buffers)
    if code != 0:
        return code
    count = dct.components[0]
    row = (width + 7) // 8 * 8 + 2 * PIXELS
    rows = buffers.samples.size - 3 * row
    if count == 1:
        buffers.samples[rows + row : rows + 2 * row] = 128
    for y in range(top, bottom):
        luma = _full_row(buffers.planes[0], y, left, right, buffers, rows)
        blue = red = rows + row
        if count == 3:
            blue = _full_row(buffers.planes[1], y, left, right, buffers, rows + row)
            red = _full_row(buffers.planes[2], y, left, right, buffers, rows + 2 * row)
        start = 3 * (y * width + left)
        ycbcr_to_rgb(buffers.samples, luma + left, blue + left, red + left, buffers.pixels, start, right - left)
    return 0
