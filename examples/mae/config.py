"""The options of pretrain.py and finetune.py; sections that both trainers share are those of train_imagenet.py.

Imports neither torch nor FFCV: a wrong option is answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ffcv_cropmix.options import Switch, parse_options, require
from ffcv_cropmix.training import config as trainer
from ffcv_cropmix.training.config import DataConfig, LoggingConfig, ValidationConfig


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    resolution: int = 224
    """Side of the images, px"""
    patch_size: int = 16
    """Side of a patch, px"""
    width: int = 768
    """Of the encoder's tokens"""
    depth: int = 12
    """Blocks of the encoder"""
    heads: int = 12
    """Of the encoder's attention"""
    decoder_width: int = 512
    """Of the decoder's tokens"""
    decoder_depth: int = 8
    """Blocks of the decoder"""
    decoder_heads: int = 16
    """Of the decoder's attention"""
    mask_ratio: float = 0.75
    """Share of the patches that the encoder does not see"""
    norm_pix_loss: Switch = 1
    """Predict the pixels of a patch less their mean, by their standard deviation; 0: normalised as the images are"""

    def __post_init__(self) -> None:
        for key in ("patch_size", "depth", "decoder_depth", "heads", "decoder_heads"):
            require(getattr(self, key) >= 1, f"model.{key}", ">= 1", getattr(self, key))
        side, rule = self.resolution, f"a multiple of patch_size = {self.patch_size} px"
        require(side >= 1 and side % self.patch_size == 0, "model.resolution", rule, side)
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}width"), getattr(self, f"{prefix}heads")
            valid = width >= 1 and width % 4 == 0 and width % heads == 0  # 4: sine and cosine, of row and column
            require(valid, f"model.{prefix}width", f"a multiple of 4 and of {prefix}heads = {heads}", width)
        kept = int(self.patches * (1 - self.mask_ratio))
        require(0 < self.mask_ratio < 1 and kept > 0, "model.mask_ratio", "in (0, 1), a patch left", self.mask_ratio)

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.resolution // self.patch_size) ** 2

    @property
    def arch(self) -> str:
        """The encoder in a word."""
        return f"ViT {self.width}x{self.depth}/{self.patch_size}"


@dataclass(kw_only=True, slots=True)
class CropMixConfig(trainer.CropMixConfig):
    enabled: Switch = 1
    """1: CropMix as below; 0: RandomResizedCrop, one crop of `scale` or more, on the same kernels"""
    scale: float = 0.2
    """Smallest crop area as a share of the image's; (scale, 1) is cut into as many equal bands as there are crops"""
    number: int = 2
    """Crops an image, 1 to 8; several digits: drawn from per image, 234 is 2, 3 or 4"""
    operation: Literal["mixup", "cutmix", 0, 1] = "cutmix"
    """How two crops are mixed; the authors write 0 for mixup and 1 for cutmix"""
    inter_aug: Switch = 0
    """Permute the colour channels of one operand of each mix"""


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    batch_size: int = 64
    """Images a step in each process; with global_batch_size, at most so many at once"""
    global_batch_size: int | None = None
    """Images a step of all processes together, in several parts where batch_size is smaller; null: batch_size each"""
    epochs: int = 200
    """Passes over the training set"""
    warmup_epochs: float = 20
    """Epochs in which the learning rate rises; after them it falls to 0 along a cosine"""
    blr: float = 1.5e-4
    """Peak learning rate for 256 images a step, and in proportion for others"""
    weight_decay: float = 0.05
    """Decoupled; not on normalisation layers and biases"""
    beta_2: float = 0.95
    """AdamW's second; the first is 0.9"""
    precision: Literal["bf16", "fp32"] | None = None
    """null: bf16 on a GPU, fp32 on the CPU"""
    compile: Switch = 0
    """Compile the model with torch.compile"""
    seed: int = 0
    """Of initial weights, order, augmentation and masks, 0 to 2**32 - 1"""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "training.batch_size", ">= 1", self.batch_size)
        whole = self.global_batch_size
        require(whole is None or whole >= 1, "training.global_batch_size", ">= 1", whole)
        require(self.epochs >= 1, "training.epochs", ">= 1", self.epochs)
        rule = f"in [0, epochs = {self.epochs})"
        require(0 <= self.warmup_epochs < self.epochs, "training.warmup_epochs", rule, self.warmup_epochs)
        require(0 < self.blr < math.inf, "training.blr", "> 0", self.blr)
        require(0 <= self.weight_decay < math.inf, "training.weight_decay", ">= 0", self.weight_decay)
        require(0 <= self.beta_2 < 1, "training.beta_2", "in [0, 1)", self.beta_2)
        require(0 <= self.seed < 2**32, "training.seed", "in [0, 2**32)", self.seed)


