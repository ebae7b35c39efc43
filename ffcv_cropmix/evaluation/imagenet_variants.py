"""ImageNet-A, -R and -Sketch: other test sets, with one folder of images per WordNet id."""

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
    """A test set with some of the classes of a model."""

    files: list[Path]
    labels: np.ndarray
    """int64 (n,): the model's outputs"""
    classes: list[int]
    """The model's outputs for the classes of the set, ascending"""

    def batches(
        self, outputs: Sequence[int], side: int, ratio: float, interpolation: str, batch_size: int, workers: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over images, uint8 (N, 3, side, side), and labels, int64 (N,).

        The shorter side is resized to side / ratio, and the centre is cropped. With 224 px and 224/256, this is what
        the authors of these sets do.

        Args:
            outputs: Ascending outputs of the model that count. Labels are positions in this list.
            side: Side of the images, px.
            ratio: Side of the crop as a share of the resized shorter side.
            interpolation: bilinear or bicubic.
            batch_size: Images per batch.
            workers: Number of threads.

        Raises:
            DataError: An image cannot be read.
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
    """List the images of a test set.

    Args:
        folder: Contains one folder of images per class, named as in `classes`.
        classes: WordNet ids by output of the model.
        where: Source of those ids, for messages.

    Raises:
        DataError: The folder is missing, or contains a class that the model lacks.
    """
    source = open_source("imagefolder", folder, "test")
    number = {name: output for output, name in enumerate(classes)}
    for name in source.classes:
        if name not in number:
            known = ", ".join(classes[:3])
            raise DataError(f"{folder / name}: {name} is none of the {len(classes)} classes of {where} ({known}, ...)")
    if len(source.classes) < 2:
        raise DataError(f"{folder} has images of one class only")
    outputs = np.array([number[name] for name in source.classes])
    return Variant([Path(str(path)) for path in source.images], outputs[source.labels], sorted(outputs.tolist()))


class Sliced(nn.Module):
    """A model restricted to some of its outputs.

    Example:
        >>> Sliced(nn.Identity(), [0, 2])(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 3.]])
    """

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.model, self.classes = model, list(classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.classes]
