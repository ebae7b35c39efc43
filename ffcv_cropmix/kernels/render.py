"""Render layers: resample each layer's crop, rows then columns, directly into the mix, sixteen output rows at a time.

The working set fits the first-level cache: the rows of one layer, transposed, and the mix of these rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arrays import empty
from .coefficients import FULL, fill_coefficients, table_size, window
from .jit import jit, uncounted
from .sampling import MAX_CROPS
from .vectors import LANES, MAX_TRUNCATED_TAPS, REPLACE, Taps, Target, finish, horizontal, transpose, vertical


class Scratch(NamedTuple):
    """Working memory of `render`, owned by one thread. Its size depends on the largest image and the output."""

    counts: Any  # int64 (MAX_CROPS, 2): number of taps of the rows and the columns of each layer
    starts: Any  # int32 (MAX_CROPS, 2, output side): first tap of each output row and column, in the crop
    coefficients: Any  # uint16 (MAX_CROPS, 2, n): the taps, one output position after the other
    rows: Any  # uint16 (LANES * n,): LANES rows of a layer, resampled vertically
    columns: Any  # uint16 (n * LANES,): the same, transposed
    mix: Any  # uint16 (3 * output width * LANES,): LANES output rows, transposed


@jit
def padded(values):
    """Round a row's length up: `transpose` takes eight values at a time, and a pixel has three."""
    return (values + 23) // 24 * 24


@jit
def new_scratch(interpolation, largest_height, largest_width, output_height, output_width):
    """Allocate scratch for images and outputs up to the given sizes, px."""
    table = table_size(interpolation, largest_height, largest_width, output_height, output_width)
    values = padded(3 * largest_width)
    return Scratch(
        empty((MAX_CROPS, 2), np.int64),
        empty((MAX_CROPS, 2, max(output_height, output_width)), np.int32),
        empty((MAX_CROPS, 2, table), np.uint16),
        empty(LANES * values, np.uint16),
        empty(values * LANES, np.uint16),
        empty(3 * output_width * LANES, np.uint16),
    )


@uncounted
def layer_share(weight):
    """Convert a layer's weight to 1/65536."""
    return int(weight * FULL + 0.5)


@uncounted
def visible_lanes(layers, k, count, row, lanes):
    """Return (first, last + 1) of the lanes (output rows from `row` on) that show layer k; empty if it is hidden."""
    rectangle = layers.rectangles[k]
    top, bottom = max(rectangle[0] - row, 0), min(rectangle[2] - row, lanes)
    for later in range(k + 1, count):
        above = layers.rectangles[later]
        if (
            layers.blends[later] == REPLACE
            and above[0] <= row + top
            and above[1] <= rectangle[1]
            and above[2] >= row + bottom
            and above[3] >= rectangle[3]
        ):
            return top, top
    return top, bottom


@uncounted
def pixels_needed(layers, count, interpolation, output_height, output_width, box):
    """Extend `box` (int64 (4,): top, left, bottom, right in the image, px) to all pixels that the layers depend on."""
    for k in range(count):
        for axis in range(2):
            corner, size = layers.crops[k, axis], layers.crops[k, 2 + axis]
            output_size = output_width if axis else output_height
            first, _ = window(interpolation, layers.rectangles[k, axis], size, output_size)
            last, taps = window(interpolation, layers.rectangles[k, 2 + axis] - 1, size, output_size)
            box[axis] = min(box[axis], corner + first)
            box[2 + axis] = max(box[2 + axis], corner + last + taps)


def renderer(prepare, resample):
    """Make a kernel that renders layers, sixteen output rows at a time, layer after layer.

    Args:
        prepare: (pixels, layout, layers, count, interpolation, out, scratch): fills the tables of coefficients.
        resample: (pixels, layout, layers, k, row, out, target, scratch): resamples layer k for the output rows from
            `row` on, and blends it into `scratch.mix` at `target`.

    Returns:
        The kernel `render`.
    """

    @uncounted
    def render(pixels, layout, layers, count, flip, interpolation, out, scratch):
        """Fill `out` with the mix of `count` layers. Values are rounded once.

        The filter never uses pixels outside a crop, as when Pillow crops and then resizes.

        Args:
            pixels: uint8 (n,), the image.
            layout: the arrangement of the pixels, as `prepare` and `resample` take it.
            layers: Layers.
            count: number of layers.
            flip: whether the mix is mirrored left to right.
            interpolation: see `coefficients`.
            out: uint8 (height, width, 3).
            scratch: working memory; its `mix` is uint16 (3 * width * LANES,).
        """
        prepare(pixels, layout, layers, count, interpolation, out, scratch)
        height, width, _ = out.shape
        base, step = (width - 1, -1) if flip else (0, 1)
        lanes = min(LANES, height)
        for block in range(0, height, LANES):
            row = min(block, height - lanes)  # the last block ends with the rows
            for k in range(count):
                top, bottom = visible_lanes(layers, k, count, row, lanes)
                if top < bottom:
                    begin, end = layers.rectangles[k, 1], layers.rectangles[k, 3]
                    target = Target(begin, end, base, step, top, bottom, layers.blends[k])
                    resample(pixels, layout, layers, k, row, out, target, scratch)
            finish(scratch.mix, lanes, out, 3 * width * row, 3 * width, 3 * width)

    return render


@uncounted
def truncation_bias(taps):
    """Return how often a sum over `taps` taps is truncated, each time by up to 1/256 level."""
    return taps if taps <= MAX_TRUNCATED_TAPS else 1


@uncounted
def prepare_rgb(pixels, width, layers, count, interpolation, out, scratch):
    """Fill the tables of coefficients of all layers, for `resample_rgb`. See `renderer`."""
    for k in range(count):
        for axis in range(2):
            scratch.counts[k, axis] = fill_coefficients(
                interpolation,
                layers.crops[k, 2 + axis],
                out.shape[axis],
                FULL if axis == 0 else layer_share(layers.weights[k]),
                scratch.starts[k, axis],
                scratch.coefficients[k, axis],
            )


@uncounted
def resample_rgb(pixels, width, layers, k, row, out, target, scratch):
    """Resample a layer of an image of RGB rows, whose layout is its width, px. See `renderer`."""
    rows = Taps(scratch.starts[k, 0], scratch.coefficients[k, 0], scratch.counts[k, 0])
    columns = Taps(scratch.starts[k, 1], scratch.coefficients[k, 1], scratch.counts[k, 1])
    first = columns.starts[target.begin]
    values = 3 * (columns.starts[target.end - 1] + columns.count - first)
    origin = 3 * (layers.crops[k, 0] * width + layers.crops[k, 1] + first)
    for lane in range(target.top, target.bottom):
        vertical(pixels, origin, 3 * width, rows, row + lane, scratch.rows, lane * padded(values), values)
    transpose(scratch.rows, padded(values), scratch.columns, values)
    bias = int((truncation_bias(rows.count) * layers.weights[k] + truncation_bias(columns.count) + 1) / 2)
    horizontal(scratch.columns, first, columns, bias, layers.permutations[k], scratch.mix, target)
