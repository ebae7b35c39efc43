"""From steps to layers: what is seen stays, what is not is dropped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ffcv_cropmix import MixPlan, sample_plan
from ffcv_cropmix.kernels.layers import Layers, collapse, new_layers
from ffcv_cropmix.kernels.vectors import ADD, REPLACE
from ffcv_cropmix.plan import OPERATIONS
from tests import naive

HEIGHT, WIDTH = OUTPUT = 6, 5
PALETTE = np.random.default_rng(0).integers(0, 256, (8, 1, 3), np.uint8)
CROPS = [(crop, 0, 1, 1) for crop in range(8)]  # each crop is of one colour: what shows tells which crop it is

WHOLE, TOP, BOTTOM, EMPTY = (0, 0, HEIGHT, WIDTH), (0, 0, 3, WIDTH), (3, 0, HEIGHT, WIDTH), (2, 2, 2, 4)
ONTO, UNDER = True, False


def layers_of(plan: MixPlan) -> Layers:
    layers = new_layers()
    count = collapse(plan.pack(OUTPUT), len(plan.crops), OPERATIONS[plan.operation], *OUTPUT, layers)
    return Layers(*(array[:count] for array in layers))


def paint(layers: Layers) -> np.ndarray:
    """Layer after layer: float64 (height, width, 3)."""
    canvas = np.zeros((*OUTPUT, 3))
    for (crop, *_), weight, permutation, (row0, col0, row1, col1), blend in zip(*layers):
        assert 0 <= row0 < row1 <= HEIGHT
        assert 0 <= col0 < col1 <= WIDTH
        region = canvas[row0:row1, col0:col1]
        region *= blend == ADD
        region += weight * PALETTE[crop, 0, permutation]
    return canvas


def covers(above: np.ndarray, below: np.ndarray) -> bool:
    return bool((above[:2] <= below[:2]).all() and (above[2:] >= below[2:]).all())


@pytest.mark.parametrize("operation", ["mixup", "cutmix"])
def test_layers_show_what_the_steps_do_and_no_more(operation: str) -> None:
    for index in range(500):
        sampled = sample_plan(
            9, 9, number=(2, 3, 5, 8), operation=operation, inter_aug=True, output_size=OUTPUT, index=index
        )
        plan = replace(sampled, crops=CROPS[: len(sampled.crops)])
        layers = layers_of(plan)
        faint = [weight for weight in naive.weights(plan) if weight < 0.5 / 255]
        atol = 1e-9 if not any(faint) else 0.5
        np.testing.assert_allclose(paint(layers), naive.cropmix(PALETTE, plan, OUTPUT), rtol=0, atol=atol)
        if operation == "mixup":
            assert layers.weights.min() > 0
            assert layers.weights.sum() == pytest.approx(1)
            assert len(layers.weights) <= len(plan.crops) - (0 < sum(faint) < 0.5 / 255)
        else:
            for k, below in enumerate(layers.rectangles):
                assert not any(covers(above, below) for above in layers.rectangles[k + 1 :])


@pytest.mark.parametrize(
    ("lams", "crops"),
    [
        ([0.25, 0.5], {0: 0.125, 1: 0.375, 2: 0.5}),
        ([1.0, 0.5], {0: 0.5, 2: 0.5}),
        ([0.0, 0.5], {1: 0.5, 2: 0.5}),
        ([0.5, 0.0], {2: 1.0}),
        ([1.0, 1.0], {0: 1.0}),
        ([1e-9, 1.0], {1: 1.0}),
        ([0.5, 0.998], {0: 0.499, 1: 0.499, 2: 0.002}),  # 0.5 / 255 = 0.00196
        ([0.5, 0.9981], {0: 0.5, 1: 0.5}),
        ([0.0015 / 0.9985, 0.9985], {1: 0.997 / 0.9985, 2: 0.0015 / 0.9985}),  # one may be dropped, not both
    ],
)
def test_faint_crops_are_dropped(lams: list[float], crops: dict[int, float]) -> None:
    layers = layers_of(MixPlan(crops=CROPS[:3], lams=lams))
    assert dict(zip(layers.crops[:, 0].tolist(), layers.weights.tolist())) == pytest.approx(crops)


@pytest.mark.parametrize(
    ("steps", "crops"),  # crops: the lowest first
    [
        ([(ONTO, TOP), (ONTO, BOTTOM)], [0, 1, 2]),  # the first is hidden by two together: allowed to stay
        ([(ONTO, EMPTY), (ONTO, TOP)], [0, 2]),
        ([(ONTO, WHOLE), (ONTO, TOP)], [1, 2]),
        ([(ONTO, TOP), (ONTO, WHOLE)], [2]),
        ([(ONTO, TOP), (ONTO, TOP)], [0, 2]),
        ([(UNDER, TOP), (ONTO, BOTTOM)], [1, 0, 2]),
        ([(UNDER, EMPTY), (UNDER, TOP)], [2, 1]),
        ([(UNDER, WHOLE), (UNDER, WHOLE)], [0]),
        ([(ONTO, TOP), (UNDER, BOTTOM)], [2, 0]),
        ([(UNDER, TOP), (UNDER, BOTTOM)], [2, 1]),
    ],
)
def test_crops_that_are_covered_are_dropped(steps: list, crops: list[int]) -> None:
    paste_next, boxes = zip(*steps)
    layers = layers_of(MixPlan(crops=CROPS[:3], operation="cutmix", boxes=boxes, paste_next=paste_next))
    assert layers.crops[:, 0].tolist() == crops


def test_one_crop_is_one_layer() -> None:
    layers = layers_of(MixPlan(crops=CROPS[:1]))
    assert [array.tolist() for array in layers] == [[[0, 0, 1, 1]], [1.0], [[0, 1, 2]], [list(WHOLE)], [REPLACE]]
