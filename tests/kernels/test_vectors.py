"""The vector code does what its NumPy definitions say, to the bit, and nothing beyond what it may write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ffcv_cropmix.kernels import vectors
from ffcv_cropmix.kernels.jit import entry
from ffcv_cropmix.kernels.vectors import LANES, MOST_CUT_TAPS, PILLOW_BITS

COUNTS = (1, 3, 15, 16, 17, 63, 64, 65, 127, 129)
TAPS = (1, 2, 5, MOST_CUT_TAPS, MOST_CUT_TAPS + 1, 40)
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
def horizontal_plane(*arguments):
    vectors.horizontal_plane(*arguments)


@entry
def mix_planes(*arguments):
    vectors.mix_planes(*arguments)


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
    check(vertical, 6, image, 5, stride, coefficients, 2 * taps, taps, rows, 20, count)


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
    for permutation, base, step in ([0, 1, 2], 0, 1), ([2, 0, 1], outputs - 1, -1):
        source_of = np.array(permutation)
        check(
            horizontal,
            9,
            source // (4 if add and not pillow else 1),
            origin,
            starts,
            coefficients,
            taps,
            3,
            2,
            11,
            source_of,
            mix,
            base,
            step,
            top,
            bottom,
            add,
        )


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("plane", range(3))
def test_horizontal_plane(plane: int, taps: int) -> None:
    random = np.random.default_rng(taps)
    source = random_levels(random, (taps + 20) * LANES)
    starts = np.sort(random.integers(0, 21, 13)).astype(np.int32) + 6
    coefficients = random_coefficients(random, 13, taps, pillow=False)
    planes = random_levels(random, 13 * 3 * LANES)
    check(horizontal_plane, 7, source, 6, starts, coefficients, taps, 2, 11, planes, plane)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("top", "bottom"), [(0, LANES), (3, 9)])
@pytest.mark.parametrize("permutation", [[0, 1, 2], [1, 2, 0], [2, 1, 0]])
def test_mix_planes(permutation: list[int], top: int, bottom: int, add: bool) -> None:
    random = np.random.default_rng(0)
    share = FULL // 2
    planes = random_levels(random, 13 * 3 * LANES) // 2
    mix = planes[::-1].copy()
    for base, step in (0, 1), (12, -1):
        offsets = (9, 4 - share // 2, share * 255 // 256)
        check(mix_planes, 7, planes, *offsets, 2, 11, np.array(permutation), mix, base, step, top, bottom, add)


@pytest.mark.parametrize("rows", [1, 9, LANES])
@pytest.mark.parametrize("count", COUNTS)
def test_finish(count: int, rows: int) -> None:
    random = np.random.default_rng(count)
    mix = random_levels(random, count * LANES)
    out = np.zeros(7 + (count + 4) * LANES, np.uint8)
    check(finish, 2, mix, rows, out, 7, count + 4, count)
