"""Image sets that can be converted. All their samples are listed; the images are opened by the workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from .images import Source

_DIGITS_SIDE = 64  # px; scikit-learn's are 8 x 8
_DIGITS_SEED = 0


def _imagefolder(data_dir: Path, split: str) -> Source:
    """Torchvision's ImageFolder, a folder a class, in data_dir/split if data_dir has splits, else in data_dir.

    A split is a folder of folders: CIFAR-100 has a class "train".
    """
    from torchvision.datasets import ImageFolder

    try:
        splits = [name for name in {split, "train", "val", "test"} if next((data_dir / name).glob("*/"), None)]
        if splits and split not in splits:
            raise DataError(f"{data_dir} has no folder {split}, it has {' and '.join(sorted(splits))}: give a --split")
        folder = data_dir / split if splits else data_dir
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(f"{folder} is not a folder of folders with images, one for each class: {error}") from None
    except OSError as error:
        raise DataError(f"{data_dir} cannot be read: {error}") from None
    return Source(found.classes, np.array(found.targets, np.int64), [Path(path) for path, _ in found.samples])


def _cifar(name: str) -> Callable[[Path, str], Source]:
    def source(data_dir: Path, split: str) -> Source:
        import torchvision.datasets

        try:
            found = getattr(torchvision.datasets, name)(str(data_dir), train=split == "train")
        except (RuntimeError, OSError):
            raise DataError(f"{data_dir}: {name} is not there; torchvision.datasets.{name} downloads it") from None
        return Source(found.classes, np.array(found.targets, np.int64), found.data)

    return source


def _digits(data_dir: Path, split: str) -> Source:
    """Scikit-learn's handwritten digits, 1,797 real scans that come with it: 80 % train, 20 % val."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(_DIGITS_SEED).permutation(len(digits.target))
    border = len(order) * 4 // 5
    chosen = np.sort(order[:border] if split == "train" else order[border:])
    side = (_DIGITS_SIDE, _DIGITS_SIDE)
    images = [Image.fromarray((scan * 255 / 16).round().astype(np.uint8)) for scan in digits.images[chosen]]
    enlarged = [np.asarray(image.resize(side, Image.Resampling.BICUBIC).convert("RGB")) for image in images]
    return Source([str(name) for name in digits.target_names], digits.target[chosen], np.stack(enlarged))


_SOURCES: dict[str, Callable[[Path, str], Source]] = {
    "imagefolder": _imagefolder,
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "digits": _digits,
}
DATASETS = tuple(_SOURCES)


def open_source(dataset: str, data_dir: Path | None, split: str) -> Source:
    """A set of DATASETS.

    Args:
        data_dir: where it is; digits needs none.
        split: "train" or "val"; for an imagefolder also another folder of data_dir.

    Raises:
        DataError: it is not there.
    """
    if data_dir and not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder")
    if dataset != "imagefolder" and split not in ("train", "val"):
        raise DataError(f"{dataset} has no split {split}, it has train and val")
    return replace(_SOURCES[dataset](data_dir or Path(), split), dataset=dataset, split=split)
