"""What is drawn: sizes, places, numbers, orders, boxes."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from scipy import stats

from ffcv_cropmix import sample_plan
from ffcv_cropmix.kernels import sampling
from ffcv_cropmix.kernels.rng import make_key
from ffcv_cropmix.plan import sampling_options

COUNT = 20_000
SIDE = 4000  # px; large enough for rounding not to be seen
ALPHA = 0.001  # of the tests of distributions; the draws are the same each time


@njit
def _plans(options, count, side, output_side):
    """(number, flip, crops, lams, boxes, pasted, permutations) of `count` images."""
    numbers, flips = np.empty(count, np.int64), np.empty(count, np.bool_)
    crops, boxes = np.empty((count, 8, 4), np.int64), np.empty((count, 7, 4), np.int64)
    pasted, permutations = np.empty((count, 7), np.bool_), np.empty((count, 7, 3), np.int64)
    lams = np.empty((count, 7))
    arrays = sampling.new_plan_arrays()
    for index in range(count):
        numbers[index], flips[index] = sampling.sample(options, index, 0, side, side, output_side, output_side, arrays)
        crops[index] = arrays.crops
        lams[index] = arrays.lams
        boxes[index] = arrays.boxes
        pasted[index] = arrays.paste_next
        permutations[index] = arrays.permutations
    return numbers, flips, crops, lams, boxes, pasted, permutations


def _uniform(values: np.ndarray, low: float, high: float) -> bool:
    return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > ALPHA


def _equally_likely(values: list, outcomes: int) -> bool:
    counts = Counter(values)
    return len(counts) == outcomes and stats.chisquare(list(counts.values())).pvalue > ALPHA


@pytest.mark.parametrize(("scale", "number"), [(0.01, 2), (0.01, 3), ((0.2, 0.6), 4), (0.08, 1), (0.1, 8)])
def test_areas_are_uniform_in_each_band(scale, number: int) -> None:
    options = sampling_options(scale=scale, number=number, ratio=(1, 1))
    crops = _plans(options, COUNT, SIDE, 64)[2][:, :number]
    areas = crops[:, :, 2] * crops[:, :, 3] / SIDE**2
    edges = np.linspace(options.scale_low, options.scale_high, number + 1)
    for low, high, area in zip(edges, edges[1:], np.sort(areas, axis=1).T):
        assert _uniform(area, low, high)


def test_ratio_is_log_uniform_and_place_uniform() -> None:
    crops = _plans(sampling_options(scale=(0.1, 0.5), number=1, ratio=(3 / 4, 4 / 3)), COUNT, SIDE, 64)[2][:, 0]
    top, left, height, width = crops.T
    assert _uniform(np.log(width / height), math.log(3 / 4), math.log(4 / 3))
    assert _uniform((top + 0.5) / (SIDE - height + 1), 0, 1)
    assert _uniform((left + 0.5) / (SIDE - width + 1), 0, 1)


def test_234_draws_each_number_for_a_third_of_the_images() -> None:
    numbers = _plans(sampling_options(number=234), COUNT, SIDE, 64)[0]
    assert _equally_likely(numbers.tolist(), 3)
    assert set(numbers) == {2, 3, 4}
    assert set(_plans(sampling_options(number=(1, 8)), 100, SIDE, 64)[0]) == {1, 8}


@pytest.mark.parametrize("number", [3, 4, 5])
def test_orders_are_uniform(number: int) -> None:
    crops = _plans(sampling_options(number=number, ratio=(1, 1)), COUNT, SIDE, 64)[2][:, :number]
    assert _equally_likely([tuple(order) for order in np.argsort(crops[:, :, 2], axis=1)], math.factorial(number))


def test_two_views_keep_the_order_of_their_bands() -> None:
    crops = _plans(sampling_options(number=2, ratio=(1, 1)), COUNT, SIDE, 64)[2]
    assert (crops[:, 0, 2] <= crops[:, 1, 2]).all()


def test_lam_is_beta_of_the_ratio_over_the_number() -> None:
    lams = _plans(sampling_options(number=3, mix_ratio=0.9), COUNT, SIDE, 64)[3]
    for step in range(2):
        assert stats.kstest(lams[:, step], stats.beta(0.3, 0.3).cdf).pvalue > ALPHA
    assert abs(np.corrcoef(lams[:, 0], lams[:, 1])[0, 1]) < 0.03


def test_boxes() -> None:
    side = 1000
    *_, boxes, pasted, _ = _plans(sampling_options(number=2, operation="cutmix"), COUNT, SIDE, side)
    row0, col0, row1, col1 = boxes[:, 0].T
    assert min(row0.min(), col0.min()) >= 0
    assert max(row1.max(), col1.max()) <= side
    assert (row0 <= row1).all()
    whole = (row0 > 0) & (row1 < side) & (col0 > 0) & (col1 < side)
    assert (row1 - row0 == col1 - col0)[whole].all()  # square in a square
    # P(side < s) = P(1 - u < s^2) = s^2; clipped boxes are left out by looking at small ones in the middle
    middle = (np.abs((row0 + row1) / 2 - side / 2) < side / 4) & (np.abs((col0 + col1) / 2 - side / 2) < side / 4)
    small = (row1 - row0)[middle & (row1 - row0 < side / 2)]
    assert _uniform(((small + 1) / (side / 2)) ** 2, 0, 1)
    assert _equally_likely(pasted[:, 0].tolist(), 2)


def test_permutations_and_flips() -> None:
    options = sampling_options(number=2, inter_aug=True, flip_probability=0.25)
    _, flips, *_, permutations = _plans(options, COUNT, SIDE, 64)
    assert _equally_likely([tuple(order) for order in permutations[:, 0].tolist()], 6)
    assert flips.mean() == pytest.approx(0.25, abs=0.015)
    assert (_plans(sampling_options(number=2), 50, SIDE, 64)[-1][:, 0] == [0, 1, 2]).all()
    assert not _plans(sampling_options(flip_probability=0), 2000, SIDE, 64)[1].any()
    assert _plans(sampling_options(flip_probability=1), 2000, SIDE, 64)[1].all()


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.floats(0.001, 1),
    st.sampled_from([(0.01, 0.02), (3 / 4, 4 / 3), (1, 1), (50, 90)]),
    st.integers(0, 2**32 - 1),
)
def test_crops_lie_in_the_image(height: int, width: int, scale: float, ratio: tuple, index: int) -> None:
    low = math.log(ratio[0]), math.log(ratio[1])
    crop = np.empty(4, np.int64)
    sampling.sample_crop(make_key(1, 2, index, 4), 0, height, width, scale, min(2 * scale, 1), *low, crop)
    top, left, crop_height, crop_width = crop
    assert 0 <= top <= top + crop_height <= height
    assert 0 <= left <= left + crop_width <= width
    assert crop_height >= 1
    assert crop_width >= 1


def test_a_crop_that_cannot_fit_is_the_largest_in_the_middle() -> None:
    assert sample_plan(10, 1000, scale=0.9, number=1).crops == [(0, 493, 10, 13)]
    assert sample_plan(1000, 10, scale=0.9, number=1).crops == [(493, 0, 13, 10)]


@pytest.mark.parametrize(
    ("height", "width", "ratio", "expected"),
    [(10, 20, 1.0, (0, 5, 10, 10)), (21, 10, 0.5, (8, 2, 5, 5)), (1, 1, 0.1, (0, 0, 1, 1)), (9, 9, 0.87, (1, 1, 7, 7))],
)
def test_center_crop(height: int, width: int, ratio: float, expected: tuple) -> None:
    crop = np.empty(4, np.int64)
    sampling.center_crop(height, width, ratio, crop)
    assert tuple(crop) == expected
