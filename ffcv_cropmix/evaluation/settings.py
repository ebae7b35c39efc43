"""The metrics of `ffcv-cropmix evaluate` and their settings. Imports neither torch nor FFCV.

A metric is an entry of `METRICS` here, with its title in the table, and a function in `suite.MEASURES`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..options import option, require

METRICS = {"clean": "Clean", "rms": "RMS cal.", "fgsm": "FGSM", "replace": "Replace", "noise": "Noise"}
"""Metrics on the validation set, and their titles in the table"""
VARIANTS = {"imagenet_a": "IN-A", "imagenet_r": "IN-R", "imagenet_sketch": "IN-S"}
"""Other test sets, likewise"""


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(kw_only=True)
class Settings:
    """Which metrics to measure, and how.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> Settings(metrics=["clean", "rms"], batch_size=128).noise_std
        0.1
    """

    arch: str | None = None
    """Architecture: a torchvision name, or timm/NAME; default: from the weights"""
    entry: str | None = None
    """Entry of a checkpoint with several networks, such as state_dict_ema"""
    classes_of: Path | None = option(None, metavar="TRAIN.beton")
    """A file with the class names of the outputs, for weights without class names"""
    metrics: list[str] = option(list(METRICS), choices=METRICS, empty=True, metavar="METRIC")
    """Metrics on --data, of {choices}"""
    imagenet_a: Path | None = option(None, metavar="DIR")
    """ImageNet-A: a folder with a folder of images for each WordNet id"""
    imagenet_r: Path | None = option(None, metavar="DIR")
    """ImageNet-R, likewise"""
    imagenet_sketch: Path | None = option(None, metavar="DIR")
    """ImageNet-Sketch, likewise"""
    resolution: int | None = option(None, metavar="PX")
    """Side of the images; default: from the weights, else 224"""
    crop_ratio: float | None = None
    """Side of the central crop as a share of the shorter side; default: from the weights, else 0.875"""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How images are resized; default: from the weights, else bilinear"""
    flip_tta: bool | None = None
    """Average the outputs for each image and its mirror image; default: from the weights, else no"""
    mean: list[float] | None = option(None, count=3, metavar=("R", "G", "B"))
    """Mean of the normalisation, for pixels in [0, 1]; default: from the weights, else ImageNet's"""
    std: list[float] | None = option(None, count=3, metavar=("R", "G", "B"))
    """Standard deviation of the normalisation, likewise"""
    eps: float = 0.007
    """Step of FGSM, for pixels in [0, 1]"""
    noise_std: float = 0.1
    """Standard deviation of the noise, for pixels in [0, 1]"""
    seed: int = 0
    """Seed of the noise"""
    boxes: Path | None = option(None, metavar="DIR")
    """Annotations ILSVRC2012_val_*.xml with the foreground for noise and replace; default: the central half"""
    skip_last_bin: bool = False
    """Leave the most confident bin out of the calibration error, as the code behind published numbers does"""
    batch_size: int = 64
    """Images at a time"""
    num_workers: int = field(default_factory=_cores)
    """Threads"""

    def __post_init__(self) -> None:
        require(0 <= self.eps <= 1, "eps", "in [0, 1]", self.eps)
        require(0 <= self.noise_std <= 1, "noise_std", "in [0, 1]", self.noise_std)
        require(0 <= self.seed < 2**64, "seed", "in [0, 2**64)", self.seed)
        require(self.resolution is None or self.resolution >= 1, "resolution", ">= 1 px", self.resolution)
        require(self.crop_ratio is None or 0 < self.crop_ratio <= 1, "crop_ratio", "in (0, 1]", self.crop_ratio)
        require(min(self.std or [1]) > 0, "std", "> 0", self.std)
        require((self.mean is None) == (self.std is None), "mean", "given together with std", self.mean)
        require(self.batch_size >= 1, "batch_size", ">= 1", self.batch_size)
        cores = _cores()
        require(1 <= self.num_workers <= cores, "num_workers", f"in 1 to {cores}, the cores", self.num_workers)

    def variants(self) -> dict[str, Path]:
        """Return the folders of the other test sets that are given, by their names in `VARIANTS`."""
        return {name: folder for name in VARIANTS if (folder := getattr(self, name))}
