"""Filters: the inputs of each output position and their weights. Positions are pixel centres, in px.

The windows are Pillow's (`precompute_coeffs`): when shrinking, the filter is stretched by the scale. It is truncated at
the crop's edges, so it never uses pixels outside the crop.
"""

from __future__ import annotations

import math

from .jit import jit, uncounted

BILINEAR, BICUBIC, AREA = range(3)
SUPPORT = (1.0, 2.0, 1.0)  # px at scale 1, to each side; area is bilinear when enlarging
NEGATIVE_LOBES = (False, True, False)  # whether weights can be negative; `two_pass` renders these filters

FULL = 65536  # a weight of 1


@jit
def most_taps(interpolation, size, output_size):
    """Return an upper bound of the number of taps of an output position."""
    return 2 * math.ceil(SUPPORT[interpolation] * max(size / output_size, 1.0)) + 1


@jit
def table_size(interpolation, largest_height, largest_width, output_height, output_width):
    """Return an upper bound of the number of taps of all output positions along either axis of a crop.

    It holds for images and outputs up to the given sizes, px.
    """
    reach = 2 * SUPPORT[interpolation]  # most_taps is below reach * max(size / output_size, 1) + 3
    return math.ceil(
        max(
            reach * max(largest_height, output_height) + 3 * output_height,
            reach * max(largest_width, output_width) + 3 * output_width,
        )
    )


@uncounted
def window(interpolation, position, size, output_size):
    """Return (first input, number of inputs) of an output position; the number is at least 1."""
    scale = size / output_size
    center = (position + 0.5) * scale
    if interpolation == AREA and scale > 1.0:
        first = int(position * scale)
        last = math.ceil((position + 1) * scale - 1e-9)
    else:
        support = SUPPORT[interpolation] * max(scale, 1.0)
        first = int(max(center - support + 0.5, 0.0))
        last = int(center + support + 0.5)
    first = min(first, size - 1)
    return first, max(min(last, size) - first, 1)


@uncounted
def weight(interpolation, position, k, size, output_size):
    """Return the weight, not normalised, of input k in an output position."""
    scale = size / output_size
    if interpolation == AREA and scale > 1.0:
        return max(min(k + 1.0, (position + 1) * scale) - max(float(k), position * scale), 0.0)
    x = abs((k + 0.5 - (position + 0.5) * scale) / max(scale, 1.0))
    if interpolation == BICUBIC:  # a = -0.5
        if x < 1.0:
            return (1.5 * x - 2.5) * x * x + 1.0
        if x < 2.0:
            return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        return 0.0
    return max(1.0 - x, 0.0)


@uncounted
def fill_coefficients(interpolation, size, output_size, share, starts, coefficients):
    """Compute the coefficients of each output position, for filters without negative lobes.

    Args:
        interpolation: BILINEAR or AREA.
        size, output_size: sides of the crop and of the output, px.
        share: sum of the coefficients of each position, in 1/65536, at most FULL.
        starts: int32 (at least output_size,), filled with the first input of each position.
        coefficients: uint16 (at least output_size * taps,), filled.

    Returns:
        Number of taps, the same for all positions.
    """
    taps = 1
    for position in range(output_size):
        taps = max(taps, window(interpolation, position, size, output_size)[1])
    for position in range(output_size):
        start = min(window(interpolation, position, size, output_size)[0], size - taps)
        total = 0.0
        for k in range(start, start + taps):
            total += weight(interpolation, position, k, size, output_size)
        # Rounding the running sum keeps the total exact, and the error of each coefficient at most 1/65536.
        running, before = 0.0, 0
        for tap in range(taps):
            running += weight(interpolation, position, start + tap, size, output_size)
            now = int(running / total * share + 0.5)
            coefficients[position * taps + tap] = min(now - before, FULL - 1)
            before = now
        starts[position] = start
    return taps
