"""The options of train_imagenet.py: one dataclass per section, read from YAML and the command line.

Sections and keys are those of ffcv-imagenet, so that its configuration files load, plus `cropmix`. This module imports
neither torch nor FFCV, so that a wrong option is reported at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..options import Switch, parse_options, require


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    arch: str = "resnet18"
    """Name of a torchvision classification architecture, or timm/NAME with timm installed"""
    pretrained: Switch = 0
    """Start from torchvision's or timm's pretrained weights (downloaded); a head of another size is reinitialised"""
    num_classes: int | None = None
    """Number of classes, at least 2; null: as many as the training set's sidecar names, else 1000"""
    cifar_stem: Switch = 0
    """Use a ResNet stem for images of 32 px: a 3 x 3 convolution with stride 1, without pooling"""

    def __post_init__(self) -> None:
        require(self.num_classes is None or self.num_classes >= 2, "model.num_classes", ">= 2", self.num_classes)


@dataclass(kw_only=True, slots=True)
class ResolutionConfig:
    min_res: int = 160
    """Side of the training images until epoch start_ramp, px"""
    max_res: int = 160
    """Side of the training images from epoch end_ramp, px; in between, linear, rounded to multiples of 32"""
    start_ramp: int = 0
    """Last epoch at min_res"""
    end_ramp: int = 0
    """First epoch at max_res"""

    def __post_init__(self) -> None:
        require(self.min_res >= 1, "resolution.min_res", ">= 1 px", self.min_res)
        require(self.max_res >= self.min_res, "resolution.max_res", f">= min_res = {self.min_res} px", self.max_res)
        require(self.start_ramp >= 0, "resolution.start_ramp", ">= 0", self.start_ramp)
        rule = f">= start_ramp = {self.start_ramp}"
        require(self.end_ramp >= self.start_ramp, "resolution.end_ramp", rule, self.end_ramp)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    train_dataset: str
    """Training set: a .beton file with the fields image and label"""
    val_dataset: str
    """Validation set: a .beton file with the same fields"""
    num_workers: int | None = None
    """Threads that decode and augment, at most one per core of the process; null: one per core"""
    in_memory: Switch = 1
    """1: the files fit into the page cache, and the order is fully random; 0: pages are read in quasi-random order"""
    gpu: int = 0
    """Index of the GPU; without CUDA, the CPU is used"""
    flip_probability: float = 0.5
    """Probability of a horizontal flip; use 0 where a flip changes the class (digits, text)"""

    def __post_init__(self) -> None:
        workers = self.num_workers
        require(workers is None or workers >= 1, "data.num_workers", ">= 1", workers)
        require(self.gpu >= 0, "data.gpu", ">= 0", self.gpu)
        require(0 <= self.flip_probability <= 1, "data.flip_probability", "in [0, 1]", self.flip_probability)


@dataclass(kw_only=True, slots=True)
class LrConfig:
    lr: float = 0.5
    """Peak learning rate, for the global batch size, or for reference_batch_size if that is set"""
    reference_batch_size: int | None = None
    """Batch size that lr.lr is meant for: the rate is scaled by global batch size / this; null: no scaling"""
    lr_schedule_type: Literal["cyclic", "cosine", "step"] = "cyclic"
    """cyclic: linear to the peak at lr_peak_epoch, then linear to 0; cosine: the same, but half a cosine to 0; step:
    times step_ratio every step_length epochs, with ffcv-imagenet's linear ramps within an epoch"""
    lr_peak_epoch: float = 2
    """cyclic, cosine: epochs until the peak; a peak beyond the run is moved to its middle"""
    step_ratio: float = 0.1
    """step: factor of each drop"""
    step_length: int = 30
    """step: epochs between drops"""

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "lr.lr", "> 0", self.lr)
        reference = self.reference_batch_size
        require(reference is None or reference >= 1, "lr.reference_batch_size", ">= 1", reference)
        require(0 <= self.lr_peak_epoch < math.inf, "lr.lr_peak_epoch", ">= 0", self.lr_peak_epoch)
        require(0 < self.step_ratio < math.inf, "lr.step_ratio", "> 0", self.step_ratio)
        require(self.step_length >= 1, "lr.step_length", ">= 1", self.step_length)


