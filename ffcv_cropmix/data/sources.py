"""Image sets that can be converted. All their samples are listed; the images are opened by the workers."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from .images import Source
from .shards import huggingface, numbered, webdataset

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


def _csv(file: Path, split: str) -> Source:
    """A table of path,label with these names in its first line; paths from the file's folder; labels numbers or names.

    All of it, whatever the split.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            table = csv.DictReader(opened)
            if not {"path", "label"} <= set(table.fieldnames or ()):
                raise DataError(f"{file} has no columns path and label in its first line, but {table.fieldnames}")
            rows = []
            for row in table:
                if not row["path"] or not row["label"]:
                    raise DataError(f"{file}, line {table.line_num}: a path or a label is missing")
                rows.append((file.parent / row["path"], row["label"]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if not rows:
        raise DataError(f"{file} has no rows")
    images, found = [path for path, _ in rows], [label for _, label in rows]
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in found):
        return Source(*numbered([int(label) for label in found], str(file)), images)
    return _named(found, images)


def _named(names: list[str], images: list[Path], classes: list[str] | None = None) -> Source:
    """Images with the names of their classes; labels in the order of the sorted names."""
    classes = sorted(set(classes or names))
    number = {name: label for label, name in enumerate(classes)}
    return Source(classes, np.array([number[name] for name in names], np.int64), images)


def _imagenet_val(data_dir: Path, labels: Path) -> Source:
    """ImageNet's 50,000 validation images in one folder; classes are the WordNet ids, sorted, as in an ImageFolder.

    Args:
        labels: a line for each image, by its number: a WordNet id, or a class number of the devkit
            (ILSVRC2012_validation_ground_truth.txt); these are not sorted as the ids are: the devkit's meta.mat, beside
            the file, has both.
    """
    classes = None
    try:
        lines = labels.read_text().split()
        found = {path: re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", path.name) for path in sorted(data_dir.iterdir())}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{labels if data_dir.is_dir() else data_dir} cannot be read: {error}") from None
    if lines and all(line.isdecimal() for line in lines):
        wordnet = _devkit_classes(labels.with_name("meta.mat"))
        if not set(lines) <= wordnet.keys():
            raise DataError(f"{labels} has numbers of classes that meta.mat does not have")
        lines, classes = [wordnet[line] for line in lines], list(wordnet.values())
    wrong = next((number for number, line in enumerate(lines, 1) if not re.fullmatch(r"n\d{8}", line)), None)
    if wrong or not lines:
        raise DataError(f"{labels}, line {wrong or 1}: neither a WordNet id such as n01440764 nor a number")
    numbers = {path: int(match[1]) for path, match in found.items() if match}
    if not numbers:
        raise DataError(f"{data_dir} has no ILSVRC2012_val_*.JPEG; a folder for each class is an imagefolder")
    for path, number in numbers.items():
        if not 1 <= number <= len(lines):
            raise DataError(f"{path} has no line in {labels}, which has {len(lines)}")
    return _named([lines[number - 1] for number in numbers.values()], list(numbers), classes or lines)


def _devkit_classes(meta: Path) -> dict[str, str]:
    """WordNet ids by ILSVRC2012_ID, of the synsets that have no children: those are the classes."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"{meta} is read by scipy: pip install scipy") from None
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        return {str(number): str(name) for number, name in zip(leaves["ILSVRC2012_ID"], leaves["WNID"])}
    except Exception as error:  # whatever scipy trips over
        raise DataError(f"{meta} cannot be read: {error}; it belongs beside the devkit's numbers of classes") from None


_SOURCES: dict[str, Callable[[Path, str], Source]] = {
    "imagefolder": _imagefolder,
    "webdataset": webdataset,
    "huggingface": huggingface,
    "csv": _csv,
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "digits": _digits,
}
DATASETS = ("imagenet_val", *_SOURCES)
_TWO_SPLITS = ("cifar10", "cifar100", "digits")


def open_source(dataset: str, data_dir: Path | None, split: str, labels: Path | None = None) -> Source:
    """A set of DATASETS.

    Args:
        data_dir: where it is: a folder; csv: the file; webdataset: also a pattern; digits needs none.
        split: "train" or "val"; where files and folders are named after splits, also another.
        labels: imagenet_val: the file with the labels.

    Raises:
        DataError: it is not there.
    """
    if data_dir and dataset not in ("csv", "webdataset") and not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder")
    if dataset in _TWO_SPLITS and split not in ("train", "val"):
        raise DataError(f"{dataset} has no split {split}, it has train and val")
    if dataset == "imagenet_val":
        source = _imagenet_val(data_dir or Path(), labels or Path())
    else:
        source = _SOURCES[dataset](data_dir or Path(), split)
    return replace(source, dataset=dataset, split=split)
