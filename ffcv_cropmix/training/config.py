"""The options of train_imagenet.py: one dataclass per section, read from YAML and the command line.

Sections and keys are those of ffcv-imagenet, so that its configuration files load, plus `cropmix`. Imports neither
torch nor FFCV: a wrong option is answered at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..options import Switch, parse_options, require


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    arch: str = "resnet18"
    """Name of a torchvision classification architecture; with timm installed, timm/NAME for one of its own"""
    pretrained: Switch = 0
    """Start from torchvision's ImageNet weights (downloaded); a head of another size starts afresh"""
    num_classes: int | None = None
    """Outputs of the model, at least 2; null: as many as the training set's sidecar names, else 1000"""

    cifar_stem: Switch = 0
    """A ResNet for images of 32 px: its first convolution 3 x 3 with stride 1, and no pooling after it"""

    def __post_init__(self) -> None:
        require(self.num_classes is None or self.num_classes >= 2, "model.num_classes", ">= 2", self.num_classes)


@dataclass(kw_only=True, slots=True)
class ResolutionConfig:
    min_res: int = 160
    """Side of the training images until epoch start_ramp, px"""
    max_res: int = 160
    """Side of the training images from epoch end_ramp, px; in between, the nearest multiple of 32 on the line"""
    start_ramp: int = 0
    """Epoch after which the side begins to grow"""
    end_ramp: int = 0
    """Epoch from which the side is max_res"""

    def __post_init__(self) -> None:
        require(self.min_res >= 1, "resolution.min_res", ">= 1 px", self.min_res)
        require(self.max_res >= self.min_res, "resolution.max_res", f">= min_res = {self.min_res} px", self.max_res)
        require(self.start_ramp >= 0, "resolution.start_ramp", ">= 0", self.start_ramp)
        rule = f">= start_ramp = {self.start_ramp}"
        require(self.end_ramp >= self.start_ramp, "resolution.end_ramp", rule, self.end_ramp)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    train_dataset: str
    """Training set, a .beton file with the fields image and label"""
    val_dataset: str
    """Validation set, likewise"""
    num_workers: int | None = None
    """Threads that decode and augment; null, or more than the process may use: all its cores"""
    in_memory: Switch = 1
    """1: the files fit into the operating system's cache, order is fully random; 0: read page by page, quasi-random"""
    gpu: int = 0
    """Index of the GPU; without CUDA the run is on the CPU"""
    flip_probability: float = 0.5
    """Chance that a training image is mirrored left to right; 0 where that changes the class (digits, text)"""

    def __post_init__(self) -> None:
        workers = self.num_workers
        require(workers is None or workers >= 1, "data.num_workers", ">= 1", workers)
        require(self.gpu >= 0, "data.gpu", ">= 0", self.gpu)
        require(0 <= self.flip_probability <= 1, "data.flip_probability", "in [0, 1]", self.flip_probability)


@dataclass(kw_only=True, slots=True)
class LrConfig:
    lr: float = 0.5
    """Peak learning rate, for the images of a step, or for lr.reference_batch_size"""
    reference_batch_size: int | None = None
    """Images a step that lr.lr is for: it is multiplied by the images of a step / this; null: it is not"""
    lr_schedule_type: Literal["cyclic", "step"] = "cyclic"
    """cyclic: linear up to lr_peak_epoch, linear to 0 at the end; step: times step_ratio every step_length epochs, in a
    line over the epoch before, and to 0 over the last epoch, as in ffcv-imagenet"""
    lr_peak_epoch: float = 2
    """cyclic: epochs until the peak; beyond the run it moves to the middle"""
    step_ratio: float = 0.1
    """step: factor of each step"""
    step_length: int = 30
    """step: epochs between steps"""

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
    """The run's own folder, made if missing: log, params.json, checkpoint.pt, final_weights.pt, curves.png"""
    log_level: int = 1
    """0: evaluate after the last epoch only; 1: after every epoch"""
    tensorboard: Switch = 1
    """Write the log for TensorBoard as well"""

    def __post_init__(self) -> None:
        require(self.log_level >= 0, "logging.log_level", ">= 0", self.log_level)


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    batch_size: int = 512
    """Images a batch"""
    resolution: int = 224
    """Side of the validation images, px"""
    crop_ratio: float = 224 / 256
    """They are the central square of this share of the shorter side, resized; 1: all of it"""
    lr_tta: Switch = 1
    """Average the outputs for each image and its mirror image"""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "validation.batch_size", ">= 1", self.batch_size)
        require(self.resolution >= 1, "validation.resolution", ">= 1 px", self.resolution)
        require(0 < self.crop_ratio <= 1, "validation.crop_ratio", "in (0, 1]", self.crop_ratio)


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    batch_size: int = 512
    """Images a step in each process; with global_batch_size, at most so many at once"""
    global_batch_size: int | None = None
    """Images a step of all processes together, in several parts where batch_size is smaller; null: batch_size each"""
    optimizer: Literal["sgd"] = "sgd"
    """SGD with momentum, not Nesterov's"""
    momentum: float = 0.9
    """Momentum"""
    weight_decay: float = 4e-5
    """L2 penalty; not on normalisation layers, biases and what timm exempts (tokens, positions, scales), see bn_wd"""
    bn_wd: Switch = 0
    """Weight decay on all parameters"""
    epochs: int = 30
    """Passes over the training set"""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: binary cross-entropy, summed over the classes"""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes"""
    mixup: float = 0
    """Mix images of a batch with others, and their labels: alpha of torchvision's MixUp; 0: off"""
    cutmix: float = 0
    """Likewise, alpha of torchvision's CutMix; with both, one of them is drawn for each batch"""
    ema_decay: float = 0
    """Decay a step of an average of the weights, which is evaluated and kept; 0: off"""
    precision: Literal["bf16", "fp16", "fp32"] | None = None
    """fp16: with scaled losses; null: bf16 on a GPU, fp32 on the CPU"""
    compile: Switch = 0
    """Compile the model with torch.compile, anew for each resolution"""
    sync_bn: Switch = 0
    """Batch normalisation over all processes; on GPUs only"""
    distributed: Switch = 0
    """Train in dist.world_size processes on this machine; torchrun does the same, on many, without it"""
    use_blurpool: Switch = 0
    """Blur before strided convolutions of at least 16 input channels"""
    eval_only: Switch = 0
    """Evaluate the checkpoint or the weights that `resume` names, and do not train"""
    seed: int = 0
    """Of initial weights, order and augmentation, 0 to 2**32 - 1"""

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
        require(0 <= self.ema_decay < 1, "training.ema_decay", "in [0, 1)", self.ema_decay)
        require(0 <= self.seed < 2**32, "training.seed", "in [0, 2**32)", self.seed)


