"""MixPlan: the parameters of one mixed image, and how to sample them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .kernels.jit import entry
from .kernels.sampling import CUTMIX, MAX_CROPS, MIXUP, PlanArrays, SamplingOptions, new_plan_arrays, sample

Operation = Literal["mixup", "cutmix"]

OPERATIONS: dict[str, int] = {"mixup": MIXUP, "cutmix": CUTMIX}
OPERATION_NAMES: dict[int, Operation] = {MIXUP: "mixup", CUTMIX: "cutmix"}
STEP_FIELDS: dict[str, tuple[str, ...]] = {"mixup": ("lams",), "cutmix": ("boxes", "paste_next")}
"""Fields of a MixPlan, and of `PlanArrays`, that an operation has a value in for each step."""

_sample = entry(sample)

Box = tuple[int, int, int, int]
Permutation = tuple[int, int, int]


@dataclass(frozen=True)
class MixPlan:
    """Hold all random parameters of one CropMix image. `cropmix` applies them to an image.

    Crops are mixed in the given order. The composite starts as the first crop; step k mixes crop k + 1 into it. With
    composite a and next crop b, mixup computes lam * a + (1 - lam) * b; cutmix pastes a box of one into the other.

    Raises:
        ValueError: names the field and the value.

    Example:
        >>> plan = MixPlan(crops=[(0, 0, 8, 8), (2, 2, 4, 4)], lams=[0.75])
        >>> plan.operation, len(plan.crops)
        ('mixup', 2)
        >>> MixPlan(crops=[(0, 0, 8, 8), (2, 2, 4, 4)])
        Traceback (most recent call last):
            ...
        ValueError: lams: mixup of 2 crops takes 1, got 0
    """

    crops: Sequence[Box]
    """(top, left, height, width) of 1 to 8 crops in the image, px, in mixing order."""
    operation: Operation = "mixup"
    lams: Sequence[float] = ()
    """mixup: weight of the composite at each step, in [0, 1]; one fewer than crops."""
    boxes: Sequence[Box] = ()
    """cutmix: (row0, col0, row1, col1) in the output, px, end-exclusive; may be empty (row0 >= row1)."""
    paste_next: Sequence[bool] = ()
    """cutmix: True pastes the next crop's box into the composite, False the composite's box into the next crop."""
    permutations: Sequence[Permutation] | None = None
    """Order of the channels of one operand of each step: out[..., c] = operand[..., p[c]]. In mixup the operand is the
    one with the smaller weight (the next crop if lam > 0.5, else the composite), in cutmix the pasted one."""
    flip: bool = False
    """Mirror the mixed image left to right."""

    def __post_init__(self) -> None:
        crops = len(self.crops)
        if not 1 <= crops <= MAX_CROPS:
            raise ValueError(f"crops: 1 to {MAX_CROPS} crops can be mixed, got {crops}")
        if self.operation not in OPERATIONS:
            raise ValueError(f"operation is 'mixup' or 'cutmix', got {self.operation!r}")
        own = (*STEP_FIELDS[self.operation], "permutations")
        for name in ("lams", "boxes", "paste_next", "permutations"):
            values, count = getattr(self, name), crops - 1 if name in own else 0
            if name == "permutations" and values is None:
                continue
            if len(values) != count:
                raise ValueError(f"{name}: {self.operation} of {crops} crops takes {count}, got {len(values)}")
        for lam in self.lams:
            if not 0.0 <= lam <= 1.0:
                raise ValueError(f"lams are in [0, 1], got {lam}")
        for permutation in self.permutations or ():
            if sorted(permutation) != [0, 1, 2]:
                raise ValueError(f"permutations are orders of 0, 1, 2, got {tuple(permutation)}")

    def check_fits(self, height: int, width: int) -> None:
        """Raise ValueError if a crop is empty or leaves an image of height x width px."""
        for top, left, crop_height, crop_width in self.crops:
            inside = top >= 0 and left >= 0 and top + crop_height <= height and left + crop_width <= width
            if not (inside and crop_height >= 1 and crop_width >= 1):
                crop = (top, left, crop_height, crop_width)
                raise ValueError(f"crop (top, left, height, width) {crop} is not inside the image, {height} x {width}")

    def pack(self, output_size: tuple[int, int]) -> PlanArrays:
        """Return the arrays that kernels read, with boxes clipped to the output (height, width)."""
        arrays = new_plan_arrays()
        steps = len(self.crops) - 1
        arrays.crops[: steps + 1] = self.crops
        for name in STEP_FIELDS[self.operation]:
            values = np.array(getattr(self, name))
            if name == "boxes":
                values = np.clip(values.reshape(-1, 4), 0, [*output_size, *output_size])
            getattr(arrays, name)[:steps] = values
        arrays.permutations[:steps] = (0, 1, 2) if self.permutations is None else np.reshape(self.permutations, (-1, 3))
        return arrays


def _pair(name: str, value: Any, low: float, high: float) -> tuple[float, float]:
    """Check that a value is two ascending finite numbers in (low, high], and return them."""
    try:
        first, second = (float(v) for v in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is a pair of numbers, got {value!r}") from None
    if not low < first <= second <= high or math.isinf(second):
        raise ValueError(
            f"{name} is a pair with {low:g} < first <= second{f' <= {high:g}' if high < math.inf else ''}"
            f", got {value!r}"
        )
    return first, second


def _numbers(number: int | Sequence[int]) -> int:
    """Return the numbers of crops as decimal digits: 3 for 3, 234 for (2, 3, 4)."""
    try:
        digits = isinstance(number, (int, np.integer))
        numbers = [int(digit) for digit in str(number)] if digits else [operator.index(n) for n in number]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        numbers = []
    if not 1 <= len(numbers) <= MAX_CROPS or not all(1 <= n <= MAX_CROPS for n in numbers):
        raise ValueError(f"number is 1 to {MAX_CROPS}, a tuple of such, or its digits such as 234, got {number!r}")
    return int("".join(str(n) for n in numbers))


def _operation(operation: str | int) -> int:
    if isinstance(operation, str):
        code = OPERATIONS.get(operation)
    else:
        code = operation if operation in OPERATION_NAMES else None
    if code is None:
        raise ValueError(f"operation is 'mixup' (0) or 'cutmix' (1), got {operation!r}")
    return code


def sampling_options(
    *,
    scale: float | tuple[float, float] = 0.01,
    number: int | Sequence[int] = (2, 3, 4),
    operation: Operation | int = "mixup",
    mix_ratio: float = 0.4,
    inter_aug: bool = False,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip_probability: float = 0.0,
    seed: int = 0,
) -> SamplingOptions:
    """Check the options of CropMix and return them in the form that compiled code takes.

    The decoders, `sample_plan` and `transforms.CropMix` share these options and defaults.

    Args:
        scale: smallest crop area as a fraction of the image's area, s for (s, 1), or (low, high), where
            0 < low <= high <= 1. The range is split into equal bands, one for each crop.
        number: number of crops, 1 to 8, or several numbers, one of which is sampled for each image with equal
            probability: (2, 3, 4), or as digits, 234. One crop is a RandomResizedCrop.
        operation: "mixup" or "cutmix" (0 and 1, as the authors write them).
        mix_ratio: mixup samples lam from Beta(mix_ratio / n, mix_ratio / n) for n crops; above 0.
        inter_aug: permute the colour channels of one operand of each mixing step.
        ratio: (low, high) aspect ratio, width / height, of the crops; sampled log-uniformly.
        flip_probability: probability that the mixed image is mirrored left to right.
        seed: 0 to 2**64 - 1.

    Raises:
        ValueError: names the option and the value received.
    """
    scale_low, scale_high = _pair("scale", (scale, 1.0) if isinstance(scale, (int, float)) else scale, 0.0, 1.0)
    ratio_low, ratio_high = _pair("ratio", ratio, 0.0, math.inf)
    if not 0.0 < mix_ratio < math.inf:
        raise ValueError(f"mix_ratio is a number above 0, got {mix_ratio!r}")
    if not 0.0 <= flip_probability <= 1.0:
        raise ValueError(f"flip_probability is in [0, 1], got {flip_probability!r}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ValueError(f"seed is an integer of 0 to 2**64 - 1, got {seed!r}")
    return SamplingOptions(
        scale_low=scale_low,
        scale_high=scale_high,
        log_ratio_low=math.log(ratio_low),
        log_ratio_high=math.log(ratio_high),
        number_digits=_numbers(number),
        operation=_operation(operation),
        mix_ratio=float(mix_ratio),
        inter_aug=bool(inter_aug),
        flip_probability=float(flip_probability),
        seed_low=int(seed) & 0xFFFFFFFF,
        seed_high=int(seed) >> 32,
    )


def check_size(name: str, size: Any) -> tuple[int, int]:
    """Check that a size is (height, width), both integers of at least 1, and return it."""
    try:
        height, width = size
    except (TypeError, ValueError):
        raise ValueError(f"{name} is (height, width), got {size!r}") from None
    for side in (height, width):
        if isinstance(side, bool) or not isinstance(side, (int, np.integer)) or side < 1:
            raise ValueError(f"{name} is (height, width), each an integer of at least 1, got {size!r}")
    return int(height), int(width)


def sample_plan(
    height: int,
    width: int,
    *,
    output_size: tuple[int, int] = (224, 224),
    seed: int = 0,
    epoch: int = 0,
    index: int = 0,
    view: int = 0,
    **options: Any,
) -> MixPlan:
    """Sample the plan that the decoder uses for one sample in one epoch.

    Args:
        height: height of the image, px.
        width: width of the image, px.
        output_size: (height, width) of the mixed image, px; cutmix boxes refer to it.
        seed: seed of the decoder, 0 to 2**64 - 1.
        epoch: number of the pass, 0 to 2**32 - 1.
        index: row of the sample in the .beton file, 0 to 2**32 - 1.
        view: number of the view in a MultiViewRGBImageDecoder; other decoders have view 0 only.
        **options: scale, number, operation, mix_ratio, inter_aug, ratio, flip_probability: see
            `CropMixRGBImageDecoder`.

    Returns:
        MixPlan; equal arguments give equal plans.

    Raises:
        ValueError: names the option and the value.

    Example:
        >>> plan = sample_plan(375, 500, number=(2, 3), seed=1, epoch=4, index=7)
        >>> plan == sample_plan(375, 500, number=(2, 3), seed=1, epoch=4, index=7)
        True
        >>> len(plan.lams) == len(plan.crops) - 1
        True
    """
    height, width = check_size("the image", (height, width))
    output_height, output_width = check_size("output_size", output_size)
    sampling = sampling_options(seed=seed, **options)
    arrays = new_plan_arrays()
    number, flip = _sample(sampling, index, epoch, view, height, width, output_height, output_width, arrays)
    steps = number - 1
    operation = OPERATION_NAMES[sampling.operation]
    values: dict[str, Any] = {
        "lams": arrays.lams[:steps].tolist(),
        "boxes": [tuple(box) for box in arrays.boxes[:steps].tolist()],
        "paste_next": (arrays.paste_next[:steps] > 0).tolist(),
    }
    return MixPlan(
        crops=[tuple(crop) for crop in arrays.crops[:number].tolist()],
        operation=operation,
        **{name: values[name] for name in STEP_FIELDS[operation]},
        permutations=[tuple(p) for p in arrays.permutations[:steps].tolist()] if sampling.inter_aug else None,
        flip=bool(flip),
    )
