"""Schedules of the learning rate and of the resolution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .config import LrConfig, ResolutionConfig


def cyclic_lr(position: float, *, lr: float, peak_epoch: float = 0, epochs: int) -> float:
    """Return the learning rate of a triangular schedule: linear from 0 to `lr`, then linear to 0.

    Args:
        position: Epochs done, with fractions: 1.5 is the middle of the second epoch.
        lr: Peak learning rate.
        peak_epoch: Position of the peak, in [0, epochs).
        epochs: Length of the run.

    Example:
        >>> [cyclic_lr(position, lr=1.0, peak_epoch=2, epochs=6) for position in (0, 1, 2, 4, 6)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if position < peak_epoch:
        return lr * position / peak_epoch
    return lr * max(epochs - position, 0.0) / (epochs - peak_epoch)


def cosine_lr(position: float, *, lr: float, peak_epoch: float = 0, epochs: int) -> float:
    """Return the learning rate of a cosine schedule: linear from 0 to `lr`, then half a cosine to 0.

    Args:
        position: Epochs done, with fractions.
        lr: Peak learning rate.
        peak_epoch: End of the linear warm-up, in [0, epochs).
        epochs: Length of the run.

    Example:
        >>> [round(cosine_lr(position, lr=1.0, peak_epoch=2, epochs=6), 3) for position in (0, 1, 2, 4, 6)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if position < peak_epoch:
        return lr * position / peak_epoch
    share = min((position - peak_epoch) / (epochs - peak_epoch), 1.0)
    return lr * (1 + math.cos(math.pi * share)) / 2


def step_lr(position: float, *, lr: float, step_ratio: float, step_length: int, epochs: int) -> float:
    """Return the learning rate of a step schedule with ffcv-imagenet's ramps.

    The rate at the start of an epoch is `lr` times `step_ratio` for every `step_length` epochs done. As in
    ffcv-imagenet, it moves linearly within each epoch to the value of the next: a drop takes the whole epoch before it,
    and the rate falls to 0 in the last epoch.

    Args:
        position: Epochs done, with fractions.
        lr: Initial learning rate.
        step_ratio: Factor of each drop.
        step_length: Epochs between drops.
        epochs: Length of the run.

    Example:
        >>> [step_lr(position, lr=1.0, step_ratio=0.5, step_length=2, epochs=4) for position in (0, 1, 1.5, 2, 4)]
        [1.0, 1.0, 0.75, 0.5, 0.0]
    """

    def start(epoch: int) -> float:
        return lr * step_ratio ** (epoch // step_length) if epoch < epochs else 0.0

    epoch = math.floor(position)
    return start(epoch) + (start(epoch + 1) - start(epoch)) * (position - epoch)


def lr_schedule(config: LrConfig, epochs: int, global_batch_size: int) -> Callable[[float], float]:
    """Create the learning rate schedule of a run.

    A cyclic or cosine peak beyond the end is moved to the middle of the run, with a message: the run would otherwise
    never leave the warm-up.

    Args:
        config: Options of the schedule.
        epochs: Length of the run.
        global_batch_size: Images per optimizer step. Scales the rate if `config.reference_batch_size` is set.

    Returns:
        A function from the epochs done, with fractions, to the learning rate of a step.

    Example:
        >>> lr_at = lr_schedule(LrConfig(lr=1.7, reference_batch_size=1024, lr_peak_epoch=2), 16, 512)
        >>> lr_at(2), lr_at(9)
        (0.85, 0.425)
    """
    lr = config.lr * global_batch_size / (config.reference_batch_size or global_batch_size)
    if config.lr_schedule_type == "step":
        return lambda position: step_lr(
            position, lr=lr, step_ratio=config.step_ratio, step_length=config.step_length, epochs=epochs
        )
    peak_epoch = config.lr_peak_epoch
    if peak_epoch >= epochs:
        peak_epoch = epochs / 2
        print(f"lr.lr_peak_epoch={config.lr_peak_epoch:g} is beyond the {epochs} epochs: moved to {peak_epoch:g}")
    schedule = {"cyclic": cyclic_lr, "cosine": cosine_lr}[config.lr_schedule_type]
    return lambda position: schedule(position, lr=lr, peak_epoch=peak_epoch, epochs=epochs)


def resolution(epoch: int, config: ResolutionConfig) -> int:
    """Return the side of the training images in an epoch, px.

    It is `min_res` until epoch `start_ramp` and `max_res` from epoch `end_ramp`. In between, it is the nearest multiple
    of 32 to the linear ramp, clipped to [min_res, max_res].

    Example:
        >>> config = ResolutionConfig(min_res=128, max_res=192, start_ramp=0, end_ramp=2)
        >>> [resolution(epoch, config) for epoch in range(4)]
        [128, 160, 192, 192]
    """
    if epoch <= config.start_ramp:
        return config.min_res
    if epoch >= config.end_ramp:
        return config.max_res
    side = np.interp(epoch, [config.start_ramp, config.end_ramp], [config.min_res, config.max_res])
    return int(np.clip(round(side / 32) * 32, config.min_res, config.max_res))
