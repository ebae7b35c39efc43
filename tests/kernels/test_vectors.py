"""The vector code does what its NumPy definitions say, to the bit, and nothing beyond what it may write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ffcv_cropmix.kernels import vectors
from ffcv_cropmix.kernels.jit import entry
from ffcv_cropmix.kernels.vectors import LANES, MAX_TRUNCATED_TAPS, PILLOW_BITS, Colours, Taps, Target

COUNTS = (1, 3, 15, 16, 17, 63, 64, 65, 127, 129)
TAPS = (1, 2, 5, MAX_TRUNCATED_TAPS, MAX_TRUNCATED_TAPS + 1, 40)
FULL = 2**16


@entry
def vertical(*arguments):
    vectors.vertical(*arguments)


@entry
def transpose(*arguments):
    vectors.transpose(*arguments)


@entry
def horizontal(*arguments):
    vectors.horizontal(*arguments)


@entry
def horizontal_planes(*arguments):
    vectors.horizontal_planes(*arguments)


@entry
def finish(*arguments):
    vectors.finish(*arguments)


def check(compiled: Callable, output: int, *arguments) -> None:
    """Compare with the definition of the same name; `output` is the place of the array that is filled."""
    expected = arguments[output].copy()
    getattr(vectors, compiled.__name__)(*arguments[:output], expected, *arguments[output + 1 :])
    got = arguments[output].copy()
    compiled(*arguments[:output], got, *arguments[output + 1 :])
    np.testing.assert_array_equal(got, expected)
    assert (got != arguments[output]).any()


def random_coefficients(random: np.random.Generator, positions: int, taps: int, pillow: bool) -> np.ndarray:
    """(positions * taps,): of uint16 with sums below 2**16; of int32 also negative, with sums of about 2**22."""
    shares = random.dirichlet(np.ones(taps), positions)
    if pillow:
        return ((shares + random.normal(0, 0.1, shares.shape)) * 2**PILLOW_BITS).astype(np.int32).ravel()
    return (shares * (FULL - 1)).astype(np.uint16).ravel()


def random_levels(random: np.random.Generator, size: int, whole: bool = False) -> np.ndarray:
    """uint16 (size,) in 1/256 level; for Pillow's arithmetic whole levels."""
    return (random.integers(0, 256, size) << 8 if whole else random.integers(0, 255 * 256, size)).astype(np.uint16)


@pytest.mark.parametrize("pillow", [False, True])
@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("count", COUNTS)
def test_vertical(count: int, taps: int, pillow: bool) -> None:
    random = np.random.default_rng(count)
    stride = count + 7
    image = random.integers(0, 256, 5 + stride * taps, np.uint8)
    image.flags.writeable = False  # as the kernels have it
    coefficients = random_coefficients(random, 3, taps, pillow)
    rows = random_levels(random, count + 50)
    starts = np.array([9, 9, 2], np.int32)
    check(vertical, 5, image, 5 - 2 * stride, stride, Taps(starts, coefficients, taps), 2, rows, 20, count)


@pytest.mark.parametrize("count", COUNTS)
def test_transpose(count: int) -> None:
    random = np.random.default_rng(count)
    stride = (count + 7) // 8 * 8
    rows = random_levels(random, LANES * stride)
    check(transpose, 2, rows, stride, random_levels(random, LANES * (count + 30)), count)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("top", "bottom"), [(0, LANES), (0, 5), (3, LANES), (7, 8)])
@pytest.mark.parametrize(("taps", "pillow"), [*((taps, False) for taps in TAPS), (1, True), (9, True)])
def test_horizontal(taps: int, pillow: bool, top: int, bottom: int, add: bool) -> None:
    random = np.random.default_rng(taps)
    outputs, columns, origin = 13, taps + 20, 6
    source = random_levels(random, columns * 3 * LANES, whole=pillow)
    starts = np.sort(random.integers(0, 21, outputs)).astype(np.int32) + origin
    coefficients = random_coefficients(random, outputs, taps, pillow)
    mix = random_levels(random, outputs * 3 * LANES) // 4
    source //= 4 if add and not pillow else 1
    for permutation, base, step in ([0, 1, 2], 0, 1), ([2, 0, 1], outputs - 1, -1):
        target = Target(2, 11, base, step, top, bottom, int(add))
        all_taps = Taps(starts, coefficients, taps)
        check(horizontal, 5, source, origin, all_taps, 3, np.array(permutation), mix, target)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("top", "bottom"), [(0, LANES), (0, 5), (3, LANES), (7, 8)])
