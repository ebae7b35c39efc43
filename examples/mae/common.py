"""The learning rate and the decoder of both pre-training and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ffcv_cropmix import CropMixRGBImageDecoder
from ffcv_cropmix.training import schedules

from .config import FinetuneConfig, ModelConfig, PretrainConfig, TrainingConfig


def lr_schedule(training: TrainingConfig, global_batch_size: int) -> Callable[[float], float]:
    """Create the learning rate schedule: a linear warm-up, then half a cosine to 0.

    Args:
        training: Options; the peak is `blr` times the global batch size / 256.
        global_batch_size: Images per optimizer step, over all processes.

    Returns:
        A function from the epochs done, with fractions, to the learning rate of a step.
    """
    peak = training.blr * global_batch_size / 256
    return partial(schedules.cosine_lr, lr=peak, peak_epoch=training.warmup_epochs, epochs=training.epochs)


def create_decoder(config: PretrainConfig | FinetuneConfig, model: ModelConfig) -> CropMixRGBImageDecoder:
    """Create the training decoder: CropMix or a plain RandomResizedCrop, bicubic as in the paper."""
    return CropMixRGBImageDecoder(
        (model.resolution, model.resolution),
        scale=config.cropmix.scale,
        interpolation="bicubic",
        flip_probability=config.data.flip_probability,
        seed=config.training.seed,
        **config.cropmix.mix(),
    )