@dataclass(kw_only=True, slots=True)
class DistConfig:
    world_size: int = 1
    """Processes, one for each GPU; counts with training.distributed only"""
    address: str = "localhost"
    """Host of the first process"""
    port: int = 12355
    """Port of the first process"""

    def __post_init__(self) -> None:
        require(self.world_size >= 1, "dist.world_size", ">= 1", self.world_size)
        require(1 <= self.port <= 65535, "dist.port", "in 1 to 65535", self.port)


@dataclass(kw_only=True, slots=True)
class CropMixConfig:
    enabled: Switch = 0
    """1: CropMix as below; 0: RandomResizedCrop, one crop of 8 % of the image or more, on the same kernels"""
    scale: float = 0.01
    """Smallest crop area as a share of the image's; (scale, 1) is cut into as many equal bands as there are crops"""
    number: int = 234
    """Crops an image, 1 to 8; several digits: drawn from per image, 234 is 2, 3 or 4"""
    operation: Literal["mixup", "cutmix", 0, 1] = "mixup"
    """How two crops are mixed; the authors write 0 for mixup and 1 for cutmix"""
    mix_ratio: float = 0.4
    """mixup: the weight of n crops is drawn from Beta(mix_ratio / n, mix_ratio / n)"""
    inter_aug: Switch = 1
    """Permute the colour channels of one operand of each mix"""

    def __post_init__(self) -> None:
        require(0 < self.scale <= 1, "cropmix.scale", "in (0, 1]", self.scale)
        digits = bool(re.fullmatch("[1-8]{1,8}", str(self.number)))
        require(digits, "cropmix.number", "made of the digits 1 to 8", self.number)
        require(0 < self.mix_ratio < math.inf, "cropmix.mix_ratio", "> 0", self.mix_ratio)

    def mix(self) -> dict[str, Any]:
        """What the decoder takes of these, beside the scale: one crop, if not enabled."""
        if not self.enabled:
            return {"number": 1}
        mixing = {"operation": self.operation, "mix_ratio": self.mix_ratio, "inter_aug": bool(self.inter_aug)}
        return {"number": self.number, **mixing}


@dataclass(kw_only=True, slots=True)
class Config:
    """Everything that a run depends on."""

    model: ModelConfig
    """The network"""
    resolution: ResolutionConfig
    """Side of the training images over the epochs"""
    data: DataConfig
    """Where images come from"""
    cropmix: CropMixConfig
    """The augmentation"""
    lr: LrConfig
    """Learning rate, set anew for each step"""
    training: TrainingConfig
    """Optimisation"""
    validation: ValidationConfig
    """Evaluation"""
    logging: LoggingConfig
    """What the run leaves behind"""
    dist: DistConfig
    """Several processes"""
    resume: str | None = None
    """auto: go on from logging.folder's checkpoint.pt, if there is one; or a checkpoint's path; null: a new run"""

    def __post_init__(self) -> None:
        if self.training.eval_only and self.resume is None:
            raise ValueError("training.eval_only=1 needs what to evaluate: --resume=FILE, a checkpoint or weights")


def augmentation(options: Mapping[str, Any]) -> str:
    """In a few words, from what params.json holds: what happens to an image, and to a batch."""
    cropmix, training = options["cropmix"], options["training"]
    text = "RandomResizedCrop"
    if cropmix["enabled"]:
        operation = {0: "mixup", 1: "cutmix"}.get(cropmix["operation"], cropmix["operation"])
        text = f"CropMix {cropmix['number']} {operation}"
    between = [name for name in ("mixup", "cutmix") if training.get(name)]
    return text + (f" and {' or '.join(between)} between images" if between else "")


MAY_DIFFER = frozenset(
    [
        *("resume", "model.pretrained", "data.train_dataset", "data.val_dataset", "data.num_workers", "data.gpu"),
        *("training.batch_size", "training.global_batch_size", "training.distributed", "training.compile"),
        *("training.eval_only", "logging", "validation", "dist"),
    ]
)
"""Not a matter of what is optimised, and how: a run may go on with others. (Images a step are compared as such.)"""


def parse_config(arguments: Sequence[str] | None = None) -> Config:
    """The options of train_imagenet.py (default: the command line's), see `parse_options`."""
    description = "Train an image classifier on .beton files, with CropMix or RandomResizedCrop."
    return parse_options(Config, arguments, prog="train_imagenet.py", description=description)
