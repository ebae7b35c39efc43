"""What pre-training and fine-tuning share: the learning rate, decoders, and how a step is dealt out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ffcv_cropmix import CropMixRGBImageDecoder
from ffcv_cropmix.errors import usage_error
from ffcv_cropmix.training.distributed import Processes, join, split_batch

from .config import FinetuneConfig, ModelConfig, PretrainConfig, TrainingConfig


def start(config: PretrainConfig | FinetuneConfig, images: int) -> tuple[Processes, int, int]:
    """Join the other processes and seed torch. Returns these, the images at once in each, and the times of a step.

    Args:
        images: of the training set.
    """
    processes, training = join(config.data.gpu), config.training
    torch.manual_seed(training.seed)
    torch.set_num_threads(processes.cores)  # importing FFCV set it to 1
    try:
        batch_size, parts = split_batch(training.batch_size, training.global_batch_size, processes.count)
    except ValueError as error:
        usage_error(str(error))
    if batch_size * parts * processes.count > images:
        usage_error(f"{batch_size * parts * processes.count} images a step are more than {images}, the training set")
    return processes, batch_size, parts


def cosine_lr(training: TrainingConfig, images: int) -> Callable[[float], float]:
    """The learning rate as a function of the epochs done, with fractions: a line up, then half a cosine down to 0.

    Args:
        images: of a step.
    """
    peak, warmup, epochs = training.blr * images / 256, training.warmup_epochs, training.epochs

    def lr_at(position: float) -> float:
        if position < warmup:
            return peak * position / warmup
        return peak * (1 + math.cos(math.pi * (position - warmup) / (epochs - warmup))) / 2

    return lr_at


def create_decoder(config: PretrainConfig | FinetuneConfig, model: ModelConfig) -> CropMixRGBImageDecoder:
    """CropMix, or the plain RandomResizedCrop from the same kernels; bicubic, as in the paper."""
    cropmix = config.cropmix
    options: dict[str, Any] = {"number": 1}
    if cropmix.enabled:
        options = {
            "number": cropmix.number,
            "operation": cropmix.operation,
            "mix_ratio": cropmix.mix_ratio,
            "inter_aug": bool(cropmix.inter_aug),
        }
    return CropMixRGBImageDecoder(
        (model.resolution, model.resolution),
        scale=cropmix.scale,
        interpolation="bicubic",
        flip_probability=config.data.flip_probability,
        seed=config.training.seed,
        **options,
    )
