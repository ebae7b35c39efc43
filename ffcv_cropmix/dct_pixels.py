"""Decode the DCT coefficients of an image (see `dct`) to planes or RGB pixels: the whole image, or a rectangle of it.

The pixels equal libjpeg-turbo's accurate decoding of the JPEG bit for bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from .dct import BAD_DCT, OK, new_context, open_dct
from .dct import destroy_context as destroy_context
from .dct import new_buffers as new_dct_buffers
from .kernels.arrays import BYTES, empty
from .kernels.coefficient_code import COLUMNS, COMPONENTS, FIRST_ROW, H_STEP, ROWS, V_STEP, decode_row
from .kernels.colour import PIXELS, blend_rows, widen, ycbcr_to_rgb
from .kernels.idct import inverse_dct
from .kernels.jit import compiled_once, jit, uncounted
from .kernels.planes import (
    ACROSS,
    ACROSS_TRIANGLE,
    COUNT,
    DOWN,
    DOWN_TRIANGLE,
    FIRST,
    HEIGHT,
    LAYOUT,
    PLANE,
    STRIDE,
    WIDTH,
)


class PixelBuffers(NamedTuple):
    """Working memory for decoding images one after another, owned by one thread."""

    context: Any  # zstd's, see `new_context`
    dct: Any  # DctBuffers
    coefficients: Any  # int16 (n,): of a row of blocks
    last: Any  # uint8 (n,): of the same blocks, see `inverse_dct`
    layout: Any  # int64 (3, LAYOUT): of the planes, see kernels.planes.PLANE
    pixels: Any  # uint8 (n,): RGB rows, then planes, then one row of each component at full resolution
    sums: Any  # uint16 (n,): a row of a plane, with one extra sample on each side


@jit
def new_buffers(largest_height, largest_width):
    """Allocate buffers for images up to the given size, px. Free their zstd context with `destroy_context`."""
    height, width = (largest_height + 7) // 8 * 8, (largest_width + 15) // 8 * 8
    row = width + 2 * PIXELS
    return PixelBuffers(
        new_context(),
        new_dct_buffers(largest_height, largest_width),
        empty(8 * width, np.int16),
        empty(width // 8 + 1, np.uint8),
        empty((3, LAYOUT), np.int64),
        empty(3 * (largest_height * largest_width + PIXELS + height * width + row), np.uint8),
        empty(row, np.uint16),
    )


@uncounted
def _needed(first, stop, size, factor, triangle):
    """Return the (first, last) sample along an axis of a plane that pixels first to stop - 1 depend on."""
    return max(first // factor - triangle, 0), min((stop - 1) // factor + triangle, size - 1)


@uncounted
def decode_plane(component, height, width, box, start, buffers):
    """Lay out the plane of a component, and decode the samples that the pixels of a box depend on.

    Args:
        component: 0 to 2.
        height, width: size of the image, px.
        box: int64 (4,), see `decode_dct`.
        start: offset of the plane in buffers.pixels.
        buffers: PixelBuffers; `open_dct` has filled buffers.dct.

    Returns:
        The offset of the end of the plane; 0 if the sample is damaged.
    """
    dct, plane = buffers.dct, buffers.layout[component]
    part, quantisation = dct.parts[component], dct.quantisation[component]
    down, across = part[V_STEP], part[H_STEP]
    stride = 8 * (part[COLUMNS] + 1)  # blocks are transformed in pairs
    own_height, own_width = (height + down - 1) // down, (width + across - 1) // across
    wide = across == 1 or own_width > 2  # libjpeg's condition
    triangle_down = down == 2 and across <= 2 and wide
    triangle_across = across == 2 and down <= 2 and wide
    top, bottom = _needed(box[0], box[2], own_height, down, triangle_down)
    left, right = _needed(box[1], box[3], own_width, across, triangle_across)
    plane[PLANE], plane[STRIDE], plane[HEIGHT], plane[WIDTH] = start, stride, own_height, own_width
    plane[DOWN], plane[ACROSS] = down, across
    plane[DOWN_TRIANGLE], plane[ACROSS_TRIANGLE] = triangle_down, triangle_across
    plane[FIRST], plane[COUNT] = left, right + 1 - left
    first = left // 8
    columns = right // 8 + 1 - first
    coefficients, last = buffers.coefficients, buffers.last
    for row in range(top // 8, bottom // 8 + 1):
        if not decode_row(
            dct.content, dct.together, dct.index, part[FIRST_ROW] + row, first, columns, coefficients, last
        ):
            return 0
        last[columns] = 0
        at = start + 8 * (row * stride + first)
        inverse_dct(coefficients, quantisation, last, (columns + 1) // 2, buffers.pixels, at, stride)
    return start + 8 * part[ROWS] * stride


@uncounted
def _full_row(plane, y, pixels, sums, target):
    """Upsample row y of a component to pixels[target + column], unless its plane has the full resolution already.

    Returns:
        The offset of column 0 in `pixels`.
    """
    across, first, count = plane[ACROSS], plane[FIRST], plane[COUNT]
    near = y >> (plane[DOWN] - 1) if plane[DOWN] <= 2 else y // plane[DOWN]
    row = plane[PLANE] + near * plane[STRIDE]
    far, weight = row, 0
    if plane[DOWN_TRIANGLE]:
        other = min(max(near - 1 + 2 * (y & 1), 0), plane[HEIGHT] - 1)
        far, weight = plane[PLANE] + other * plane[STRIDE], 1
    elif across == 1:
        return row
    blend_rows(pixels, row + first, far + first, 1 + 2 * weight, weight, sums, 1, count)
    if plane[ACROSS_TRIANGLE]:  # libjpeg rounds once for both axes
        sums[0], sums[1 + count] = sums[1], sums[count]
        widen(sums, 1, 2 + 2 * weight, 1 + 7 * weight, 2 + 5 * weight, pixels, target + 2 * first, count)
    elif weight:
        for k in range(count):
            pixels[target + first + k] = (sums[1 + k] + 1 + (y & 1)) >> 2
    else:
        for k in range(count * across):
            pixels[target + first * across + k] = sums[1 + k // across]
    return target


@uncounted
def make_rgb(width, box, row, buffers):
    """Convert a box of the planes to RGB. `row` is the offset of working memory for one row of each component."""
    layout, pixels, sums = buffers.layout, buffers.pixels, buffers.sums
    colours = buffers.dct.together[COMPONENTS] == 3
    left, count = box[1], box[3] - box[1]
    blue, red = row + sums.size, row + 2 * sums.size
    if not colours:
        for k in range(blue, red + sums.size):
            pixels[k] = 128
    for y in range(box[0], box[2]):
        luma = _full_row(layout[0], y, pixels, sums, row)
        if colours:
            blue = _full_row(layout[1], y, pixels, sums, row + sums.size)
            red = _full_row(layout[2], y, pixels, sums, row + 2 * sums.size)
        ycbcr_to_rgb(pixels, luma + left, blue + left, red + left, pixels, 3 * (y * width + left), count)


@cache
def compile_decode_dct() -> Any:
    """Compile the kernel `decode_dct`, once for all callers. Its largest functions are compiled separately."""
    example = new_buffers(8, 8)
    destroy_context(example.context)
    int64, box, buffers = types.int64, types.Array(types.int64, 1, "C"), numba.typeof(example)
    plane = compiled_once(decode_plane, int64, int64, int64, int64, box, int64, buffers)
    rgb = compiled_once(make_rgb, types.none, int64, box, int64, buffers)

    def decode_dct(data, height, width, box, planar, buffers):
        """Decode the part of a sample that the pixels of a box depend on into buffers.pixels.

        Args:
            data: uint8 (n,), the sample, read-only, see `open_dct`.
            height, width: the expected size of the image, px.
            box: int64 (4,), top, left, bottom, right, px; bottom and right are exclusive; not empty.
            planar: keep planes if luma has the full resolution, and blue and red the same resolution as each other.
            buffers: PixelBuffers.

        Returns:
            code << 1 | planes. `code` is OK or an error code of `open_dct`; after an error the pixels are undefined.
            `planes` is 1 if the result is planes, described by buffers.layout, and 0 if it is the RGB rows of the
            image. Pixels outside the box are undefined.
        """
        code = open_dct(buffers.context, data, height, width, buffers.dct)
        if code != OK:
            return code << 1
        layout, components = buffers.layout, buffers.dct.together[COMPONENTS]
        end = 3 * (height * width + PIXELS)
        for component in range(components):
            end = plane(component, height, width, box, end, buffers)
            if end == 0:
                return BAD_DCT << 1
        alike = layout[1, DOWN] == layout[2, DOWN] and layout[1, ACROSS] == layout[2, ACROSS]
        if planar and components == 3 and layout[0, DOWN] * layout[0, ACROSS] == 1 and alike:
            return OK << 1 | 1
        rgb(width, box, end, buffers)
        return OK << 1

    return compiled_once(decode_dct, int64, BYTES, int64, int64, box, types.boolean, buffers)
