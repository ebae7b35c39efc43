"""Measure one model: what `ffcv-cropmix evaluate` runs for each checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.datasets import match_classes, open_labelled, read_classes
from ..decoders import CenterCropRGBImageDecoder
from ..errors import DataError
from ..loader import Loader
from ..progress import progress
from ..training.loaders import pipelines
from ..training.models import NormalizedModel, check_resolutions
from .accuracy import Evaluation, evaluate
from .calibration import rms_calibration_error
from .corruptions import Foreground, add_noise, other_rows, read_boxes, replace_background
from .fgsm import fgsm
from .imagenet_variants import Sliced, open_variant
from .settings import Settings
from .weights import Weights, create_with_weights, read_weights

RESOLUTION, RATIO, INTERPOLATION = 224, 224 / 256, "bilinear"  # if neither the settings nor the weights specify them
Batches = Iterable[tuple[Tensor, Tensor]]


class ValidationSet:
    """A .beton file with the fields image and label, and a sidecar that names the classes.

    Args:
        path: The file.

    Raises:
        DataError: The file is broken, lacks a field, or has no sidecar.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._beton = path, open_labelled(path)
        if self._beton.sidecar is None:
            raise DataError(f"{path}.json, which names the classes, is missing: write_dataset.py writes both")
        self.classes = self._beton.sidecar.classes
        self.labels = self._beton.column("label")
        wrong = self.labels[(self.labels < 0) | (self.labels >= len(self.classes))]
        if len(wrong):
            raise DataError(f"{path} has a label {wrong[0]}, but its sidecar names {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.labels)

    def loader(
        self,
        side: int,
        settings: Settings,
        device: torch.device,
        *,
        ratio: float = RATIO,
        interpolation: Any = INTERPOLATION,
        numbers: Sequence[int] | None = None,
        with_others: bool = False,
    ) -> Loader:
        """Create a loader of centre crops, uint8 (N, 3, side, side), and labels, int64 (N,), in file order.

        Args:
            side: Side of the images, px.
            settings: Settings; of these, batch_size and num_workers are used.
            device: Device of the batches.
            ratio: Side of the central crop as a share of the shorter side.
            interpolation: bilinear or bicubic.
            numbers: Output of the model for each label; None: labels are outputs.
            with_others: Follow each image by its `corruptions.other_rows`; batches are twice as large.
        """
        rows = np.arange(len(self))
        if with_others:
            rows = np.stack([rows, other_rows(rows, len(rows))], 1).reshape(-1)
        decoder = CenterCropRGBImageDecoder((side, side), ratio, interpolation=interpolation)
        return Loader(
            self.path,
            settings.batch_size * (2 if with_others else 1),
            settings.num_workers,
            indices=rows.tolist(),
            drop_last=False,
            pipelines=pipelines(decoder, device, numbers),
        )

    def foreground(self, boxes: Path | None, side: int, ratio: float = RATIO) -> Foreground:
        """Return the foreground of the images of `loader`."""
        image = self._beton.column("image")
        found = read_boxes(boxes, self.classes, self.labels) if boxes else None
        return Foreground(found, image["height"], image["width"], side, ratio)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _settled(weights: Weights, settings: Settings) -> Weights:
    """Override the weights' facts by the settings."""
    classes = read_classes(settings.classes_of) if settings.classes_of else None
    if settings.classes_of and classes is None:
        raise DataError(f"{settings.classes_of}.json, which names the classes, is missing")
    given: dict[str, Any] = {"mean": settings.mean, "std": settings.std, "classes": classes}
    for name, value in given.items():
        known = getattr(weights, name)
        if value and known and known != value:
            option = "classes_of" if name == "classes" else name
            raise DataError(f"--{option}: {weights.path} says {', '.join(map(str, known[:3]))}, ...")
    chosen: dict[str, Any] = {"resolution": settings.resolution, "crop_ratio": settings.crop_ratio}
    chosen |= {"interpolation": settings.interpolation, "flip_tta": settings.flip_tta}
    return replace(weights, **{name: value for name, value in {**given, **chosen}.items() if value is not None})


def _completed(weights: Weights, network: nn.Module) -> Weights:
    """Add the usual evaluation where neither the weights nor the settings specify it, and note that."""
    usual: dict[str, Any] = {"resolution": RESOLUTION, "crop_ratio": RATIO, "interpolation": INTERPOLATION}
    published: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}  # timm's
    if published:
        usual |= {"resolution": published["input_size"][-1], "crop_ratio": published["crop_pct"]}
        usual |= {"interpolation": "bicubic"} if published["interpolation"] == "bicubic" else {}
    facts = getattr(network, "description", {})
    usual |= {"mean": facts["mean"], "std": facts["std"], "flip_tta": False}
    missing = {name: value for name, value in usual.items() if getattr(weights, name) is None}
    if missing.keys() - {"flip_tta", "interpolation"}:
        named = ", ".join(f"{name} {value}" for name, value in missing.items())
        weights.notes.append(f"{weights.path} does not say how its images are evaluated; assumed: {named}")
        if published.get("crop_mode", "center") != "center":
            weights.notes.append(f"timm evaluates it with crop_mode {published['crop_mode']}; this program uses center")
    return replace(weights, **missing)


