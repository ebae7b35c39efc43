"""cropmix: against the authors' recorded runs, Pillow, and the loop oracle; compiled and interpreted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import config
from PIL import Image

from ffcv_cropmix import MixPlan, cropmix, sample_plan
from tests import naive
from tests.betons import photo

LEVELS = 0.65  # from the exact result: rounding to integers takes 0.5
SIZES = [(17, 11), (1, 1), (1, 9), (9, 1), (33, 70)]
OUTPUTS = [(1, 1), (7, 5), (33, 70), (224, 160)]
INTERPOLATIONS = ("bilinear", "bicubic", "area")
PERMUTATIONS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
INTERPRETED = bool(config.DISABLE_JIT)
compiled_only = pytest.mark.skipif(INTERPRETED, reason="large")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def check(image: np.ndarray, plan: MixPlan, output_size: tuple[int, int], interpolation: str = "bilinear") -> None:
    out = cropmix(image, plan, output_size, interpolation)
    assert (out.dtype, out.shape) == (np.uint8, (*output_size, 3))
    faint = sum(weight for weight in naive.weights(plan) if weight < 0.5 / 255)  # those crops may be left out
    difference = np.abs(out - naive.cropmix(image, plan, output_size, interpolation)).max()
    assert difference <= LEVELS + min(255 * faint, 0.5)


@compiled_only
def test_the_authors_recorded_runs() -> None:
    recorded = np.load(Path(__file__).parent / "golden/cropmix_upstream.npz")
    differences = []
    cases = json.loads(recorded["cases_json"].tobytes())
    assert len(cases) == 216
    for case in cases:
        plan = MixPlan(
            crops=[tuple(case["crops"][band]) for band in case["order"]],
            operation=["mixup", "cutmix"][case["operation"]],
            lams=case["lams"] if case["operation"] == 0 else (),
            boxes=case["boxes"] if case["operation"] == 1 else (),
            paste_next=[coin > 0.5 for coin in case["coins"]] if case["operation"] == 1 else (),
            permutations=case["perms"] or None,
        )
        out = cropmix(recorded[case["image"]], plan, (case["size"], case["size"]))
        difference = np.abs(out - np.round(recorded[case["key"]].astype(np.float64)))
        assert difference.max() <= 1, case["key"]
        differences.append(difference.mean())
    assert np.mean(differences) < 0.25


@compiled_only
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("output_size", [*OUTPUTS, (480, 640)])
@pytest.mark.parametrize("size", [*SIZES, (375, 500)])
def test_one_crop_is_a_crop_and_a_resize(size: tuple[int, int], output_size: tuple[int, int], interpolation) -> None:
    image = picture(*size)
    height, width = size
    for crop in [(0, 0, height, width), (height // 2, width // 3, 1, 1), (height // 4, 0, (height + 1) // 2, width)]:
        check(image, MixPlan(crops=[crop]), output_size, interpolation)
        if interpolation == "bicubic":  # in Pillow's integers
            resized = naive.resized_crop(image, crop, output_size, interpolation)
            np.testing.assert_array_equal(cropmix(image, MixPlan(crops=[crop]), output_size, interpolation), resized)


@compiled_only
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("output_size", [*OUTPUTS, (480, 640)])
@pytest.mark.parametrize("size", [*SIZES, (375, 500)])
def test_one_crop_is_pillows(size: tuple[int, int], output_size: tuple[int, int], interpolation: str) -> None:
    # bicubic: noise would be clipped in the first pass, and which that is depends on Pillow's version
    image = picture(*size) if interpolation == "bilinear" else 64 + picture(*size) // 4
    height, width = size
    for crop in [(0, 0, height, width), (height // 2, width // 3, 1, 1), (height // 4, 0, (height + 1) // 2, width)]:
        top, left, crop_height, crop_width = crop
        out = cropmix(image, MixPlan(crops=[crop]), output_size, interpolation)
        cropped = Image.fromarray(image).crop((left, top, left + crop_width, top + crop_height))
        resized = np.asarray(cropped.resize(output_size[::-1], Image.Resampling[interpolation.upper()]))
        assert np.abs(out.astype(int) - resized).max() <= 1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("operation", ["mixup", "cutmix"])
@pytest.mark.parametrize("output_size", OUTPUTS[:2] if INTERPRETED else OUTPUTS)
@pytest.mark.parametrize("size", SIZES)
def test_sampled_plans(size: tuple[int, int], output_size: tuple[int, int], operation: str, interpolation: str) -> None:
    for index, number in enumerate((1, 2, 3, 4, 8)):
        options = {"number": number, "operation": operation, "inter_aug": True, "flip_probability": 0.5}
        plan = sample_plan(*size, output_size=output_size, index=index, mix_ratio=3, **options)
        check(picture(*size), plan, output_size, interpolation)


@st.composite
def cases(draw) -> tuple[np.ndarray, MixPlan, tuple[int, int]]:
    largest = 12 if INTERPRETED else 90
    side = st.integers(1, largest)
    height, width, output_size = draw(side), draw(side), (draw(side), draw(side))
    number = draw(st.integers(1, 8))
    crops = []
    for _ in range(number):
        crop_height, crop_width = draw(st.integers(1, height)), draw(st.integers(1, width))
        top, left = draw(st.integers(0, height - crop_height)), draw(st.integers(0, width - crop_width))
        crops.append((top, left, crop_height, crop_width))
    steps = {"min_size": number - 1, "max_size": number - 1}
    plan = {
        "permutations": draw(st.none() | st.lists(st.sampled_from(PERMUTATIONS), **steps)),
        "flip": draw(st.booleans()),
    }
    if draw(st.booleans()):
        lam = st.sampled_from([0.0, 1.0, 0.5, 1e-9]) | st.floats(0, 1)
        plan["lams"] = draw(st.lists(lam, **steps))
    else:
        edge = st.integers(-2, largest + 2)  # outside and empty boxes too
        boxes = draw(st.lists(st.tuples(edge, edge, edge, edge), **steps))
        plan |= {"operation": "cutmix", "boxes": boxes, "paste_next": draw(st.lists(st.booleans(), **steps))}
    return picture(height, width, draw(st.integers(0, 9))), MixPlan(crops=crops, **plan), output_size


@settings(
    max_examples=30 if INTERPRETED else 400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # of a busy machine
)
@given(cases(), st.sampled_from(INTERPOLATIONS))
def test_any_plan(case: tuple[np.ndarray, MixPlan, tuple[int, int]], interpolation: str) -> None:
    check(*case, interpolation)


@compiled_only
@pytest.mark.parametrize("number", [1, 2, 4, 8])
@pytest.mark.parametrize("operation", ["mixup", "cutmix"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_constant_image_stays_as_it_is(operation: str, number: int, interpolation) -> None:
    for level in range(256):
        image = np.full((23, 31, 3), level, np.uint8)
        plan = sample_plan(23, 31, number=number, operation=operation, mix_ratio=4, output_size=(19, 37), index=level)
        assert (cropmix(image, plan, (19, 37), interpolation) == level).all()


@compiled_only
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("side", [200, 60, 20])  # few, many and very many taps
def test_rounding_has_no_bias(side: int, interpolation: str) -> None:
    image, plan = picture(300, 400), MixPlan(crops=[(0, 0, 300, 400), (0, 9, 290, 391)], lams=[0.4])
    difference = cropmix(image, plan, (side, side), interpolation) - naive.cropmix(
        image, plan, (side, side), interpolation
    )
    assert abs(difference.mean()) < 4 * 0.29 / side  # of its standard error


@compiled_only
def test_flip_mirrors() -> None:
    image, crops = picture(30, 40), [(3, 4, 20, 30), (0, 0, 30, 40)]
    plans = [MixPlan(crops=crops, lams=[0.3], flip=flip) for flip in (False, True)]
    first, second = (cropmix(image, plan, (20, 35)) for plan in plans)
    np.testing.assert_array_equal(first[:, ::-1], second)


@compiled_only
def test_any_memory_layout() -> None:
    image, plan = picture(60, 50), MixPlan(crops=[(5, 5, 20, 20), (0, 0, 30, 25)], lams=[0.4])
    expected = cropmix(np.ascontiguousarray(image[::2, ::-2]), plan, (9, 9))
    np.testing.assert_array_equal(cropmix(image[::2, ::-2], plan, (9, 9)), expected)
    np.testing.assert_array_equal(cropmix(np.asfortranarray(image[::2, ::-2]), plan, (9, 9)), expected)


@compiled_only
def test_the_image_is_left_as_it_is() -> None:
    image, plan = picture(30, 25), MixPlan(crops=[(5, 5, 20, 20), (0, 0, 30, 25)], lams=[0.4])
    before = image.copy()
    expected = cropmix(image, plan, (9, 9))
    np.testing.assert_array_equal(image, before)
    assert image.flags.writeable
    image.flags.writeable = False
    np.testing.assert_array_equal(cropmix(image, plan, (9, 9)), expected)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((4, 4, 3)), r"float64 \(4, 4, 3\)"),
        (picture(4, 4)[:, :, 0], r"uint8 \(4, 4\)"),
        (picture(4, 4)[:, :, :2], r"uint8 \(4, 4, 2\)"),
        (picture(4, 4)[:0], r"uint8 \(0, 4, 3\)"),
    ],
)
def test_wrong_images_are_named(image: np.ndarray, got: str) -> None:
    with pytest.raises(ValueError, match=f"image is uint8 .* got {got}"):
        cropmix(image, MixPlan(crops=[(0, 0, 4, 4)]), (2, 2))


@pytest.mark.parametrize("crop", [(1, 0, 4, 4), (0, 1, 4, 4), (-1, 0, 4, 4), (0, -1, 4, 4), (0, 0, 0, 4), (0, 0, 4, 0)])
def test_wrong_crops_are_named(crop: tuple) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(str(crop))} is not inside the image, 4 x 4"):
        cropmix(picture(4, 4), MixPlan(crops=[(0, 0, 4, 4), crop], lams=[0.5]), (2, 2))


@pytest.mark.parametrize("output_size", [(0, 2), (2, 0), (2.0, 2), (True, 2), (2, 2, 3), 2])
def test_wrong_output_sizes_are_named(output_size) -> None:
    with pytest.raises(ValueError, match=f"output_size .* got {re.escape(str(output_size))}"):
        cropmix(picture(4, 4), MixPlan(crops=[(0, 0, 4, 4)]), output_size)


def test_unknown_interpolation() -> None:
    with pytest.raises(ValueError, match=r"interpolation .* got 'nearest'"):
        cropmix(picture(4, 4), MixPlan(crops=[(0, 0, 4, 4)]), (2, 2), "nearest")


@compiled_only
def test_interpreted() -> None:
    """This file again, without compilation."""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


DIGEST = """
import hashlib
import numpy as np
from ffcv_cropmix import cropmix, sample_plan
image = np.random.default_rng(0).integers(0, 256, (23, 40, 3), np.uint8)
digest = hashlib.sha256()
for operation in ("mixup", "cutmix"):
    for index in range(30):
        options = {"operation": operation, "inter_aug": True, "flip_probability": 0.5, "mix_ratio": 2.0}
        plan = sample_plan(23, 40, output_size=(9, 14), index=index, **options)
        digest.update(repr(plan).encode() + cropmix(image, plan, (9, 14)).tobytes())
print(digest.hexdigest())
"""


@compiled_only
def test_interpreted_and_compiled_agree_to_the_bit() -> None:
    digests = set()
    for disabled in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disabled, "PYTHONPATH": str(Path(__file__).parents[1])}
        result = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True)
        digests.add(result.stdout or result.stderr)
    assert len(digests) == 1
    assert len(digests.pop()) == 65


def test_photo_sizes_differ() -> None:
    assert len({photo(index).shape for index in range(37)}) > 30  # what the tests of decoders rely on