@dataclass(kw_only=True, slots=True)
class LoggingConfig:
    folder: str
    """Folder of this run alone, created if missing: log, params.json, checkpoint.pt, final_weights.pt, curves.png"""
    log_level: int = 1
    """0: evaluate after the last epoch only; 1: evaluate after every epoch"""
    tensorboard: Switch = 1
    """Write the log for TensorBoard as well"""

    def __post_init__(self) -> None:
        require(self.log_level >= 0, "logging.log_level", ">= 0", self.log_level)


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    batch_size: int = 512
    """Images per batch"""
    resolution: int = 224
    """Side of the validation images, px"""
    crop_ratio: float = 224 / 256
    """Side of the central crop as a share of the shorter side of the image"""
    lr_tta: Switch = 1
    """Average the outputs for each image and its horizontal flip"""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "validation.batch_size", ">= 1", self.batch_size)
        require(self.resolution >= 1, "validation.resolution", ">= 1 px", self.resolution)
        require(0 < self.crop_ratio <= 1, "validation.crop_ratio", "in (0, 1]", self.crop_ratio)


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    batch_size: int = 512
    """Images per step in each process; with global_batch_size, the largest micro-batch"""
    global_batch_size: int | None = None
    """Images per optimizer step over all processes, accumulated in micro-batches; null: batch_size per process"""
    optimizer: Literal["sgd"] = "sgd"
    """SGD with momentum, without Nesterov's variant"""
    momentum: float = 0.9
    """Momentum of SGD"""
    weight_decay: float = 4e-5
    """L2 penalty; not on normalisation layers, biases and what timm exempts (tokens, positions, scales); see bn_wd"""
    bn_wd: Switch = 0
    """Apply weight decay to all parameters"""
    epochs: int = 30
    """Passes over the training set"""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: binary cross-entropy, summed over the classes"""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes"""
    mixup: float = 0
    """Alpha of torchvision's MixUp, which mixes images of a batch and their labels; 0: off"""
    cutmix: float = 0
    """Alpha of torchvision's CutMix, likewise; if both are on, one of them is sampled per batch"""
    augment: Literal["trivial", "rand", "jitter"] | None = None
    """TrivialAugment, RandAugment or colour jitter of each image, on the device, by kornia; null: off"""
    random_erasing: float = 0
    """Probability of erasing a rectangle of an image, on the device, by kornia; 0: off"""
    ema_decay: float = 0
    """Decay per step of an exponential moving average of the weights, which is evaluated and saved; 0: off"""
    precision: Literal["bf16", "fp16", "fp32"] | None = None
    """bf16, fp16 (with loss scaling) or fp32; null: bf16 on a GPU, fp32 on the CPU"""
    compile: Switch = 0
    """Compile the model with torch.compile, once per resolution"""
    sync_bn: Switch = 0
    """Synchronise batch normalisation over all processes; GPUs only"""
    distributed: Switch = 0
    """Start dist.world_size processes on this machine; not needed under torchrun"""
    use_blurpool: Switch = 0
    """Blur the input of strided convolutions with at least 16 input channels"""
    eval_only: Switch = 0
    """Evaluate the checkpoint or weights file of `resume` instead of training"""
    seed: int = 0
    """Seed of initial weights, order and augmentation, 0 to 2**32 - 1"""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "training.batch_size", ">= 1", self.batch_size)
        whole = self.global_batch_size
        require(whole is None or whole >= 1, "training.global_batch_size", ">= 1", whole)
        require(0 <= self.momentum < 1, "training.momentum", "in [0, 1)", self.momentum)
        require(0 <= self.weight_decay < math.inf, "training.weight_decay", ">= 0", self.weight_decay)
        require(self.epochs >= 1, "training.epochs", ">= 1", self.epochs)
        require(0 <= self.label_smoothing < 1, "training.label_smoothing", "in [0, 1)", self.label_smoothing)
        require(0 <= self.mixup < math.inf, "training.mixup", ">= 0", self.mixup)
        require(0 <= self.cutmix < math.inf, "training.cutmix", ">= 0", self.cutmix)
        require(0 <= self.random_erasing <= 1, "training.random_erasing", "in [0, 1]", self.random_erasing)
        require(0 <= self.ema_decay < 1, "training.ema_decay", "in [0, 1)", self.ema_decay)
        require(0 <= self.seed < 2**32, "training.seed", "in [0, 2**32)", self.seed)


@dataclass(kw_only=True, slots=True)
class DistConfig:
    world_size: int = 1
    """Number of processes, one per GPU; used with training.distributed only"""
    address: str = "localhost"
    """Host of the main process"""
    port: int = 12355
    """Port of the main process"""

    def __post_init__(self) -> None:
        require(self.world_size >= 1, "dist.world_size", ">= 1", self.world_size)
        require(1 <= self.port <= 65535, "dist.port", "in 1 to 65535", self.port)


