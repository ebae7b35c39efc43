"""What is sampled: sizes, places, numbers, orders, boxes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numba import njit
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from ffcv_cropmix import sample_plan
from ffcv_cropmix.kernels import sampling
from ffcv_cropmix.kernels.rng import make_key
from ffcv_cropmix.plan import sampling_options

COUNT = 20_000
SIDE = 4000  # px; large enough for rounding not to be seen
ALPHA = 0.001  # of the tests of distributions; the samples are the same each time


class Sampled(NamedTuple):
    """The plans of `COUNT` images."""

    numbers: np.ndarray
    flips: np.ndarray
    crops: np.ndarray
    lams: np.ndarray
    boxes: np.ndarray
    paste_next: np.ndarray
    permutations: np.ndarray


@njit
def _sample(options, epoch, view, image_size, output_size):
    numbers, flips = np.empty(COUNT, np.int64), np.empty(COUNT, np.bool_)
    crops, lams, boxes = np.empty((COUNT, 8, 4), np.int64), np.empty((COUNT, 7)), np.empty((COUNT, 7, 4), np.int64)
    paste_next, permutations = np.empty((COUNT, 7), np.int64), np.empty((COUNT, 7, 3), np.int64)
    plan = sampling.new_plan_arrays()
    for k in range(COUNT):
        numbers[k], flips[k] = sampling.sample(
            options, k, epoch, view, image_size[0], image_size[1], output_size[0], output_size[1], plan
        )
        crops[k] = plan.crops
        lams[k] = plan.lams
        boxes[k] = plan.boxes
        paste_next[k] = plan.paste_next
        permutations[k] = plan.permutations
    return Sampled(numbers, flips, crops, lams, boxes, paste_next, permutations)


def sample_all(epoch: int = 0, view: int = 0, image_size=(SIDE, SIDE), output_size=(64, 64), **options) -> Sampled:
    return _sample(sampling_options(**options), epoch, view, image_size, output_size)


def _uniform(values: np.ndarray, low: float, high: float) -> bool:
    return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > ALPHA


def _equally_likely(values: list, outcomes: int) -> bool:
    counts = Counter(values)
    return len(counts) == outcomes and stats.chisquare(list(counts.values())).pvalue > ALPHA


def _dependent(columns: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """The pairs of columns whose sixths depend on each other by a chi-square test."""
    sixths = {}
    for name, values in columns.items():
        edges = np.unique(np.quantile(values, np.arange(1, 6) / 6, method="higher"))
        sixths[name] = np.searchsorted(edges[edges > values.min()], values, side="right")
    pairs = list(itertools.combinations(columns, 2))
    found = []
    for pair in pairs:
        one, other = (sixths[name] for name in pair)
        table = np.bincount(one * (other.max() + 1) + other).reshape(-1, other.max() + 1)
        if stats.chi2_contingency(table).pvalue < ALPHA / len(pairs):
            found.append(pair)
    return found


@pytest.mark.parametrize(("scale", "number"), [(0.01, 2), (0.01, 3), ((0.2, 0.6), 4), (0.08, 1), (0.1, 8)])
def test_areas_are_uniform_in_each_band(scale, number: int) -> None:
    crops = sample_all(scale=scale, number=number, ratio=(1, 1)).crops[:, :number]
    areas = crops[:, :, 2] * crops[:, :, 3] / SIDE**2
    edges = np.linspace(*(scale if isinstance(scale, tuple) else (scale, 1)), number + 1)
    for low, high, area in zip(edges, edges[1:], np.sort(areas, axis=1).T):
        assert _uniform(area, low, high)


def test_ratio_is_log_uniform_and_place_uniform() -> None:
    top, left, height, width = sample_all(scale=(0.1, 0.5), number=1).crops[:, 0].T
    assert _uniform(np.log(width / height), math.log(3 / 4), math.log(4 / 3))
    assert _uniform((top + 0.5) / (SIDE - height + 1), 0, 1)
    assert _uniform((left + 0.5) / (SIDE - width + 1), 0, 1)


@pytest.mark.parametrize("size", [(400, 600), (150, 1000)])  # the second: about half fall back to the centre
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    ours = sample_all(image_size=size, scale=0.08, number=1).crops[:, 0].T
    torch.manual_seed(0)
    image = torch.empty(size, device="meta")
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(5000)]
    for feature in (
        lambda top, left, height, width: top,
        lambda top, left, height, width: left,
        lambda top, left, height, width: height * width,
        lambda top, left, height, width: np.log(width / height),
    ):
        assert stats.ks_2samp(feature(*ours), feature(*np.transpose(theirs))).pvalue > ALPHA


def test_234_samples_each_number_for_a_third_of_the_images() -> None:
    numbers = sample_all(number=234).numbers
    assert _equally_likely(numbers.tolist(), 3)
    assert set(numbers) == {2, 3, 4}
    assert set(sample_all(number=(1, 8)).numbers) == {1, 8}


@pytest.mark.parametrize("number", [3, 4, 5])
def test_orders_are_uniform(number: int) -> None:
    crops = sample_all(number=number, ratio=(1, 1)).crops[:, :number]
    assert _equally_likely([tuple(order) for order in np.argsort(crops[:, :, 2], axis=1)], math.factorial(number))


def test_two_views_keep_the_order_of_their_bands() -> None:
    crops = sample_all(number=2, ratio=(1, 1)).crops
    assert (crops[:, 0, 2] <= crops[:, 1, 2]).all()


def test_lam_is_beta_of_the_ratio_over_the_number() -> None:
    for lams in sample_all(number=3, mix_ratio=0.9).lams[:, :2].T:
        assert stats.kstest(lams, stats.beta(0.3, 0.3).cdf).pvalue > ALPHA


def test_boxes() -> None:
    height, width = 1000, 500
    sampled = sample_all(output_size=(height, width), number=2, operation="cutmix")
    row0, col0, row1, col1 = sampled.boxes[:, 0].T
    assert min(row0.min(), col0.min()) >= 0
    assert max(row1.max() - height, col1.max() - width) <= 0
    assert min((row1 - row0).min(), (col1 - col0).min()) >= 0
    assert _equally_likely(sampled.paste_next[:, 0].tolist(), 2)
    # The law shows where nothing is clipped: small boxes in the middle. P(side < s) = P(1 - u < s^2) = s^2.
    rows, columns = (row0 + row1) / (2 * height), (col0 + col1) / (2 * width)
    sides = (row1 - row0) / height
    whole = (abs(rows - 0.5) < 0.25) & (abs(columns - 0.5) < 0.25) & (sides < 0.5)
    assert whole.sum() > COUNT / 20
    assert abs((row1 - row0) / height - (col1 - col0) / width)[whole].max() <= 2 / width
    assert _uniform((sides[whole] + 1 / height) ** 2, 0, 0.25)
    assert _uniform(rows[whole], 0.25, 0.75)
    assert _uniform(columns[whole], 0.25, 0.75)
    assert not _dependent({"row": rows[whole], "column": columns[whole], "side": sides[whole]})


def test_permutations_and_flips() -> None:
    sampled = sample_all(number=2, inter_aug=True, flip_probability=0.25)
    assert _equally_likely([tuple(order) for order in sampled.permutations[:, 0].tolist()], 6)
    assert stats.binomtest(int(sampled.flips.sum()), COUNT, 0.25).pvalue > ALPHA
    assert (sample_all(number=2).permutations[:, 0] == [0, 1, 2]).all()
    assert not sample_all(flip_probability=0).flips.any()
    assert sample_all(flip_probability=1).flips.all()


@pytest.mark.parametrize("operation", ["mixup", "cutmix"])
def test_the_random_numbers_of_an_image_are_independent(operation: str) -> None:
    sampled = sample_all(
        number=8, scale=(0.1, 0.5), operation=operation, mix_ratio=8, inter_aug=True, flip_probability=0.5
    )
    positions = np.argsort(sampled.crops[:, :, 2] * sampled.crops[:, :, 3], axis=1)  # of the bands, the lowest first
    top, left, height, width = np.moveaxis(np.take_along_axis(sampled.crops, positions[:, :, None], axis=1), 2, 0)
    columns = {"flip": sampled.flips, "place of the smallest": positions[:, 0]}
    for band in range(8):
        columns |= {
            f"area {band}": (height * width)[:, band],
            f"ratio {band}": (width / height)[:, band],
            f"top {band}": (top / (SIDE - height))[:, band],
            f"left {band}": (left / (SIDE - width))[:, band],
        }
    for step in range(7):
        columns[f"permutation {step}"] = sampled.permutations[:, step] @ [3, 1, 0]
        if operation == "mixup":
            columns[f"lam {step}"] = sampled.lams[:, step]
        else:
            columns[f"box {step}"] = sampled.boxes[:, step] @ [1, 0, 1, 0]
            columns[f"coin {step}"] = sampled.paste_next[:, step]
    assert _dependent(columns) == []


def test_number_and_flip_are_independent() -> None:
    sampled = sample_all(number=234, flip_probability=0.5)
    assert not _dependent({"number": sampled.numbers, "flip": sampled.flips})


def test_neighbours_are_independent() -> None:
    options = {"number": 2, "mix_ratio": 2}
    lams = sample_all(**options).lams[:, 0]
    columns = {
        "seed 0": lams[:-2],
        "next index": lams[1:-1],
        "index after": lams[2:],
        "epoch 1": sample_all(epoch=1, **options).lams[:-2, 0],
        "epoch 1, next index": sample_all(epoch=1, **options).lams[1:-1, 0],
        "seed 1": sample_all(seed=1, **options).lams[:-2, 0],
        "seed 2**32": sample_all(seed=2**32, **options).lams[:-2, 0],
        "view 1": sample_all(view=1, **options).lams[:-2, 0],
        "view 2": sample_all(view=2, **options).lams[:-2, 0],
    }
    assert _dependent(columns) == []


def test_the_views_of_an_image_are_independent() -> None:
    columns = {}
    for view in range(3):
        sampled = sample_all(view=view, number=2, scale=(0.1, 0.5), mix_ratio=2, inter_aug=True, flip_probability=0.5)
        columns |= {f"flip {view}": sampled.flips, f"lam {view}": sampled.lams[:, 0]}
        columns[f"permutation {view}"] = sampled.permutations[:, 0] @ [3, 1, 0]
        for band in range(2):
            top, left, height, width = sampled.crops[:, band].T
            columns |= {
                f"area {band} of {view}": height * width,
                f"ratio {band} of {view}": width / height,
                f"top {band} of {view}": top / (SIDE - height),
                f"left {band} of {view}": left / (SIDE - width),
            }
    assert _dependent(columns) == []


@example(1, 1, 0.001, (3 / 4, 4 / 3), 0)
@example(1, 70, 1.0, (50, 90), 0)
@example(70, 1, 1.0, (0.01, 0.02), 0)
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
    sampling.sample_crop(make_key(1, 2, index, 4, 0), 0, height, width, scale, min(2 * scale, 1), *low, crop)
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