@pytest.mark.parametrize("half_taps", [1, 3, 9, MAX_TRUNCATED_TAPS + 1])
@pytest.mark.parametrize("taps", TAPS)
def test_horizontal_planes(taps: int, half_taps: int, top: int, bottom: int, add: bool) -> None:
    random = np.random.default_rng(taps)
    outputs, columns, origin, half_origin = 13, taps + 20, 6, 9
    blue = columns + 2
    red = blue + half_taps + 10
    for share, permutation in (FULL, [0, 1, 2]), (FULL // 2, [1, 2, 0]), (FULL // 3, [2, 0, 1]), (FULL, [2, 1, 0]):
        weight = share / FULL
        levels = random_levels(random, (red + half_taps + 10) * LANES).astype(np.int64)
        extreme = random.integers(0, 4, levels.size)  # half of them: where sums saturate
        levels[extreme == 0], levels[extreme == 1] = 0, 255 * 256
        starts = np.sort(random.integers(0, 21, outputs)).astype(np.int32) + origin
        half_starts = np.sort(random.integers(0, 11, outputs)).astype(np.int32) + half_origin
        mix = random_levels(random, outputs * 3 * LANES) // 4
        columns_of_all = (levels * weight).astype(np.uint16)
        luma = Taps(starts, random_coefficients(random, outputs, taps, pillow=False), taps)
        half = Taps(half_starts, random_coefficients(random, outputs, half_taps, pillow=False), half_taps)
        colours = Colours(blue - half_origin, red - half_origin, half, share // 2 - 4)
        limit = share * 255 // 256
        for base, step in (0, 1), (outputs - 1, -1):
            target = Target(2, 11, base, step, top, bottom, int(add))
            order = np.array(permutation)
            check(horizontal_planes, 7, columns_of_all, origin, luma, 9, colours, limit, order, mix, target)


def test_rgb_of_colours() -> None:
    """Those in gamut, the cube's corners among them, to 3/256 level. A product loses half of 1/256 on average."""
    random = np.random.default_rng(0)
    corners = np.stack(np.meshgrid([0.0, 1.0], [0.0, 1.0], [0.0, 1.0])).reshape(3, -1)
    rgb = np.concatenate([corners, random.uniform(0, 1, (3, 10**5))], axis=1) * 255 * 256
    luma = np.array([0.299, 0.587, 0.114]) @ rgb
    blue, red = (rgb[2] - luma) / 1.772, (rgb[0] - luma) / 1.402
    planes = [plane.round().astype(int) for plane in (luma, blue, red)]
    error = vectors._rgb(*planes, 255 * 256) - rgb
    assert np.abs(error).max() < 3
    np.testing.assert_allclose(error.mean(axis=1), [-0.5, -1, -0.5], atol=0.05)


def test_rgb_beyond_the_gamut_is_clipped() -> None:
    luma, blue, red = np.meshgrid(np.arange(0, 256, 15), *[np.arange(-128, 128, 15)] * 2)
    green = -0.344136 * blue - 0.714136 * red
    expected = np.clip([luma + 1.402 * red, luma + np.clip(green, -128, 128), luma + 1.772 * blue], 0, 255)
    got = vectors._rgb(luma * 256, blue * 256, red * 256, 255 * 256) / 256
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("rows", [1, 9, LANES])
@pytest.mark.parametrize("count", COUNTS)
def test_finish(count: int, rows: int) -> None:
    random = np.random.default_rng(count)
    mix = random_levels(random, count * LANES)
    out = np.zeros(7 + (count + 4) * LANES, np.uint8)
    check(finish, 2, mix, rows, out, 7, count + 4, count)