@dataclass(kw_only=True, slots=True)
class CropMixConfig:
    enabled: Switch = 0
    """1: CropMix; 0: RandomResizedCrop, one crop of at least 8 % of the image, from the same kernels"""
    scale: float = 0.01
    """Smallest crop area as a share of the image; (scale, 1) is divided into equal bands, one per crop"""
    number: int = 234
    """Crops per image, 1 to 8; of several digits one is sampled per image: 234 is 2, 3 or 4"""
    operation: Literal["mixup", "cutmix", 0, 1] = "mixup"
    """How crops are mixed; as in the authors' code, 0 is mixup and 1 is cutmix"""
    mix_ratio: float = 0.4
    """mixup: with n crops, weights are sampled from Beta(mix_ratio / n, mix_ratio / n)"""
    inter_aug: Switch = 1
    """Permute the colour channels of one operand of each mix"""

    def __post_init__(self) -> None:
        require(0 < self.scale <= 1, "cropmix.scale", "in (0, 1]", self.scale)
        digits = bool(re.fullmatch("[1-8]{1,8}", str(self.number)))
        require(digits, "cropmix.number", "made of the digits 1 to 8", self.number)
        require(0 < self.mix_ratio < math.inf, "cropmix.mix_ratio", "> 0", self.mix_ratio)

    def mix(self) -> dict[str, Any]:
        """Return the decoder's options for these, except the scale; a single crop if CropMix is not enabled."""
        if not self.enabled:
            return {"number": 1}
        mixing = {"operation": self.operation, "mix_ratio": self.mix_ratio, "inter_aug": bool(self.inter_aug)}
        return {"number": self.number, **mixing}


@dataclass(kw_only=True, slots=True)
class Config:
    """All options of a run.

    Example:
        >>> config = parse_config(["--data.train_dataset=t", "--data.val_dataset=v", "--logging.folder=run"])
        >>> config.label
        {'model': 'resnet18', 'augmentation': 'RandomResizedCrop'}
    """

    may_differ = frozenset(
        [
            *("resume", "model.pretrained", "data.train_dataset", "data.val_dataset", "data.num_workers", "data.gpu"),
            *("training.batch_size", "training.global_batch_size", "training.distributed", "training.compile"),
            *("training.eval_only", "logging", "validation", "dist"),
        ]
    )
    """What a resumed run may change, because it does not affect the optimisation. The global batch size may not"""

    model: ModelConfig
    """Network"""
    resolution: ResolutionConfig
    """Side of the training images, by epoch"""
    data: DataConfig
    """Datasets and their loading"""
    cropmix: CropMixConfig
    """Augmentation"""
    lr: LrConfig
    """Learning rate, set at every step"""
    training: TrainingConfig
    """Optimisation"""
    validation: ValidationConfig
    """Evaluation"""
    logging: LoggingConfig
    """Files of the run"""
    dist: DistConfig
    """Processes"""
    resume: str | None = None
    """auto: resume from logging.folder's checkpoint.pt, if it exists; or the path of a checkpoint; null: a new run"""

    def __post_init__(self) -> None:
        if self.training.eval_only and self.resume is None:
            raise ValueError("training.eval_only=1 needs --resume=FILE, a checkpoint or weights to evaluate")

    @property
    def label(self) -> dict[str, str]:
        """The model and the augmentation in short texts, for tables and plots."""
        return {"model": self.model.arch, "augmentation": augmentation(asdict(self))}


def augmentation(options: Mapping[str, Any]) -> str:
    """Describe the augmentation in a few words.

    Args:
        options: Options in sections, as params.json holds them.

    Example:
        >>> cropmix = {"enabled": 1, "number": 234, "operation": 0}
        >>> augmentation({"cropmix": cropmix, "training": {"mixup": 0.2}})
        'CropMix 234 mixup and mixup between images'
    """
    cropmix, training = options["cropmix"], options["training"]
    text = "RandomResizedCrop"
    if cropmix["enabled"]:
        operation = {0: "mixup", 1: "cutmix"}.get(cropmix["operation"], cropmix["operation"])
        text = f"CropMix {cropmix['number']} {operation}"
    policy = {"trivial": "TrivialAugment", "rand": "RandAugment", "jitter": "colour jitter"}
    text += f", {policy[training['augment']]}" if training.get("augment") else ""
    text += f", random erasing {training['random_erasing']:g}" if training.get("random_erasing") else ""
    between = [name for name in ("mixup", "cutmix") if training.get(name)]
    return text + (f" and {' or '.join(between)} between images" if between else "")


def parse_config(arguments: Sequence[str] | None = None, *, prog: str = "train_imagenet.py") -> Config:
    """Parse the options of the trainer (default: the command line's); see `parse_options`."""
    description = "Train an image classifier on .beton files, with CropMix or RandomResizedCrop."
    return parse_options(Config, arguments, prog=prog, description=description)
