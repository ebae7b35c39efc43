"""Upsampling and RGB: the vector code, its definition, and libjpeg's."""

from __future__ import annotations

import numpy as np
import pytest

from ffcv_cropmix.kernels import colour
from ffcv_cropmix.kernels.colour import GROUP, PIXELS
from ffcv_cropmix.kernels.jit import entry
from tests import naive

COUNTS = (1, 5, GROUP, GROUP + 1, 3 * PIXELS - 1)


@entry
def blend_rows(*arguments):
    colour.blend_rows(*arguments)


@entry
def widen(*arguments):
    colour.widen(*arguments)


@entry
def ycbcr_to_rgb(*arguments):
    colour.ycbcr_to_rgb(*arguments)


def check(compiled, output: int, stop: int, room: int, *arguments) -> None:
    """Compare with the definition of the same name, which writes up to `stop`; beyond it, `room` may be written."""
    expected, got = arguments[output].copy(), arguments[output].copy()
    getattr(colour, compiled.__name__)(*arguments[:output], expected, *arguments[output + 1 :])
    compiled(*arguments[:output], got, *arguments[output + 1 :])
    got[stop : stop + room] = expected[stop : stop + room]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("count", COUNTS)
def test_compiled_as_defined(count: int) -> None:
    random = np.random.default_rng(count)
    samples = random.integers(0, 256, 1000).astype(np.uint8)
    sums = random.integers(0, 1021, 500).astype(np.uint16)
    for weights in (3, 1), (1, 0):
        check(blend_rows, 5, 7 + count, GROUP, samples, 3, 400, *weights, sums, 7, count)
    for rounding in (2, 1, 2), (4, 8, 7):
        check(widen, 5, 3 + 2 * count, 2 * GROUP, sums % 256, 9, *rounding, samples, 3, count)
    pixels = random.integers(0, 256, 1000).astype(np.uint8)
    check(ycbcr_to_rgb, 4, 11 + 3 * count, 3 * PIXELS, samples, 5, 300, 600, pixels, 11, count)


def test_every_colour_is_libjpegs() -> None:
    blue, red = (plane.ravel() for plane in np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2))
    of_red, of_green, of_blue = naive.colour_tables()
    for luma in (0, 1, 77, 128, 254, 255):
        samples = np.concatenate([np.full(blue.size, luma, np.uint8), blue, red, np.zeros(PIXELS, np.uint8)])
        pixels = np.zeros(3 * (blue.size + PIXELS), np.uint8)
        ycbcr_to_rgb(samples, 0, blue.size, 2 * blue.size, pixels, 0, blue.size)
        expected = luma + np.stack([of_red[red], of_green[blue, red], of_blue[blue]], axis=1)
        np.testing.assert_array_equal(pixels.reshape(-1, 3)[: blue.size], np.clip(expected, 0, 255))
