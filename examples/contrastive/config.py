"""The options of pre-training and of the linear evaluation.

Sections that have the names of the trainer's are the trainer's. Without torch: a wrong option is answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ffcv_cropmix.options import Switch, parse_options, require
from ffcv_cropmix.training.config import DataConfig, DistConfig, LoggingConfig, ModelConfig

MAY_DIFFER = frozenset(["resume", "data.train_dataset", "data.val_dataset", "data.num_workers", "data.gpu", "logging"])


@dataclass(kw_only=True, slots=True)
class QueryConfig:
    enabled: Switch = 1
    """The query is a mix of two crops, of 20 to 60 % and 60 to 100 % of the image; 0: one of 20 to 100 %, as the key"""
    number: int = 2
    """Crops of the query"""
    operation: str = "one-way cutmix"
    """Each is augmented on its own; then a box of the larger one is pasted into the smaller one"""

    def __post_init__(self) -> None:
        require(self.number == 2, "cropmix.number", "2", self.number)
        require(self.operation == "one-way cutmix", "cropmix.operation", "one-way cutmix", self.operation)


@dataclass(kw_only=True, slots=True)
class MoCoConfig:
    resolution: int = 224
    """Side of the images, px"""
    global_batch_size: int = 256
    """Images a step, of all processes together"""
    epochs: int = 100
    """Passes over the training set"""
    lr: float = 0.03
    """Of the first step; it falls to 0 as half a cosine"""
    momentum: float = 0.9
    """SGD's"""
    weight_decay: float = 1e-4
    """L2 penalty, on all parameters"""
    queue: int = 65536
    """Keys that a query is compared with"""
    key_momentum: float = 0.999
    """Of the average of the weights that encodes the keys"""
    temperature: float = 0.2
    """Of the contrastive loss"""
    neighbors: int = 200
    """Of a validation image, that vote for its class, by cosine similarity"""
    known: int = 20000
    """Training images that are asked, at most"""
    precision: str | None = None
    """bf16 or fp32; null: bf16 on a GPU"""
    distributed: Switch = 0
    """Start dist.world_size processes on this machine; torchrun does the same without it"""
    seed: int = 0
    """Of weights, order and augmentation"""

    def __post_init__(self) -> None:
        for name in ("resolution", "global_batch_size", "epochs", "queue", "neighbors", "known"):
            require(getattr(self, name) >= 1, f"training.{name}", ">= 1", getattr(self, name))
        require(0 < self.lr < math.inf, "training.lr", "> 0", self.lr)
        require(0 < self.temperature < math.inf, "training.temperature", "> 0", self.temperature)
        require(0 <= self.key_momentum <= 1, "training.key_momentum", "in [0, 1]", self.key_momentum)
        require(self.precision in (None, "bf16", "fp32"), "training.precision", "bf16 or fp32", self.precision)


@dataclass(kw_only=True, slots=True)
class PretrainConfig:
    """Everything that pre-training depends on. Sections that it shares with train_imagenet.py are the same."""

    model: ModelConfig
    """The network"""
    data: DataConfig
    """Where images come from; labels are for the validation only"""
    cropmix: QueryConfig
    """The query"""
    training: MoCoConfig
    """Optimisation"""
    logging: LoggingConfig
    """What the run leaves behind"""
    dist: DistConfig
    """Several processes"""
    resume: str | None = None
    """auto: go on from logging.folder's checkpoint.pt, if there is one; or a checkpoint's path; null: a new run"""


@dataclass(kw_only=True, slots=True)
class ClassifierConfig:
    resolution: int = 224
    """Side of the images, px"""
    global_batch_size: int = 256
    """Images a step, of all processes together"""
    epochs: int = 100
    """Passes over the training set"""
    lr: float = 30
    """Of the first epochs; times 0.1 at 60 % and at 80 % of them"""
    seed: int = 0
    """Of order and augmentation"""

    def __post_init__(self) -> None:
        for name in ("resolution", "global_batch_size", "epochs"):
            require(getattr(self, name) >= 1, f"training.{name}", ">= 1", getattr(self, name))
        require(0 < self.lr < math.inf, "training.lr", "> 0", self.lr)


@dataclass(kw_only=True, slots=True)
class LinearConfig:
    """Everything that a linear evaluation depends on."""

    weights: str
    """The backbone's, as pretrain.py leaves them"""
    model: ModelConfig
    """The network"""
    data: DataConfig
    """Where images come from"""
    training: ClassifierConfig
    """Optimisation"""
    logging: LoggingConfig
    """What the run leaves behind"""
    resume: str | None = None
    """auto: go on from logging.folder's checkpoint.pt, if there is one; or a checkpoint's path; null: a new run"""


def parse_pretrain(arguments: Sequence[str] | None = None) -> PretrainConfig:
    """See `parse_options`."""
    description = "MoCo v2 with CropMix on .beton files."
    program = "python -m examples.contrastive.pretrain"
    return parse_options(PretrainConfig, arguments, prog=program, description=description)


def parse_linear(arguments: Sequence[str] | None = None) -> LinearConfig:
    """See `parse_options`."""
    description = "Linear evaluation of a pre-trained backbone."
    return parse_options(LinearConfig, arguments, prog="python -m examples.contrastive.linear", description=description)
