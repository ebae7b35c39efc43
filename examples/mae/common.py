"""What pre-training and fine-tuning share: the learning rate and the decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ffcv_cropmix import CropMixRGBImageDecoder
from ffcv_cropmix.training import schedules

from .config import FinetuneConfig, ModelConfig, PretrainConfig, TrainingConfig


def cosine_lr(training: TrainingConfig, images: int) -> Callable[[float], float]:
    """The learning rate as a function of the epochs done, with fractions: a line up, then half a cosine down to 0.

    Args:
        images: of a step.
    """
    peak = training.blr * images / 256
    return partial(schedules.cosine_lr, lr=peak, warmup_epochs=training.warmup_epochs, epochs=training.epochs)


def create_decoder(config: PretrainConfig | FinetuneConfig, model: ModelConfig) -> CropMixRGBImageDecoder:
    """CropMix, or the plain RandomResizedCrop from the same kernels; bicubic, as in the paper."""
    return CropMixRGBImageDecoder(
        (model.resolution, model.resolution),
        scale=config.cropmix.scale,
        interpolation="bicubic",
        flip_probability=config.data.flip_probability,
        seed=config.training.seed,
        **config.cropmix.mix(),
    )
