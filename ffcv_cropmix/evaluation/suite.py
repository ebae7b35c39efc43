"""All that python -m ffcv_cropmix.evaluate measures of one model."""

from __future__ import annotations

from .. import patches  # noqa: F401

# isort: split
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DataError
from ..loader import Loader
from ..operations import CenterCropRGBImageDecoder
from ..progress import progress
from ..training.datasets import open_labelled
from ..training.loaders import pipelines
from ..training.models import NormalizedModel, check_resolutions
from .accuracy import Evaluation, evaluate
from .calibration import rms_calibration_error
from .corruptions import Foreground, add_noise, other_rows, read_boxes, replace_background
from .fgsm import fgsm
from .imagenet_variants import Sliced, open_variant
from .weights import create_with_weights, read_weights

RATIO = 224 / 256  # of the centre that models are evaluated on to the shorter side
RESOLUTION = 224  # px, where neither options nor the run's params.json say
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(kw_only=True)
class Settings:
    """What is measured, and how."""

    metrics: list[str]
    """Of METRICS"""
    variants: dict[str, Path]
    """imagenet_a, imagenet_r, imagenet_sketch: their folders"""
    arch: str | None = None
    """torchvision's name; None: as the checkpoint, or params.json beside it, says"""
    resolution: int | None = None
    """Side of the images, px; None: as params.json beside the checkpoint says, else 224"""
    flip_tta: bool = False
    """Average the outputs for each image and its mirror image"""
    eps: float = 0.007
    """Step of FGSM"""
    noise_std: float = 0.1
    """Standard deviation of the noise"""
    seed: int = 0
    """Of the noise"""
    boxes: Path | None = None
    """Folder of ImageNet's annotations: what is foreground; None: the central half"""
    skip_last_bin: bool = False
    """Leave the most confident bin out of the calibration error"""
    batch_size: int = 64
    """Images at a time"""
    num_workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Threads that decode"""


class ValidationSet:
    """A .beton file with the fields image and label.

    Raises:
        DataError: it is not sound, lacks a field, or has no sidecar that names its classes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._beton = path, open_labelled(path)
        if self._beton.sidecar is None:
            raise DataError(f"{path}.json, which names the classes, is missing: write_dataset.py writes both")
        self.classes = self._beton.sidecar.classes
        self.labels = self._beton.column("label")
        wrong = self.labels[(self.labels < 0) | (self.labels >= len(self.classes))]
        if len(wrong):
            raise DataError(f"{path} has a label {wrong[0]}, its sidecar {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.labels)

    def loader(self, side: int, settings: Settings, device: torch.device, *, with_others: bool = False) -> Loader:
        """Images, uint8 (N, 3, side, side), and labels, int64 (N,), in the file's order.

        Args:
            with_others: behind each image that of `corruptions.other_rows`: batches are twice as large.
        """
        rows = np.arange(len(self))
        if with_others:
            rows = np.stack([rows, other_rows(rows, len(rows))], 1).reshape(-1)
        return Loader(
            self.path,
            settings.batch_size * (2 if with_others else 1),
            settings.num_workers,
            indices=rows.tolist(),
            drop_last=False,
            pipelines=pipelines(CenterCropRGBImageDecoder((side, side), RATIO), device),
        )

    def foreground(self, boxes: Path | None, side: int) -> Foreground:
        """What is foreground in the images of `loader`."""
        image = self._beton.column("image")
        found = read_boxes(boxes, self.classes, self.labels) if boxes else None
        return Foreground(found, image["height"], image["width"], side, RATIO)


def measure(checkpoint: Path, data: ValidationSet, settings: Settings) -> dict[str, Any]:
    """Evaluate one checkpoint.

    Returns:
        checkpoint, arch, resolution, and in percent, as far as `settings` asks for it: clean, top_5, rms, fgsm, noise,
        replace, imagenet_a, imagenet_r, imagenet_sketch.

    Raises:
        DataError: a file, or what is in it, is at fault.
        ValueError: an option is.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = read_weights(checkpoint)
    arch = settings.arch or weights.arch
    if arch is None:
        raise ValueError(f"--arch NAME is needed: neither {checkpoint} nor params.json beside it has it")
    side = settings.resolution or weights.resolution or RESOLUTION
    outputs = weights.num_classes or len(data.classes)
    if outputs < len(data.classes):
        raise DataError(f"{checkpoint} is of {outputs} classes, {data.path} of {len(data.classes)}")
    network = create_with_weights(weights, arch, outputs)
    model = NormalizedModel(network).to(device).to(memory_format=torch.channels_last)
    check_resolutions(model, [side])

    def run(name: str, batches: Batches, total: int, on: nn.Module = model, num_classes: int = outputs) -> Evaluation:
        shown = progress(batches, total, f"{checkpoint}, {name}")
        return evaluate(on, shown, num_classes=num_classes, flip_tta=settings.flip_tta)

    results: dict[str, Any] = {"checkpoint": str(checkpoint), "arch": arch, "resolution": side}
    if {"clean", "rms"} & set(settings.metrics):
        loader = data.loader(side, settings, device)
        clean = run("clean", loader, len(loader))
        if "clean" in settings.metrics:
            results |= {"clean": clean.top_1, "top_5": clean.top_5}
        if "rms" in settings.metrics:
            skip = settings.skip_last_bin
            results["rms"] = rms_calibration_error(clean.confidence, clean.correct, skip_last_bin=skip)
    if "fgsm" in settings.metrics:
        loader = data.loader(side, settings, device)
        results["fgsm"] = run("fgsm", _attacked(loader, model, settings.eps), len(loader)).top_1
    if {"noise", "replace"} & set(settings.metrics):
        foreground = data.foreground(settings.boxes, side)
        if "noise" in settings.metrics:
            loader = data.loader(side, settings, device)
            results["noise"] = run("noise", _noisy(loader, foreground, settings), len(loader)).top_1
        if "replace" in settings.metrics:
            loader = data.loader(side, settings, device, with_others=True)
            results["replace"] = run("replace", _replaced(loader, foreground), len(loader)).top_1
    for name, folder in settings.variants.items():
        variant = open_variant(folder, data.classes)
        counted = list(range(outputs)) if name == "imagenet_sketch" else variant.classes
        batches = _on(device, variant.batches(counted, side, RATIO, settings.batch_size, settings.num_workers))
        total = -(-len(variant.files) // settings.batch_size)
        results[name] = run(name, batches, total, Sliced(model, counted), len(counted)).top_1
    return results


# The model takes 0 to 255, as the loader delivers images; attack and corruptions work in [0, 1].


def _attacked(batches: Batches, model: nn.Module, eps: float) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield 255 * fgsm(lambda images: model(255 * images), images / 255, labels, eps), labels


def _noisy(batches: Batches, foreground: Foreground, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    first = 0
    for images, labels in batches:
        masks = foreground.masks(first, len(images)).to(images.device)
        yield 255 * add_noise(images / 255, masks, first, std=settings.noise_std, seed=settings.seed), labels
        first += len(images)


def _replaced(batches: Batches, foreground: Foreground) -> Iterator[tuple[Tensor, Tensor]]:
    first = 0
    for both, labels in batches:
        images, others = both[0::2], both[1::2]
        masks = foreground.masks(first, len(images)).to(images.device)
        yield replace_background(images, others, masks), labels[0::2]
        first += len(images)


def _on(device: torch.device, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield images.to(device), labels.to(device)
