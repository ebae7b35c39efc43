"""Plans: reproducible, and wrong values named."""

from __future__ import annotations

import numpy as np
import pytest

from ffcv_cropmix import MixPlan, sample_plan
from ffcv_cropmix.kernels import sampling
from ffcv_cropmix.plan import sampling_options

CROP = (0, 0, 4, 4)


def test_a_plan_is_a_function_of_its_arguments() -> None:
    base = {"seed": 2**40 + 1, "epoch": 3, "index": 5, "inter_aug": True}
    plan = sample_plan(300, 400, **base)
    assert sample_plan(300, 400, **base) == plan
    for change in ({"seed": 1}, {"seed": 2**40}, {"epoch": 4}, {"index": 6}, {"scale": 0.02}):
        assert sample_plan(300, 400, **(base | change)) != plan


def test_forms_of_an_option_agree() -> None:
    for one, other in (
        ({"number": 234}, {"number": (2, 3, 4)}),
        ({"number": 3}, {"number": [3]}),
        ({"operation": 0}, {"operation": "mixup"}),
        ({"operation": 1}, {"operation": "cutmix"}),
        ({"scale": 0.1}, {"scale": (0.1, 1.0)}),
        ({"seed": 7}, {"seed": np.int64(7)}),
    ):
        assert sample_plan(300, 400, **one) == sample_plan(300, 400, **other)


@pytest.mark.parametrize("operation", ["mixup", "cutmix"])
def test_a_plan_holds_what_was_sampled(operation: str) -> None:
    options = {"number": 234, "operation": operation, "inter_aug": True, "flip_probability": 0.5, "seed": 2**40 + 1}
    sampled = sampling.new_plan_arrays()
    for index in range(30):
        plan = sample_plan(300, 400, output_size=(50, 60), epoch=3, index=index, view=5, **options)
        number, flip = sampling.sample(sampling_options(**options), index, 3, 5, 300, 400, 50, 60, sampled)
        assert (len(plan.crops), plan.flip) == (number, flip)
        packed = plan.pack((50, 60))
        np.testing.assert_array_equal(packed.crops[:number], sampled.crops[:number])
        for name in ("permutations", *(("lams",) if operation == "mixup" else ("boxes", "paste_next"))):
            np.testing.assert_array_equal(getattr(packed, name)[: number - 1], getattr(sampled, name)[: number - 1])


def test_sampled_plans_stay_as_they_are() -> None:
    """From version to version: a run that is resumed, or repeated, sees the same crops."""
    key = {"output_size": (224, 192), "seed": 2**40 + 5, "epoch": 2, "index": 7}
    mixup = sample_plan(300, 400, number=3, inter_aug=True, flip_probability=0.5, **key)
    assert mixup.crops == [(2, 32, 272, 326), (10, 21, 213, 251), (228, 164, 57, 70)]
    assert mixup.lams == pytest.approx([0.9985106492869399, 0.9999971074177043], abs=1e-12)
    assert (mixup.permutations, mixup.flip) == ([(1, 0, 2), (2, 0, 1)], True)
    cutmix = sample_plan(300, 400, number=2, operation="cutmix", scale=(0.1, 0.9), **key)
    assert cutmix.crops == [(176, 131, 112, 137), (5, 14, 253, 297)]
    assert (cutmix.boxes, cutmix.paste_next) == ([(0, 93, 121, 192)], [True])


def test_a_plan_holds_nothing_else() -> None:
    mixup, cutmix = sample_plan(300, 400, number=2), sample_plan(300, 400, number=2, operation="cutmix")
    assert (mixup.boxes, mixup.paste_next, mixup.permutations) == ((), (), None)
    assert (cutmix.lams, cutmix.permutations) == ((), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crops": []}, "crops: 1 to 8 crops can be mixed, got 0"),
        ({"crops": [CROP] * 9, "lams": [0.5] * 8}, "crops: 1 to 8 crops can be mixed, got 9"),
        ({"crops": [CROP] * 2}, "lams: mixup of 2 crops takes 1, got 0"),
        ({"crops": [CROP], "lams": [0.5]}, "lams: mixup of 1 crops takes 0, got 1"),
        ({"crops": [CROP] * 2, "lams": [1.5]}, r"lams are in \[0, 1\], got 1.5"),
        ({"crops": [CROP] * 2, "lams": [float("nan")]}, r"lams are in \[0, 1\], got nan"),
        ({"crops": [CROP] * 2, "operation": "blend"}, "operation is .* got 'blend'"),
        ({"crops": [CROP] * 2, "operation": "cutmix"}, "boxes: cutmix of 2 crops takes 1, got 0"),
        ({"crops": [CROP] * 2, "lams": [0.5], "permutations": [(0, 1, 1)]}, r"permutations .* got \(0, 1, 1\)"),
        ({"crops": [CROP] * 2, "lams": [0.5], "permutations": []}, "permutations: mixup of 2 crops takes 1, got 0"),
    ],
)
def test_wrong_plans_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixPlan(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale .* got"),
        ({"scale": (0.5, 0.2)}, r"scale .* got \(0.5, 0.2\)"),
        ({"scale": "small"}, "scale .* got 'small'"),
        ({"ratio": (0, 1)}, r"ratio .* got \(0, 1\)"),
        ({"ratio": (1, float("inf"))}, "ratio .* got"),
        ({"number": 0}, "number .* got 0"),
        ({"number": 29}, "number .* got 29"),
        ({"number": ()}, r"number .* got \(\)"),
        ({"number": True}, "number .* got True"),
        ({"operation": 2}, "operation .* got 2"),
        ({"operation": "MIXUP"}, "operation .* got 'MIXUP'"),
        ({"mix_ratio": 0}, "mix_ratio .* got 0"),
        ({"mix_ratio": float("nan")}, "mix_ratio .* got nan"),
        ({"flip_probability": 1.1}, "flip_probability .* got 1.1"),
        ({"seed": 2**64}, "seed .* got 18446744073709551616"),
        ({"seed": 0.5}, "seed .* got 0.5"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_plan(9, 9, **options)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (5.0, 5), (True, 5)])
def test_wrong_sizes_are_named(size: tuple) -> None:
    with pytest.raises(ValueError, match="the image is"):
        sample_plan(*size)
    with pytest.raises(ValueError, match="output_size is"):
        sample_plan(9, 9, output_size=size)
