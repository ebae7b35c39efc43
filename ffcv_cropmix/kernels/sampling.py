"""Sample the parameters of one mixed image. Nothing is rendered here."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .arrays import empty
from .jit import jit, uncounted
from .rng import beta, make_key, uniforms

MAX_CROPS = 8

MIXUP = 0
CUTMIX = 1

# Streams of random numbers of one mixed image, below rng.STREAMS. Crops and steps come in eights.
_CROP_STREAM = 0  # + band, one block per try
_MIX_STREAM = 8  # + step: lam, or box and coin
_PERMUTATION_STREAM = 16  # + step
_IMAGE_STREAM = 24  # block 0: number, flip; blocks 1 and 2: order of the crops

_CROP_TRIES = 10


class SamplingOptions(NamedTuple):
    """The options of sampling. All are numbers, so that compiled code takes the tuple as it is."""

    scale_low: float
    scale_high: float
    log_ratio_low: float
    log_ratio_high: float
    number_digits: int  # numbers of crops to sample from, as decimal digits: 234 (the authors' notation)
    operation: int  # MIXUP or CUTMIX
    mix_ratio: float
    inter_aug: bool
    flip_probability: float
    seed_low: int
    seed_high: int


class PlanArrays(NamedTuple):
    """The arrays that hold the plan of one image. Step k mixes crop k + 1 into the composite of crops 0 to k."""

    crops: Any  # int64 (MAX_CROPS, 4): top, left, height, width, in mixing order
    lams: Any  # float64 (MAX_CROPS - 1,): mixup, weight of the composite
    boxes: Any  # int64 (MAX_CROPS - 1, 4): cutmix, row0, col0, row1, col1 in the output
    paste_next: Any  # int64 (MAX_CROPS - 1,): cutmix, 1: the next crop's box goes into the composite, else the reverse
    permutations: Any  # int64 (MAX_CROPS - 1, 3): channels of one operand of each step


@jit
def new_plan_arrays():
    """Allocate arrays for any plan."""
    return PlanArrays(
        empty((MAX_CROPS, 4), np.int64),
        empty(MAX_CROPS - 1, np.float64),
        empty((MAX_CROPS - 1, 4), np.int64),
        empty(MAX_CROPS - 1, np.int64),
        empty((MAX_CROPS - 1, 3), np.int64),
    )


@uncounted
def _round(value):
    return math.floor(value + 0.5)


@uncounted
def _index_below(u, n):
    """Convert a uniform number in (0, 1) to an integer from 0 to n - 1."""
    return min(int(u * n), n - 1)


@uncounted
def sample_crop(key, stream, height, width, scale_low, scale_high, log_ratio_low, log_ratio_high, crop):
    """Fill crop (top, left, height, width) as torchvision's RandomResizedCrop.get_params does, at least 1 x 1 px.

    The area is uniform in (scale_low, scale_high) times the image's area, and the aspect ratio is log-uniform. If ten
    tries do not fit the image, the crop is the largest centred one with an allowed ratio.
    """
    area = float(height) * float(width)
    for attempt in range(_CROP_TRIES):
        u, v, s, t = uniforms(key, stream, attempt)
        target = area * (scale_low + (scale_high - scale_low) * u)
        ratio = math.exp(log_ratio_low + (log_ratio_high - log_ratio_low) * v)
        crop_width = _round(math.sqrt(target * ratio))
        crop_height = _round(math.sqrt(target / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            crop[0] = _index_below(s, height - crop_height + 1)
            crop[1] = _index_below(t, width - crop_width + 1)
            crop[2] = crop_height
            crop[3] = crop_width
            return
    crop_width = width
    crop_height = height
    image_ratio = width / height
    if image_ratio < math.exp(log_ratio_low):
        crop_height = max(_round(width / math.exp(log_ratio_low)), 1)
    elif image_ratio > math.exp(log_ratio_high):
        crop_width = max(_round(height * math.exp(log_ratio_high)), 1)
    crop[0] = (height - crop_height) // 2
    crop[1] = (width - crop_width) // 2
    crop[2] = crop_height
    crop[3] = crop_width


@uncounted
def _sample_number(u, digits):
    """Sample one of the decimal digits of `digits`, with equal probability."""
    count = 0
    rest = digits
    while rest > 0:
        count += 1
        rest //= 10
    for _ in range(_index_below(u, count)):
        digits //= 10
    return digits % 10


@uncounted
def _shuffled_band(key, number, order_position):
    """Return the band of the crop at a position of the mixing order: a Fisher-Yates shuffle without an array.

    The position is traced back through the swaps, at most seven. Two crops are not shuffled, as in the authors' code.
    """
    if number < 3:
        return order_position
    a, b, c, d = uniforms(key, _IMAGE_STREAM, 1)
    e, f, g, _ = uniforms(key, _IMAGE_STREAM, 2)
    chances = (a, b, c, d, e, f, g)
    # Swap k exchanges positions k and j(k) <= k, for k from number - 1 down to 1. Undo the last swap first.
    position = order_position
    for k in range(1, number):
        j = _index_below(chances[k - 1], k + 1)
        if position == k:
            position = j
        elif position == j:
            position = k
    return position


@uncounted
def _sample_box(u, row, column, height, width, box):
    """Fill box (row0, col0, row1, col1): sqrt(1 - u) of the output's sides, centred on (row, column), clipped."""
    side = math.sqrt(1.0 - u)
    half_height = int(height * side) // 2
    half_width = int(width * side) // 2
    center_row = _index_below(row, height)
    center_column = _index_below(column, width)
    box[0] = max(center_row - half_height, 0)
    box[1] = max(center_column - half_width, 0)
    box[2] = min(center_row + half_height, height)
    box[3] = min(center_column + half_width, width)


