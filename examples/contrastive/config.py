"""The options of pre-training and of the linear evaluation.

The sections model, data, logging and dist are those of train_imagenet.py. This module imports neither torch nor FFCV,
so that a wrong option is reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ffcv_cropmix.options import Switch, parse_options, require
from ffcv_cropmix.training.config import DataConfig, DistConfig, LoggingConfig, ModelConfig

_MAY_DIFFER = frozenset(["resume", "data.train_dataset", "data.val_dataset", "data.num_workers", "data.gpu", "logging"])
_REMOVED = frozenset(["cropmix.number", "cropmix.operation"])  # options of 0.1.0 that had one legal value


@dataclass(kw_only=True, slots=True)
class QueryConfig:
    enabled: Switch = 1
    """1: the query is a one-way cutmix of two crops, of 20 to 60 % and 60 to 100 % of the image; 0: it is one crop"""


@dataclass(kw_only=True, slots=True)
class MoCoConfig:
    resolution: int = 224
    """Side of the images, px"""
    global_batch_size: int = 256
    """Images per optimizer step, over all processes"""
    epochs: int = 100
    """Passes over the training set"""
    lr: float = 0.03
    """Initial learning rate; half a cosine to 0"""
    momentum: float = 0.9
    """Momentum of SGD"""
    weight_decay: float = 1e-4
    """L2 penalty on all parameters"""
    queue: int = 65536
    """Number of keys that a query is compared with"""
    key_momentum: float = 0.999
    """Momentum of the moving average of the weights that encodes the keys"""
    temperature: float = 0.2
    """Temperature of the contrastive loss"""
    neighbors: int = 200
    """Number of nearest training images, by cosine similarity, that vote for the class of a validation image"""
    known: int = 20000
    """Largest number of training images among which neighbours are searched"""
    precision: str | None = None
    """bf16 or fp32; null: bf16 on a GPU, fp32 on the CPU"""
    distributed: Switch = 0
    """Start dist.world_size processes on this machine; not needed under torchrun"""
    seed: int = 0
    """Seed of initial weights, order and augmentation"""

    def __post_init__(self) -> None:
        for name in ("resolution", "global_batch_size", "epochs", "queue", "neighbors", "known"):
            require(getattr(self, name) >= 1, f"training.{name}", ">= 1", getattr(self, name))
        require(0 < self.lr < math.inf, "training.lr", "> 0", self.lr)
        require(0 < self.temperature < math.inf, "training.temperature", "> 0", self.temperature)
        require(0 <= self.key_momentum <= 1, "training.key_momentum", "in [0, 1]", self.key_momentum)
        require(self.precision in (None, "bf16", "fp32"), "training.precision", "bf16 or fp32", self.precision)


@dataclass(kw_only=True, slots=True)
class PretrainConfig:
    """All options of a pre-training."""

    may_differ = _MAY_DIFFER | _REMOVED

    model: ModelConfig
    """Network"""
    data: DataConfig
    """Datasets and their loading; labels are used by the validation only"""
    cropmix: QueryConfig
    """Query"""
    training: MoCoConfig
    """Optimisation"""
    logging: LoggingConfig
    """Files of the run"""
    dist: DistConfig
    """Processes"""
    resume: str | None = None
    """auto: resume from logging.folder's checkpoint.pt, if it exists; or the path of a checkpoint; null: a new run"""

    @property
    def label(self) -> dict[str, str]:
        """The model and the augmentation in short texts, for tables and plots."""
        query = "CropMix 2 one-way cutmix" if self.cropmix.enabled else "RandomResizedCrop"
        return {"model": self.model.arch, "augmentation": query}


@dataclass(kw_only=True, slots=True)
class ClassifierConfig:
    resolution: int = 224
    """Side of the images, px"""
    global_batch_size: int = 256
    """Images per optimizer step, over all processes"""
    epochs: int = 100
    """Passes over the training set"""
    lr: float = 30
    """Initial learning rate; times 0.1 after 60 % and 80 % of the epochs"""
    seed: int = 0
    """Seed of order and augmentation"""

    def __post_init__(self) -> None:
        for name in ("resolution", "global_batch_size", "epochs"):
            require(getattr(self, name) >= 1, f"training.{name}", ">= 1", getattr(self, name))
        require(0 < self.lr < math.inf, "training.lr", "> 0", self.lr)


@dataclass(kw_only=True, slots=True)
class LinearConfig:
    """All options of a linear evaluation."""

    may_differ = _MAY_DIFFER

    weights: str
    """Weights of the backbone: final_weights.pt of pretrain.py, or a MoCo checkpoint"""
    model: ModelConfig
    """Network"""
    data: DataConfig
    """Datasets and their loading"""
    training: ClassifierConfig
    """Optimisation"""
    logging: LoggingConfig
    """Files of the run"""
    resume: str | None = None
    """auto: resume from logging.folder's checkpoint.pt, if it exists; or the path of a checkpoint; null: a new run"""

    @property
    def label(self) -> dict[str, str]:
        """The model and the augmentation in short texts, for tables and plots."""
        return {"model": self.model.arch, "augmentation": "RandomResizedCrop"}


def parse_pretrain(arguments: Sequence[str] | None = None) -> PretrainConfig:
    """Parse the options of the command line; see `parse_options`."""
    description = "MoCo v2 with CropMix on .beton files."
    program = "python -m examples.contrastive.pretrain"
    return parse_options(PretrainConfig, arguments, prog=program, description=description)


def parse_linear(arguments: Sequence[str] | None = None) -> LinearConfig:
    """Parse the options of the command line; see `parse_options`."""
    description = "Linear evaluation of a pre-trained backbone."
    return parse_options(LinearConfig, arguments, prog="python -m examples.contrastive.linear", description=description)