class Subject:
    """A model under test, with the validation set and the settings. `MEASURES` measures it."""

    def __init__(self, checkpoint: Path, data: ValidationSet, settings: Settings) -> None:
        self.checkpoint, self.data, self.settings = checkpoint, data, settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        weights = _settled(read_weights(checkpoint), settings)
        self.outputs = weights.num_classes or len(weights.classes or data.classes)
        if weights.classes is None and self.outputs != len(data.classes):
            raise DataError(
                f"{checkpoint} has {self.outputs} classes and does not name them, {data.path} has "
                f"{len(data.classes)}: name them with --classes_of TRAIN.beton"
            )
        numbers = match_classes(data.path, weights.classes, checkpoint, weights.notes.append)
        network = create_with_weights(weights, settings.arch, self.outputs, entry=settings.entry)
        self.weights = weights = _completed(weights, network)
        assert weights.resolution and weights.crop_ratio and weights.interpolation
        self.side, self.ratio, self.interpolation = weights.resolution, weights.crop_ratio, weights.interpolation
        self.model = NormalizedModel(network).to(self.device).to(memory_format=torch.channels_last)
        check_resolutions(self.model, [self.side])
        for note in weights.notes:
            _say(note)
        self.load = partial(
            data.loader,
            self.side,
            settings,
            self.device,
            ratio=self.ratio,
            interpolation=self.interpolation,
            numbers=numbers,
        )
        """Create a loader of the validation set; see `ValidationSet.loader`"""

    def evaluate(
        self, name: str, batches: Batches, total: int, model: nn.Module | None = None, num_classes: int | None = None
    ) -> Evaluation:
        """Evaluate the model on batches, with a progress bar of that name.

        Args:
            name: Name of the metric.
            batches: Images, uint8 or float (N, 3, side, side) in 0 to 255, and labels, int64 (N,).
            total: Number of batches.
            model: Model to evaluate instead.
            num_classes: Its number of outputs.
        """
        batches = progress(batches, total, f"{self.checkpoint}, {name}")
        flip_tta = bool(self.weights.flip_tta)
        return evaluate(model or self.model, batches, num_classes=num_classes or self.outputs, flip_tta=flip_tta)

    @cached_property
    def clean(self) -> Evaluation:
        """The evaluation on the validation set as it is."""
        loader = self.load()
        return self.evaluate("clean", loader, len(loader))

    @cached_property
    def foreground(self) -> Foreground:
        """The foreground of the images of the validation set."""
        return self.data.foreground(self.settings.boxes, self.side, self.ratio)


def _clean(subject: Subject) -> dict[str, float]:
    return {"clean": subject.clean.top_1, "top_5": subject.clean.top_5}


def _rms(subject: Subject) -> dict[str, float]:
    clean, skip = subject.clean, subject.settings.skip_last_bin
    return {"rms": rms_calibration_error(clean.confidence, clean.correct, skip_last_bin=skip)}


def _fgsm(subject: Subject) -> dict[str, float]:
    loader = subject.load()
    attacked = _attacked(loader, subject.model, subject.settings.eps)
    return {"fgsm": subject.evaluate("fgsm", attacked, len(loader)).top_1}


def _noise(subject: Subject) -> dict[str, float]:
    loader = subject.load()
    noisy = _noisy(loader, subject.foreground, subject.settings)
    return {"noise": subject.evaluate("noise", noisy, len(loader)).top_1}


def _replace(subject: Subject) -> dict[str, float]:
    loader = subject.load(with_others=True)
    replaced = _replaced(loader, subject.foreground)
    return {"replace": subject.evaluate("replace", replaced, len(loader)).top_1}


MEASURES: dict[str, Callable[[Subject], dict[str, float]]] = {
    "clean": _clean,
    "rms": _rms,
    "fgsm": _fgsm,
    "noise": _noise,
    "replace": _replace,
}
"""The function of each metric of `settings.METRICS`: a subject to named results, percent"""


def _variant(subject: Subject, name: str, folder: Path) -> float:
    """Measure top-1, percent, on another test set: a folder of images for each class."""
    weights, settings = subject.weights, subject.settings
    where = subject.checkpoint if weights.classes else "--data"
    variant = open_variant(folder, weights.classes or subject.data.classes, where)
    counted = list(range(subject.outputs)) if name == "imagenet_sketch" else variant.classes
    batches = variant.batches(
        counted, subject.side, subject.ratio, subject.interpolation, settings.batch_size, settings.num_workers
    )
    total = -(-len(variant.files) // settings.batch_size)
    model = Sliced(subject.model, counted)
    return subject.evaluate(name, _on(subject.device, batches), total, model, len(counted)).top_1


def measure(checkpoint: Path, data: ValidationSet, settings: Settings) -> dict[str, Any]:
    """Measure one checkpoint.

    Args:
        checkpoint: File of weights; see `weights.read_weights`.
        data: The validation set.
        settings: What to measure, and how.

    Returns:
        checkpoint, arch, the preparation of images (resolution, crop_ratio, interpolation, flip_tta, mean, std), and
        the results, percent: those of `MEASURES` that `settings.metrics` names, and of other test sets if given.

    Raises:
        DataError: A file is missing or broken, or does not fit the others.
        ValueError: A setting is wrong for this checkpoint.
    """
    subject = Subject(checkpoint, data, settings)
    results: dict[str, Any] = {"checkpoint": str(checkpoint), "arch": settings.arch or subject.weights.arch}
    for name in ("resolution", "crop_ratio", "interpolation", "flip_tta", "mean", "std"):
        results[name] = getattr(subject.weights, name)
    for name, measure_one in MEASURES.items():
        if name in settings.metrics:
            results |= measure_one(subject)
    for name, folder in settings.variants().items():
        results[name] = _variant(subject, name, folder)
    return results


# The model takes levels of 0 to 255, as the loader delivers them; attack and corruptions work in [0, 1].


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
