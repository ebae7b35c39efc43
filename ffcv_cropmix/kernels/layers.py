"""Convert mixing steps to layers: the visible part of each crop and its weight, in painter's order.

Mixing crop after crop would touch every output pixel once per crop. Therefore a plan is collapsed first: with mixup, a
crop's final weight is a product of lams; with cutmix, each crop is a rectangle that later crops cover.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arrays import empty
from .jit import jit, uncounted
from .sampling import MAX_CROPS, MIXUP
from .vectors import ADD, REPLACE

FAINT = 0.5 / 255  # weight of half a level: layers below it are dropped


class Layers(NamedTuple):
    """Up to MAX_CROPS layers, the lowest first."""

    crops: Any  # int64 (MAX_CROPS, 4): top, left, height, width in the image
    weights: Any  # float64 (MAX_CROPS,): mixup adds them up to 1; cutmix paints, with weight 1
    permutations: Any  # int64 (MAX_CROPS, 3): output channel c is the crop's channel permutation[c]
    rectangles: Any  # int64 (MAX_CROPS, 4): row0, col0, row1, col1 in the output
    blends: Any  # int64 (MAX_CROPS,): REPLACE what is below, or ADD to it; the lowest layer replaces


@jit
def new_layers():
    """Allocate arrays for the layers of any plan."""
    return Layers(
        empty((MAX_CROPS, 4), np.int64),
        empty(MAX_CROPS, np.float64),
        empty((MAX_CROPS, 3), np.int64),
        empty((MAX_CROPS, 4), np.int64),
        empty(MAX_CROPS, np.int64),
    )


@uncounted
def set_layer(layers, position, crop, output_height, output_width):
    """Set the layer at a position to a crop that covers the whole output, with weight 1 and its channels in order."""
    for k in range(4):
        layers.crops[position, k] = crop[k]
    layers.weights[position] = 1.0
    layers.blends[position] = REPLACE
    for channel in range(3):
        layers.permutations[position, channel] = channel
    layers.rectangles[position, 0] = 0
    layers.rectangles[position, 1] = 0
    layers.rectangles[position, 2] = output_height
    layers.rectangles[position, 3] = output_width


@uncounted
def _move_layer(layers, source, target):
    for k in range(4):
        layers.crops[target, k] = layers.crops[source, k]
        layers.rectangles[target, k] = layers.rectangles[source, k]
    for channel in range(3):
        layers.permutations[target, channel] = layers.permutations[source, channel]
    layers.weights[target] = layers.weights[source]
    layers.blends[target] = layers.blends[source]


@uncounted
def _permute(layers, start, stop, permutation):
    """Permute the channels of layers start to stop - 1: out[c] = mix[permutation[c]]."""
    for position in range(start, stop):
        old = layers.permutations[position]
        red, green, blue = old[permutation[0]], old[permutation[1]], old[permutation[2]]
        old[0] = red
        old[1] = green
        old[2] = blue


@uncounted
def _clip_layers(layers, count, box):
    """Clip each layer to the box and drop empty layers; return the number of layers left."""
    kept = 0
    for position in range(count):
        rectangle = layers.rectangles[position]
        rectangle[0] = max(rectangle[0], box[0])
        rectangle[1] = max(rectangle[1], box[1])
        rectangle[2] = min(rectangle[2], box[2])
        rectangle[3] = min(rectangle[3], box[3])
        if rectangle[0] < rectangle[2] and rectangle[1] < rectangle[3]:
            _move_layer(layers, position, kept)
            kept += 1
    return kept


@uncounted
def _drop_faint(layers, count):
    """Drop layers that together change the mix by less than half a level; return the number of layers left.

    The other weights are scaled so that they sum to 1 again. lam is from Beta(a, a) with a < 1: one layer is left in a
    third of all images.
    """
    kept = 0
    total = dropped = 0.0
    for position in range(count):
        weight = layers.weights[position]
        if dropped + weight < FAINT:
            dropped += weight
        else:
            total += weight
            _move_layer(layers, position, kept)
            kept += 1
    for position in range(kept):
        layers.weights[position] /= total
    layers.blends[0] = REPLACE
    return kept


@uncounted
def _drop_covered(layers, count):
    """Drop each layer that one later, replacing layer covers completely; return the number of layers left."""
    kept = 0
    for position in range(count):
        below = layers.rectangles[position]
        covered = False
        for other in range(position + 1, count):
            above = layers.rectangles[other]
            within = above[0] <= below[0] and above[1] <= below[1] and above[2] >= below[2] and above[3] >= below[3]
            if within and layers.blends[other] == REPLACE:
                covered = True
        if not covered:
            _move_layer(layers, position, kept)
            kept += 1
    return kept


@uncounted
def stack(plan, number, operation, output_height, output_width, layers):
    """Fill `layers` from the plan (PlanArrays) of `number` crops; return the number of layers, at least 1.

    Each crop with a visible part has a layer, however faint.
    """
    set_layer(layers, 0, plan.crops[0], output_height, output_width)
    count = 1
    for step in range(number - 1):
        crop = plan.crops[step + 1]
        permutation = plan.permutations[step]
        if operation == MIXUP:
            lam = plan.lams[step]
            set_layer(layers, count, crop, output_height, output_width)
            if lam > 0.5:
                _permute(layers, count, count + 1, permutation)
            else:
                _permute(layers, 0, count, permutation)
            for position in range(count):
                layers.weights[position] *= lam
            layers.weights[count] = 1.0 - lam
            layers.blends[count] = ADD
            count += 1
        elif plan.paste_next[step]:
            box = plan.boxes[step]
            if box[0] < box[2] and box[1] < box[3]:
                set_layer(layers, count, crop, output_height, output_width)
                _permute(layers, count, count + 1, permutation)
                for k in range(4):
                    layers.rectangles[count, k] = box[k]
                count += 1
        else:
            _permute(layers, 0, count, permutation)
            count = _clip_layers(layers, count, plan.boxes[step])
            for position in range(count, 0, -1):
                _move_layer(layers, position - 1, position)
            set_layer(layers, 0, crop, output_height, output_width)
            count += 1
    return count


@uncounted
def collapse(plan, number, operation, output_height, output_width, layers):
    """Fill `layers` as `stack` does, then drop layers that are too faint or completely covered; return the number."""
    count = stack(plan, number, operation, output_height, output_width, layers)
    return _drop_faint(layers, count) if layers.blends[count - 1] == ADD else _drop_covered(layers, count)
