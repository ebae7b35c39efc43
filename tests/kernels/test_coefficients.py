"""Tables of coefficients against the filters' definitions."""

from __future__ import annotations

import numpy as np
import pytest

from ffcv_cropmix import MixPlan
from ffcv_cropmix.kernels.coefficients import (
    AREA,
    BICUBIC,
    BILINEAR,
    FULL,
    fill_coefficients,
    most_taps,
    table_size,
    window,
)
from ffcv_cropmix.kernels.planes import compose_upsampling
from ffcv_cropmix.kernels.render import pixels_needed
from ffcv_cropmix.kernels.vectors import Taps
from tests import naive
from tests.kernels.test_layers import HEIGHT, WIDTH, layers_of

NAMES = {"bilinear": BILINEAR, "area": AREA}
SIZES = [(1, 1), (1, 7), (7, 1), (2, 3), (3, 2), (5, 5), (11, 7), (70, 33), (100, 50), (500, 7), (33, 224)]


def table(interpolation: int, size: int, output_size: int, share: int = FULL) -> np.ndarray:
    """float64 (output_size, size): the coefficients as a matrix."""
    starts = np.zeros(output_size, np.int32)
    coefficients = np.zeros(table_size(interpolation, size, 1, output_size, 1), np.uint16)
    taps = fill_coefficients(interpolation, size, output_size, share, starts, coefficients)
    matrix = np.zeros((output_size, size))
    for position, start in enumerate(starts):
        assert 0 <= start <= size - taps
        matrix[position, start : start + taps] = coefficients[position * taps : (position + 1) * taps]
    return matrix


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "output_size"), SIZES)
def test_filters(size: int, output_size: int, name: str) -> None:
    matrix = table(NAMES[name], size, output_size) / FULL
    np.testing.assert_allclose(matrix, naive.resize_matrix(size, output_size, name), rtol=0, atol=1.01 / FULL)


@pytest.mark.parametrize("share", [1, 129, 40000, FULL])
@pytest.mark.parametrize(("size", "output_size"), SIZES)
def test_the_sum_is_the_share(size: int, output_size: int, share: int) -> None:
    matrix = table(BILINEAR, size, output_size, share)
    most = np.minimum(matrix.sum(axis=1), share)
    one_tap = (matrix != 0).sum(axis=1) == 1  # of 1, a coefficient holds 65535/65536
    np.testing.assert_array_equal(most, np.where(one_tap, min(share, FULL - 1), share))


@pytest.mark.parametrize("interpolation", [BILINEAR, BICUBIC, AREA])
@pytest.mark.parametrize(("size", "output_size"), SIZES)
def test_no_window_has_more_taps_than_there_is_room_for(size: int, output_size: int, interpolation: int) -> None:
    for position in range(output_size):
        first, count = window(interpolation, position, size, output_size)
        assert 0 <= first < first + count <= size
        assert count <= most_taps(interpolation, size, output_size)


def upsampled(samples: np.ndarray, size: int) -> np.ndarray:
    """libjpeg's "fancy" upsampling of a line by two, cut to `size`: 3/4 of the nearer sample, 1/4 of the farther."""
    padded = np.concatenate([samples[:1], samples, samples[-1:]])
    line = np.empty(2 * len(samples))
    line[0::2] = (3 * padded[1:-1] + padded[:-2]) / 4
    line[1::2] = (3 * padded[1:-1] + padded[2:]) / 4
    return line[:size]


@pytest.mark.parametrize(("factor", "triangle"), [(1, 0), (2, 0), (2, 1), (4, 0)])
@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize(("size", "output_size"), SIZES)
def test_composed_with_upsampling(size: int, output_size: int, offset: int, factor: int, triangle: int) -> None:
    for rest in (0, 1):
        whole = offset + size + rest
        small = -(-whole // factor)
        samples = np.random.default_rng(size).uniform(0, 255, small)
        starts, composed_starts = np.zeros(output_size, np.int32), np.zeros(output_size, np.int32)
        room = table_size(BILINEAR, size, 1, output_size, 1)
        coefficients, composed = np.zeros(room, np.uint16), np.zeros(room + 2 * output_size, np.uint16)
        taps = fill_coefficients(BILINEAR, size, output_size, FULL, starts, coefficients)
        sums = np.zeros(room + 2, np.int64)
        all_taps, filled = Taps(starts, coefficients, taps), (composed_starts, composed, sums)
        composed_taps = compose_upsampling(all_taps, offset, factor, triangle, small, output_size, *filled)
        got = [
            composed[k * composed_taps :][:composed_taps] @ samples[start:][:composed_taps] / FULL
            for k, start in enumerate(composed_starts)
        ]
        line = upsampled(samples, whole) if triangle else np.repeat(samples, factor)[:whole]
        expected = naive.resize_matrix(size, output_size) @ line[offset : offset + size]
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.02)


def test_pixels_needed_are_those_that_count() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        shape = random.integers(5, 60, 2)
        corner = random.integers(0, shape)
        size = random.integers(1, shape - corner + 1)
        rectangle = np.sort([random.choice(side + 1, 2, replace=False) for side in (HEIGHT, WIDTH)], axis=1)
        layers = layers_of(MixPlan(crops=[(*corner.tolist(), *size.tolist())]))
        layers.rectangles[0] = rectangle.T.ravel()
        for name, interpolation in {**NAMES, "bicubic": BICUBIC}.items():
            box = np.array([10**6, 10**6, 0, 0])
            pixels_needed(layers, 1, interpolation, HEIGHT, WIDTH, box)
            for axis, output_size in enumerate((HEIGHT, WIDTH)):
                shown = naive.resize_matrix(size[axis], output_size, name)[slice(*rectangle[axis])]
                used = corner[axis] + np.flatnonzero(np.abs(shown).sum(axis=0) > 1e-12)
                low, high = used.min(), used.max() + 1
                spare = 2 if name == "bicubic" else 1  # weights of 0 at the ends of a window
                assert max(low - spare, corner[axis]) <= box[axis] <= low
                assert high <= box[2 + axis] <= min(high + spare, corner[axis] + size[axis])
