"""Filters: which inputs make up an output position, with which weights. Positions are pixel centres, in px.

Windows are Pillow's (`precompute_coeffs`): a filter is stretched by the scale when it shrinks, and cut at the crop's
edges, so that it never sees pixels outside the crop.
"""

from __future__ import annotations

import math

from .jit import jit, uncounted

BILINEAR, BICUBIC, AREA = range(3)
SUPPORT = (1.0, 2.0, 1.0)  # px at scale 1, to each side; area is bilinear where it enlarges
NEGATIVE_LOBES = (False, True, False)  # whether weights can be negative; `two_pass` renders those filters

FULL = 65536  # a weight of 1


@jit
def most_taps(interpolation, size, output_size):
    """At least the number of taps of any output position."""
    return 2 * math.ceil(SUPPORT[interpolation] * max(size / output_size, 1.0)) + 1


@jit
def table_size(interpolation, largest_height, largest_width, output_height, output_width):
    """Room for the taps of all output positions along either axis of a crop, images and outputs up to a size, px."""
    reach = 2 * SUPPORT[interpolation]  # most_taps is below reach * max(size / output_size, 1) + 3
    return math.ceil(
        max(
            reach * max(largest_height, output_height) + 3 * output_height,
            reach * max(largest_width, output_width) + 3 * output_width,
        )
    )


@uncounted
def window(interpolation, position, size, output_size):
    """(first input, number of inputs, at least 1) of an output position."""
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
    """Weight, not normalised, of input k in an output position."""
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
    """Fill the uint16 coefficients of each output position; return their number, the same for all.

    Args:
        size, output_size: of the crop's and the output's side, px.
        share: what each position's coefficients add up to, at most FULL; 1/65536.
        starts: int32 (output_size,), first input of each position.
        coefficients: uint16 (output_size * taps,); not for filters with negative lobes.
    """
    taps = 1
    for position in range(output_size):
        taps = max(taps, window(interpolation, position, size, output_size)[1])
    for position in range(output_size):
        start = min(window(interpolation, position, size, output_size)[0], size - taps)
        total = 0.0
        for k in range(start, start + taps):
            total += weight(interpolation, position, k, size, output_size)
        # Rounding the running sum makes the sum exact, and no coefficient more than 1/65536 off.
        running, before = 0.0, 0
        for tap in range(taps):
            running += weight(interpolation, position, start + tap, size, output_size)
            now = int(running / total * share + 0.5)
            coefficients[position * taps + tap] = min(now - before, FULL - 1)
            before = now
        starts[position] = start
    return taps