@dataclass(kw_only=True, slots=True)
class FinetuneTrainingConfig(TrainingConfig):
    epochs: int = 100
    """Passes over the training set"""
    warmup_epochs: float = 5
    """Epochs in which the learning rate rises; after them it falls to 0 along a cosine"""
    blr: float = 5e-4
    """Peak learning rate for 256 images a step, and in proportion for others"""
    optimizer: Literal["adamw", "lars"] = "adamw"
    """lars: with momentum 0.9, for the large steps of a linear probe"""
    beta_2: float = 0.999
    """AdamW's second; the first is 0.9"""
    layer_decay: float = 0.65
    """The head learns at the full rate, each layer below it at so much of the one above; by AdamW only"""
    drop_path: float = 0.1
    """Chance to skip the last block; proportionally less for those before it"""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes"""
    mixup: float = 0.8
    """Mix images of a batch with others, and their labels: alpha of torchvision's MixUp; 0: off"""
    cutmix: float = 1.0
    """Likewise, alpha of torchvision's CutMix; with both, one of them is drawn for each batch"""

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)  # super() does not work in a dataclass with slots before Python 3.14
        require(0 < self.layer_decay <= 1, "training.layer_decay", "in (0, 1]", self.layer_decay)
        require(0 <= self.drop_path < 1, "training.drop_path", "in [0, 1)", self.drop_path)
        require(0 <= self.label_smoothing < 1, "training.label_smoothing", "in [0, 1)", self.label_smoothing)
        require(0 <= self.mixup < math.inf, "training.mixup", ">= 0", self.mixup)
        require(0 <= self.cutmix < math.inf, "training.cutmix", ">= 0", self.cutmix)


@dataclass(kw_only=True, slots=True)
class PretrainConfig:
    """Everything that pre-training depends on."""

    model: ModelConfig
    """Encoder, decoder and masks"""
    data: DataConfig
    """Where images come from; those of the validation set are reconstructed for the picture"""
    cropmix: CropMixConfig
    """The augmentation"""
    training: TrainingConfig
    """Optimisation"""
    logging: LoggingConfig
    """What the run leaves behind: final_weights.pt, the encoder, and reconstructions.png; log_level=0: that at the end
    only"""
    resume: str | None = None
    """auto: go on from logging.folder's checkpoint.pt, if there is one; or a checkpoint's path; null: a new run"""


@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    """Everything that fine-tuning and a linear probe depend on."""

    weights: str
    """The encoder: final_weights.pt of a pre-training"""
    from_scratch: Switch = 0
    """Take no more than the shape of the encoder from there: shows what pre-training is worth"""
    linear_probe: Switch = 0
    """Train a linear classifier on the encoder's class token, and leave the encoder as it is"""
    num_classes: int | None = None
    """Outputs, at least 2; null: as many as the training set's sidecar names, else 1000"""
    data: DataConfig
    """Where images come from"""
    cropmix: CropMixConfig
    """The augmentation"""
    training: FinetuneTrainingConfig
    """Optimisation"""
    validation: ValidationConfig
    """Evaluation"""
    logging: LoggingConfig
    """What the run leaves behind"""
    resume: str | None = None
    """auto: go on from logging.folder's checkpoint.pt, if there is one; or a checkpoint's path; null: a new run"""

    def __post_init__(self) -> None:
        require(self.num_classes is None or self.num_classes >= 2, "num_classes", ">= 2", self.num_classes)


def parse_pretrain(arguments: Sequence[str] | None = None) -> PretrainConfig:
    """See `parse_options`."""
    description = "Pre-train a masked autoencoder."
    return parse_options(PretrainConfig, arguments, prog="python -m examples.mae.pretrain", description=description)


def parse_finetune(arguments: Sequence[str] | None = None) -> FinetuneConfig:
    """See `parse_options`."""
    description = "Fine-tune the encoder of a masked autoencoder, or probe it."
    return parse_options(FinetuneConfig, arguments, prog="python -m examples.mae.finetune", description=description)


def options(config: PretrainConfig | FinetuneConfig, model: ModelConfig) -> dict[str, Any]:
    """What a run depends on, for params.json."""
    return {**asdict(config), "model": {"arch": model.arch, **asdict(model)}}
