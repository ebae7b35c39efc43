"""All that python -m ffcv_cropmix.evaluate measures of one model."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
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

RESOLUTION, RATIO, INTERPOLATION = 224, 224 / 256, "bilinear"  # where neither options nor the weights say
Batches = Iterable[tuple[Tensor, Tensor]]


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
        """Images, uint8 (N, 3, side, side), and labels, int64 (N,), in the file's order.

        Args:
            side: px.
            settings: of them, batch_size and num_workers.
            device: where batches are needed.
            ratio: of the centre's side to the image's shorter side.
            interpolation: bilinear or bicubic.
            numbers: the output of the model for each label; None: labels are outputs.
            with_others: behind each image that of `corruptions.other_rows`: batches are twice as large.
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
        """What is foreground in the images of `loader`."""
        image = self._beton.column("image")
        found = read_boxes(boxes, self.classes, self.labels) if boxes else None
        return Foreground(found, image["height"], image["width"], side, ratio)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _settled(weights: Weights, settings: Settings) -> Weights:
    """The weights, with what the settings say of them."""
    classes = read_classes(settings.classes_of) if settings.classes_of else None
    if settings.classes_of and classes is None:
        raise DataError(f"{settings.classes_of}.json, which names the classes, is missing")
    given: dict[str, Any] = {"mean": settings.mean, "std": settings.std, "classes": classes}
    for name, value in given.items():
        known = getattr(weights, name)
        if value and known and known != value:
            option = "classes_of" if name == "classes" else name
            raise DataError(f"--{option}: {weights.path} says otherwise, {', '.join(map(str, known[:3]))}, ...")
    chosen: dict[str, Any] = {"resolution": settings.resolution, "crop_ratio": settings.crop_ratio}
    chosen |= {"interpolation": settings.interpolation, "flip_tta": settings.flip_tta}
    return replace(weights, **{name: value for name, value in {**given, **chosen}.items() if value is not None})


def _completed(weights: Weights, network: nn.Module) -> Weights:
    """The weights, with the usual evaluation where neither they nor the settings say; that is noted."""
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
        weights.notes.append(f"{weights.path} does not say how its images are evaluated: {named}")
        if published.get("crop_mode", "center") != "center":
            weights.notes.append(f"timm evaluates it with crop_mode {published['crop_mode']}; here it is the centre")
    return replace(weights, **missing)


def measure(checkpoint: Path, data: ValidationSet, settings: Settings) -> dict[str, Any]:
    """Evaluate one checkpoint.

    Returns:
        checkpoint, arch, how images are prepared (resolution, crop_ratio, interpolation, flip_tta, mean, std), and in
        percent, as far as `settings` asks for it: clean, top_5, rms, fgsm, noise, replace, imagenet_a, imagenet_r,
        imagenet_sketch.

    Raises:
        DataError: a file, or what is in it, is at fault.
        ValueError: an option is.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = _settled(read_weights(checkpoint), settings)
    outputs = weights.num_classes or len(weights.classes or data.classes)
    if weights.classes is None and outputs != len(data.classes):
        raise DataError(
            f"{checkpoint} is of {outputs} classes and does not name them, {data.path} has {len(data.classes)}: "
            "--classes_of TRAIN.beton names them"
        )
    numbers = match_classes(data.path, weights.classes, checkpoint, weights.notes.append)
    network = create_with_weights(weights, settings.arch, outputs, entry=settings.entry)
    weights = _completed(weights, network)
    side, ratio, interpolation = weights.resolution, weights.crop_ratio, weights.interpolation
    assert side and ratio and interpolation
    model = NormalizedModel(network).to(device).to(memory_format=torch.channels_last)
    check_resolutions(model, [side])
    for note in weights.notes:
        _say(note)
    load = partial(data.loader, side, settings, device, ratio=ratio, interpolation=interpolation, numbers=numbers)

    def run(name: str, batches: Batches, total: int, on: nn.Module = model, num_classes: int = outputs) -> Evaluation:
        shown = progress(batches, total, f"{checkpoint}, {name}")
        return evaluate(on, shown, num_classes=num_classes, flip_tta=bool(weights.flip_tta))

    shown = ("resolution", "crop_ratio", "interpolation", "flip_tta", "mean", "std")
    results: dict[str, Any] = {"checkpoint": str(checkpoint), "arch": settings.arch or weights.arch}
    results |= {name: getattr(weights, name) for name in shown}
    if {"clean", "rms"} & set(settings.metrics):
        loader = load()
        clean = run("clean", loader, len(loader))
        if "clean" in settings.metrics:
            results |= {"clean": clean.top_1, "top_5": clean.top_5}
        if "rms" in settings.metrics:
            skip = settings.skip_last_bin
            results["rms"] = rms_calibration_error(clean.confidence, clean.correct, skip_last_bin=skip)
    if "fgsm" in settings.metrics:
        loader = load()
        results["fgsm"] = run("fgsm", _attacked(loader, model, settings.eps), len(loader)).top_1
    if {"noise", "replace"} & set(settings.metrics):
        foreground = data.foreground(settings.boxes, side, ratio)
        if "noise" in settings.metrics:
            loader = load()
            results["noise"] = run("noise", _noisy(loader, foreground, settings), len(loader)).top_1
        if "replace" in settings.metrics:
            loader = load(with_others=True)
            results["replace"] = run("replace", _replaced(loader, foreground), len(loader)).top_1
    for name, folder in settings.variants().items():
        variant = open_variant(folder, weights.classes or data.classes, checkpoint if weights.classes else "--data")
        counted = list(range(outputs)) if name == "imagenet_sketch" else variant.classes
        batches = _on(
            device, variant.batches(counted, side, ratio, interpolation, settings.batch_size, settings.num_workers)
        )
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
