"""The options of pretrain.py and finetune.py; the sections data, validation and logging are train_imagenet.py's.

This module imports neither torch nor FFCV, so that a wrong option is reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

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
    """Width of the encoder"""
    depth: int = 12
    """Number of encoder blocks"""
    heads: int = 12
    """Attention heads of the encoder"""
    decoder_width: int = 512
    """Width of the decoder"""
    decoder_depth: int = 8
    """Number of decoder blocks"""
    decoder_heads: int = 16
    """Attention heads of the decoder"""
    mask_ratio: float = 0.75
    """Share of the patches that are masked"""
    norm_pix_loss: Switch = 1
    """Predict pixels normalised per patch; 0: normalised as the images are"""

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
        """Number of patches of an image."""
        return (self.resolution // self.patch_size) ** 2

    @property
    def arch(self) -> str:
        """Short name of the encoder."""
        return f"ViT {self.width}x{self.depth}/{self.patch_size}"


@dataclass(kw_only=True, slots=True)
class CropMixConfig(trainer.CropMixConfig):
    enabled: Switch = 1
    """1: CropMix; 0: RandomResizedCrop, one crop of at least `scale`, from the same kernels"""
    scale: float = 0.2
    """Smallest crop area as a share of the image; (scale, 1) is divided into equal bands, one per crop"""
    number: int = 2
    """Crops per image, 1 to 8; of several digits one is sampled per image: 234 is 2, 3 or 4"""
    operation: Literal["mixup", "cutmix", 0, 1] = "cutmix"
    """How crops are mixed; as in the authors' code, 0 is mixup and 1 is cutmix"""
    inter_aug: Switch = 0
    """Permute the colour channels of one operand of each mix"""


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    batch_size: int = 64
    """Images per step in each process; with global_batch_size, the largest micro-batch"""
    global_batch_size: int | None = None
    """Images per optimizer step over all processes, accumulated in micro-batches; null: batch_size per process"""
    epochs: int = 200
    """Passes over the training set"""
    warmup_epochs: float = 20
    """Epochs of linear warm-up, before half a cosine to 0"""
    blr: float = 1.5e-4
    """Base learning rate: the peak is blr times the global batch size / 256"""
    weight_decay: float = 0.05
    """Decoupled weight decay; not on normalisation layers and biases"""
    beta_2: float = 0.95
    """Second beta of AdamW; the first is 0.9"""
    precision: Literal["bf16", "fp32"] | None = None
    """bf16 or fp32; null: bf16 on a GPU, fp32 on the CPU"""
    compile: Switch = 0
    """Compile the model with torch.compile"""
    seed: int = 0
    """Seed of initial weights, order, augmentation and masks, 0 to 2**32 - 1"""

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
    """Epochs of linear warm-up, before half a cosine to 0"""
    blr: float = 5e-4
    """Base learning rate: the peak is blr times the global batch size / 256"""
    optimizer: Literal["adamw", "lars"] = "adamw"
    """adamw, or lars (with momentum 0.9) for the large batches of a linear probe"""
    beta_2: float = 0.999
    """Second beta of AdamW; the first is 0.9"""
    layer_decay: float = 0.65
    """Factor of the learning rate from each layer to the one below it; with AdamW only"""
    drop_path: float = 0.1
    """Probability of skipping the last block; it decreases linearly towards the first"""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes"""
    mixup: float = 0.8
    """Alpha of torchvision's MixUp, which mixes images of a batch and their labels; 0: off"""
    cutmix: float = 1.0
    """Alpha of torchvision's CutMix, likewise; if both are on, one of them is sampled per batch"""

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)  # super() does not work in a dataclass with slots before Python 3.14
        require(0 < self.layer_decay <= 1, "training.layer_decay", "in (0, 1]", self.layer_decay)
        require(0 <= self.drop_path < 1, "training.drop_path", "in [0, 1)", self.drop_path)
        require(0 <= self.label_smoothing < 1, "training.label_smoothing", "in [0, 1)", self.label_smoothing)
        require(0 <= self.mixup < math.inf, "training.mixup", ">= 0", self.mixup)
        require(0 <= self.cutmix < math.inf, "training.cutmix", ">= 0", self.cutmix)


@dataclass(kw_only=True, slots=True)
class PretrainConfig:
    """All options of a pre-training."""

    may_differ = trainer.Config.may_differ | {"model.arch"}  # checkpoints of 0.1.0 hold the name of the encoder

    model: ModelConfig
    """Encoder, decoder and masks"""
    data: DataConfig
    """Datasets and their loading; the picture shows reconstructions of the validation set"""
    cropmix: CropMixConfig
    """Augmentation"""
    training: TrainingConfig
    """Optimisation"""
    logging: LoggingConfig
    """Files of the run, with the encoder (final_weights.pt) and reconstructions.png; log_level=0: plot it once, at the
    end"""
    resume: str | None = None
    """auto: resume from logging.folder's checkpoint.pt, if it exists; or the path of a checkpoint; null: a new run"""

    @property
    def label(self) -> dict[str, str]:
        """The model and the augmentation in short texts, for tables and plots."""
        return {"model": self.model.arch, "augmentation": trainer.augmentation(asdict(self))}


@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    """All options of fine-tuning and of a linear probe."""

    may_differ = trainer.Config.may_differ | {"weights", "model.arch"}  # the name of the encoder: in 0.1.0's

    weights: str
    """Encoder: final_weights.pt of a pre-training"""
    from_scratch: Switch = 0
    """Use only the shape of that encoder, with random weights: shows the effect of pre-training"""
    linear_probe: Switch = 0
    """Train a linear classifier on the class token of the frozen encoder"""
    num_classes: int | None = None
    """Number of classes, at least 2; null: as many as the training set's sidecar names, else 1000"""
    data: DataConfig
    """Datasets and their loading"""
    cropmix: CropMixConfig
    """Augmentation"""
    training: FinetuneTrainingConfig
    """Optimisation"""
    validation: ValidationConfig
    """Evaluation"""
    logging: LoggingConfig
    """Files of the run"""
    resume: str | None = None
    """auto: resume from logging.folder's checkpoint.pt, if it exists; or the path of a checkpoint; null: a new run"""

    def __post_init__(self) -> None:
        require(self.num_classes is None or self.num_classes >= 2, "num_classes", ">= 2", self.num_classes)


def parse_pretrain(arguments: Sequence[str] | None = None) -> PretrainConfig:
    """Parse the options of the command line; see `parse_options`."""
    description = "Pre-train a masked autoencoder."
    return parse_options(PretrainConfig, arguments, prog="python -m examples.mae.pretrain", description=description)


def parse_finetune(arguments: Sequence[str] | None = None) -> FinetuneConfig:
    """Parse the options of the command line; see `parse_options`."""
    description = "Fine-tune the encoder of a masked autoencoder, or probe it."
    return parse_options(FinetuneConfig, arguments, prog="python -m examples.mae.finetune", description=description)
