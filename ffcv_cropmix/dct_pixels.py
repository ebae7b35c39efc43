"""From the coefficients of an image (`dct`) to its samples or RGB pixels: all, or those of a rectangle.

Pixels are those of libjpeg-turbo's accurate decoding of the JPEG, to the bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .dct import decode_blocks
from .kernels.coefficient_code import COLUMNS, COMPONENTS, ROWS, H, V
from .kernels.colour import PIXELS, blend_rows, widen, ycbcr_to_rgb
from .kernels.idct import inverse_dct
from .kernels.jit import jit

# Columns of PixelBuffers.planes, for each component: address in `samples`, from row to row, size in samples; how many
# pixels a sample stands for, down and across, and along which of them these are made of it and its neighbour, by a
# triangle filter, else it is repeated; the columns that are needed.
PLANE, STRIDE, HEIGHT, WIDTH, DOWN, ACROSS, DOWN_TRIANGLE, ACROSS_TRIANGLE, FIRST, COUNT = range(10)


class PixelBuffers(NamedTuple):
    """Working memory of one image after the other, owned by one thread."""

    coefficients: Any  # int16 (n,): of a row of blocks
    last: Any  # uint8 (n,): of the same blocks, see `inverse_dct`
    planes: Any  # int64 (3, 10): of each component, see PLANE
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
        np.zeros((3, 10), np.int64),
        np.zeros(3 * height * width + 3 * row, np.uint8),
        np.zeros(row, np.uint16),
        np.zeros(3 * (largest_height * largest_width + PIXELS) if rgb else 0, np.uint8),
    )


@jit
def _lay_out(count, geometry, height, width, planes):
    """Fill `planes`, but for FIRST and COUNT."""
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


@jit
def _needed(first, stop, size, factor, triangle):
    """(first, last) sample along an axis of a plane that pixels first to stop - 1 are made of."""
    return max(first // factor - triangle, 0), min((stop - 1) // factor + triangle, size - 1)


@jit
def decode_samples(dct, top, left, bottom, right, height, width, buffers):
    """Make the samples that the pixels of a rectangle are made of; return 0, or the error code of `dct.decode_blocks`.

    Args:
        dct: DctBuffers, after `open_dct`.
        top, left, bottom, right: px, end-exclusive, not empty.
        height, width: of the image, px.
        buffers: PixelBuffers; fills planes, samples.
    """
    count = dct.together[COMPONENTS]
    _lay_out(count, dct.geometry, height, width, buffers.planes)
    for component in range(count):
        plane = buffers.planes[component]
        first_row, last_row = _needed(top, bottom, plane[HEIGHT], plane[DOWN], plane[DOWN_TRIANGLE])
        first, last = _needed(left, right, plane[WIDTH], plane[ACROSS], plane[ACROSS_TRIANGLE])
        plane[FIRST], plane[COUNT] = first, last + 1 - first
        first //= 8
        columns = last // 8 + 1 - first
        for row in range(first_row // 8, last_row // 8 + 1):
            code = decode_blocks(dct, component, row, first, columns, buffers.coefficients, 0, buffers.last, 0)
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
def _full_row(plane, y, first, count, buffers, target):
    """Put row y of a component at the full resolution at samples[target + column], unless it has that already.

    first, count: the samples of the plane's row that are needed, its neighbours for the triangle included.

    Returns:
        Where column 0 is.
    """
    samples, sums, across = buffers.samples, buffers.sums, plane[ACROSS]
    near = y >> (plane[DOWN] - 1) if plane[DOWN] <= 2 else y // plane[DOWN]
    row = plane[PLANE] + near * plane[STRIDE]
    far, weight = row, 0
    if plane[DOWN_TRIANGLE]:
        other = min(max(near - 1 + 2 * (y & 1), 0), plane[HEIGHT] - 1)
        far, weight = plane[PLANE] + other * plane[STRIDE], 1
    elif across == 1:
        return row
    blend_rows(samples, row + first, far + first, 1 + 2 * weight, weight, sums, 1, count)
    if plane[ACROSS_TRIANGLE]:  # libjpeg rounds both axes at once
        sums[0], sums[1 + count] = sums[1], sums[count]
        before, after = (8, 7) if weight else (1, 2)
        widen(sums, 1, 2 + 2 * weight, before, after, samples, target + 2 * first, count)
    elif weight:
        for k in range(count):
            samples[target + first + k] = (sums[1 + k] + 1 + (y & 1)) >> 2
    else:
        for k in range(count * across):
            samples[target + first * across + k] = samples[row + first + k // across]
    return target


@jit
def decode_rgb(dct, top, left, bottom, right, height, width, buffers):
    """`decode_samples`, and the RGB pixels of the rectangle in buffers.pixels, where they are in the whole image.

    Pixels to the right of the rectangle and below may be overwritten.
    """
    code = decode_samples(dct, top, left, bottom, right, height, width, buffers)
    if code != 0:
        return code
    samples, planes = buffers.samples, buffers.planes
    colours = dct.together[COMPONENTS] == 3
    row = (width + 7) // 8 * 8 + 2 * PIXELS
    rows = samples.size - 3 * row
    blue = red = rows + row
    if not colours:
        for k in range(row):
            samples[blue + k] = 128
    for y in range(top, bottom):
        luma = _full_row(planes[0], y, planes[0, FIRST], planes[0, COUNT], buffers, rows)
        if colours:
            blue = _full_row(planes[1], y, planes[1, FIRST], planes[1, COUNT], buffers, rows + row)
            red = _full_row(planes[2], y, planes[2, FIRST], planes[2, COUNT], buffers, rows + 2 * row)
        start = 3 * (y * width + left)
        ycbcr_to_rgb(samples, luma + left, blue + left, red + left, buffers.pixels, start, right - left)
    return 0
