"""ImageNet-A, -R and -Sketch: other images of ImageNet's classes, a folder of images for each WordNet id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from ..data.images import to_rgb
from ..data.sources import open_source
from ..errors import DataError


@dataclass(frozen=True)
class Variant:
    """Images of some of the classes that a model knows."""

    files: list[Path]
    labels: np.ndarray
    """(n,) int64, the model's outputs"""
    classes: list[int]
    """Those that are the set's, ascending"""

    def batches(
        self, outputs: Sequence[int], side: int, ratio: float, interpolation: str, batch_size: int, workers: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images, uint8 (N, 3, side, side), and labels, int64 (N,), as places in `outputs`, which ascend.

        The shorter side is resized to side / ratio, the centre cut out: with 224 px and 224/256, as the authors of
        these sets do it.

        Raises:
            DataError: an image cannot be read.
        """
        resize = transforms.Resize(round(side / ratio), transforms.InterpolationMode(interpolation))
        load = _loading(transforms.Compose([resize, transforms.CenterCrop(side)]))
        labels = torch.from_numpy(np.searchsorted(outputs, self.labels))
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(self.files), batch_size):
                images = list(pool.map(load, self.files[start : start + batch_size]))
                yield torch.stack(images), labels[start : start + batch_size]


def _loading(transform: Callable[[Image.Image], Image.Image]) -> Callable[[Path], Tensor]:
    to_tensor = transforms.PILToTensor()

    def load(path: Path) -> Tensor:
        try:
            with Image.open(path) as image:
                return to_tensor(transform(to_rgb(image)))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None

    return load


def open_variant(folder: Path, classes: Sequence[str], where: object = "--data") -> Variant:
    """List the images of a set.

    Args:
        folder: with a folder for each class, named as in `classes`.
        classes: WordNet ids by output of the model.
        where: what names those, for messages.

    Raises:
        DataError: it is not there, or a folder is no class of the model.
    """
    source = open_source("imagefolder", folder, "test")
    number = {name: output for output, name in enumerate(classes)}
    for name in source.classes:
        if name not in number:
            known = ", ".join(classes[:3])
            raise DataError(f"{folder / name}: {name} is none of the {len(classes)} classes of {where} ({known}, ...)")
    if len(source.classes) < 2:
        raise DataError(f"{folder} has the images of one class only")
    outputs = np.array([number[name] for name in source.classes])
    return Variant([Path(str(path)) for path in source.images], outputs[source.labels], sorted(outputs.tolist()))


class Sliced(nn.Module):
    """A model that answers with some of its classes only: what it says of the others does not count."""

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.model, self.classes = model, list(classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.classes]
