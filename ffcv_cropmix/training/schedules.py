"""Learning rate and resolution over the run."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .config import LrConfig, ResolutionConfig


def cyclic_lr(position: float, *, lr: float, peak_epoch: float, epochs: int) -> float:
    """Linear from 0 up to `lr` at `peak_epoch`, then linear to 0 at the end of the run.

    Args:
        position: epochs done, with fractions: 1.5 is the middle of the second epoch.
        peak_epoch: in [0, epochs).
    """
    if position < peak_epoch:
        return lr * position / peak_epoch
    return lr * max(epochs - position, 0.0) / (epochs - peak_epoch)


def cosine_lr(position: float, *, lr: float, warmup_epochs: float = 0, epochs: int) -> float:
    """Linear from 0 up to `lr` at the end of the warm-up, then half a cosine down to 0 at the end of the run."""
    if position < warmup_epochs:
        return lr * position / warmup_epochs
    return lr * (1 + math.cos(math.pi * (position - warmup_epochs) / (epochs - warmup_epochs))) / 2


def step_lr(position: float, *, lr: float, step_ratio: float, step_length: int, epochs: int) -> float:
    """`lr` times `step_ratio` for every `step_length` epochs done, with ffcv-imagenet's ramps.

    As there, the rate moves in a line, within each epoch, from the epoch's value to the next one's: the drop takes the
    epoch before it, and in the last epoch the rate falls to 0.
    """

    def start(epoch: int) -> float:
        return lr * step_ratio ** (epoch // step_length) if epoch < epochs else 0.0

    epoch = math.floor(position)
    return start(epoch) + (start(epoch + 1) - start(epoch)) * (position - epoch)


def lr_schedule(config: LrConfig, epochs: int, images: int) -> Callable[[float], float]:
    """The learning rate as a function of the epochs done, with fractions: one value for each step of the optimiser.

    A cyclic peak beyond the run moves to its middle, and this is said: such a run would never leave the warm-up.

    Args:
        images: of a step; counts if the configuration has a reference_batch_size.
    """
    lr = config.lr * images / (config.reference_batch_size or images)
    if config.lr_schedule_type == "step":
        return lambda position: step_lr(
            position, lr=lr, step_ratio=config.step_ratio, step_length=config.step_length, epochs=epochs
        )
    peak_epoch = config.lr_peak_epoch
    if peak_epoch >= epochs:
        peak_epoch = epochs / 2
        print(f"lr.lr_peak_epoch={config.lr_peak_epoch:g} is beyond the {epochs} epochs: moved to {peak_epoch:g}")
    return lambda position: cyclic_lr(position, lr=lr, peak_epoch=peak_epoch, epochs=epochs)


def resolution(epoch: int, config: ResolutionConfig) -> int:
    """Side of the training images in an epoch, px: min_res until start_ramp, max_res from end_ramp.

    In between it is the nearest multiple of 32 on the straight line, and not outside min_res to max_res.
    """
    if epoch <= config.start_ramp:
        return config.min_res
    if epoch >= config.end_ramp:
        return config.max_res
    side = np.interp(epoch, [config.start_ramp, config.end_ramp], [config.min_res, config.max_res])
    return int(np.clip(round(side / 32) * 32, config.min_res, config.max_res))