@uncounted
def _sample_permutation(u, permutation):
    """Fill `permutation` with one of the six orders of three channels."""
    index = _index_below(u, 6)
    first = index // 2
    second = (first + 1 + index % 2) % 3
    permutation[0] = first
    permutation[1] = second
    permutation[2] = 3 - first - second


@uncounted
def sample(options, index, epoch, view, height, width, output_height, output_width, plan):
    """Sample the plan of one mixed image. Source: arXiv 2205.15955, section 3, and the authors' code.

    Args:
        options: SamplingOptions.
        index, epoch, view: the sample's row, the epoch, and the number of the mixed image made of the sample.
        height, width: size of the image, px.
        output_height, output_width: size of the output, px.
        plan: PlanArrays, filled.

    Returns:
        (number of crops, whether the image is mirrored).
    """
    key = make_key(options.seed_low, options.seed_high, index, epoch, view)
    u, v, _, _ = uniforms(key, _IMAGE_STREAM, 0)
    number = _sample_number(u, options.number_digits)
    flip = v < options.flip_probability
    band = (options.scale_high - options.scale_low) / number
    for position in range(number):
        place = _shuffled_band(key, number, position)
        low = options.scale_low + place * band
        sample_crop(
            key,
            _CROP_STREAM + place,
            height,
            width,
            low,
            low + band,
            options.log_ratio_low,
            options.log_ratio_high,
            plan.crops[position],
        )
    for step in range(number - 1):
        if options.operation == MIXUP:
            plan.lams[step] = beta(key, _MIX_STREAM + step, options.mix_ratio / number)
        else:
            u, v, s, t = uniforms(key, _MIX_STREAM + step, 0)
            _sample_box(u, v, s, output_height, output_width, plan.boxes[step])
            plan.paste_next[step] = t > 0.5
        if options.inter_aug:
            u, _, _, _ = uniforms(key, _PERMUTATION_STREAM + step, 0)
            _sample_permutation(u, plan.permutations[step])
        else:
            for channel in range(3):
                plan.permutations[step, channel] = channel
    return number, flip


@uncounted
def center_crop(height, width, ratio, crop):
    """Fill the centred square crop with a side of `ratio` times the shorter side (FFCV's rule), at least 1 px."""
    side = max(int(ratio * min(height, width)), 1)
    crop[0] = (height - side) // 2
    crop[1] = (width - side) // 2
    crop[2] = side
    crop[3] = side
