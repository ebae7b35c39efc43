"""Image sets that can be converted. A source lists all samples; workers open the images.

A new source is a function (data_dir, split, omissions) -> Source with an entry in `_SOURCES`; the command line follows.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import DataError
from .folders import (
    Omissions,
    asked_split,
    files_below,
    has_folders,
    has_images,
    image_endings,
    kind_of,
    names_only_splits,
    of_split,
    split_of,
    subfolders,
)
from .images import OnError, Source
from .shards import huggingface, numbered, webdataset, whole_number
from .stored import beton_source

_DIGITS_SIDE = 64  # px; scikit-learn's are 8 x 8
_DIGITS_SEED = 0


def _imagefolder(data_dir: Path, split: str, omissions: Omissions) -> Source:
    """List a folder per class, like torchvision's ImageFolder, in the folder of the split or, without splits, data_dir.

    Unlike torchvision, take all formats that Pillow reads and leave out hidden folders. Folders of splits may also lie
    within the folders of the classes.
    """
    try:
        folder = _split_folder(data_dir, split, omissions)
        classes = subfolders(folder, omissions)
    except OSError as error:
        raise DataError(f"{data_dir} cannot be read: {error}") from None
    if not classes:
        raise DataError(f"{folder} has no folders of images, one per class{omissions.remark()}")
    found = {name: files_below(folder / name, folder, image_endings(), omissions) for name in classes}
    empty = [name for name in classes if not found[name]]
    if empty:
        raise DataError(f"{folder} has no images of the classes {', '.join(empty)}{omissions.remark()}")

    def inner(image: tuple[str, Path]) -> tuple[str, ...]:
        return image[1].parent.relative_to(folder / image[0]).parts

    images = [(name, path) for name in classes for path in found[name]]
    if len({split_of(part, split) for folders in set(map(inner, images)) for part in folders} - {None}) > 1:
        images = of_split(images, split, omissions, folder, inner, "images")
    return _named([name for name, _ in images], [path for _, path in images], classes)


def _split_folder(data_dir: Path, split: str, omissions: Omissions) -> Path:
    """Return the folder of the split in data_dir, or data_dir if it has no splits.

    A folder is a split if it contains folders (CIFAR-100 has a class "train") and its name is `split` or tells the
    split (`split_of`).

    Raises:
        DataError: there are splits, but not exactly one matches.
    """
    names = subfolders(data_dir)
    nested = [name for name in names if has_folders(data_dir / name)]
    told = {name: found for name in names if (found := split_of(name, split))}
    others = [name for name in names if name not in told]
    if split in nested:
        omissions.leave_out("folders that name no split", len(others))
        return data_dir / split
    splits = {name: found for name, found in told.items() if name in nested}
    if not splits:
        if len(told) == len(names) and len(set(told.values())) > 1:
            raise DataError(f"{data_dir} has {' and '.join(names)}, and these have no folders for the classes")
        if len(names) == len(nested) == 1:  # perhaps a folder around the splits
            within = _split_folder(data_dir / names[0], split, omissions)
            return within if within != data_dir / names[0] else data_dir
        return data_dir
    if others and len(set(splits.values())) == 1 and not any(map(names_only_splits, splits)):  # bullet_train, and cars
        if any(has_images(data_dir / name) for name in others):
            return data_dir
        raise DataError(
            f"{data_dir} has {' and '.join(names)}: is {' and '.join(splits)} a split, or a class? Give the folder "
            "of the split as --data_dir"
        )
    chosen = [name for name, found in splits.items() if found == asked_split(split)]
    if len(chosen) != 1:
        wrong = f"several folders of split {split}" if chosen else f"no folder {split}"
        raise DataError(f"{data_dir} has {wrong}, it has {' and '.join(splits)}: give a --split")
    omissions.leave_out("folders that name no split", len(others))
    return data_dir / chosen[0]


def _cifar(name: str) -> Callable[[Path, str, Omissions], Source]:
    def source(data_dir: Path, split: str, omissions: Omissions) -> Source:
        import torchvision.datasets

        try:
            found = getattr(torchvision.datasets, name)(str(data_dir), train=split == "train")
        except (RuntimeError, OSError):
            raise DataError(f"{data_dir}: {name} is missing; torchvision.datasets.{name} downloads it") from None
        return Source(found.classes, np.array(found.targets, np.int64), found.data)

    return source


def _digits(data_dir: Path, split: str, omissions: Omissions) -> Source:
    """Load scikit-learn's 1,797 scans of handwritten digits: 80 % train, 20 % val."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(_DIGITS_SEED).permutation(len(digits.target))
    border = len(order) * 4 // 5
    chosen = np.sort(order[:border] if split == "train" else order[border:])
    side = (_DIGITS_SIDE, _DIGITS_SIDE)
    images = [Image.fromarray((scan * 255 / 16).round().astype(np.uint8)) for scan in digits.images[chosen]]
    enlarged = [np.asarray(image.resize(side, Image.Resampling.BICUBIC).convert("RGB")) for image in images]
    return Source([str(name) for name in digits.target_names], digits.target[chosen], np.stack(enlarged))


def _csv(file: Path, split: str, omissions: Omissions) -> Source:
    """Read a table with the columns path and label, named in the first line; paths are relative to the file's folder.

    Labels are all numbers or all names. With a column split that names splits, take only the rows of the split.
    """
    rows: list[_Row] = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            table = csv.reader(opened, skipinitialspace=True)
            header = [name.strip() for name in next(table, [])]
            if header.count("path") != 1 or header.count("label") != 1:
                several = "several" if {"path", "label"} <= {*header} else "no"
                raise DataError(f"{file} has {several} columns path and label in its first line, but {header}")
            for cells in table:
                where = f"{file}, line {table.line_num}"
                values = [cell.strip() for cell in cells]
                named = dict(zip(header, values))
                if values == header:
                    omissions.fail(where, "the first line is repeated", ": ")
                elif any(values[len(header) :]):
                    reason = f"{len(cells)} cells, the first line has {len(header)}: text with a comma needs quotes"
                    omissions.fail(where, reason, ": ")
                elif any(values) and not (named.get("path") and named.get("label", "nan").lower() not in ("", "nan")):
                    omissions.fail(where, "a path or a label is missing", ": ")
                elif any(values):
                    path = file.parent / cells[header.index("path")]
                    rows.append(_Row(where, path, named["label"], named.get("split", "")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    rows = of_split(rows, split, omissions, file, lambda row: (row.split,), "rows")
    if not rows:
        raise DataError(f"{file} has no rows")
    images = [row.path for row in rows]
    numeric = next((row for row in rows if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", row.label)), None)
    if numeric is None:
        return _named([row.label for row in rows], images)
    numbers = []
    for row in rows:
        number = whole_number(row.label)
        if number is None:
            raise DataError(
                f"{row.where}: the label {row.label!r} is not a whole number, but others are, such as "
                f"{numeric.label!r} in {numeric.where.rpartition(', ')[2]}: labels must be all numbers or all names"
            )
        numbers.append(number)
    return Source(*numbered(numbers, str(file)), images)


class _Row(NamedTuple):
    """A row of a table."""

    where: str
    path: Path
    label: str
    split: str


def _named(names: list[str], images: list[Path], classes: list[str] | None = None) -> Source:
    """Make a source from class names; labels number the sorted names."""
    classes = sorted(set(classes or names))
    number = {name: label for label, name in enumerate(classes)}
    return Source(classes, np.array([number[name] for name in names], np.int64), images)


def _imagenet_val(data_dir: Path, labels: Path, omissions: Omissions) -> Source:
    """List ImageNet's 50,000 validation images in one folder; classes are the sorted WordNet ids, as in an ImageFolder.

    Args:
        labels: a file with a line per image, in the order of their numbers: a WordNet id, or a class number of the
            devkit (ILSVRC2012_validation_ground_truth.txt). Those numbers do not follow the order of the ids; the
            devkit's meta.mat, beside the file, maps them.
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
    for path in found.keys() - numbers.keys():
        omissions.leave_out(kind_of(path.name))
    omissions.leave_out("lines of labels without an image", max(len(lines) - len(numbers), 0))
    for path, number in numbers.items():
        if not 1 <= number <= len(lines):
            raise DataError(f"{path} has no line in {labels}, which has {len(lines)}")
    return _named([lines[number - 1] for number in numbers.values()], list(numbers), classes or lines)


def _devkit_classes(meta: Path) -> dict[str, str]:
    """Return the WordNet ids by ILSVRC2012_ID of the classes, which are the synsets without children."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"reading {meta} needs SciPy: pip install scipy") from None
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        return {str(number): str(name) for number, name in zip(leaves["ILSVRC2012_ID"], leaves["WNID"])}
    except Exception as error:  # any error of SciPy about the file
        raise DataError(f"{meta} cannot be read: {error}; it belongs beside the devkit's numbers of classes") from None


_SOURCES: dict[str, Callable[[Path, str, Omissions], Source]] = {
    "imagefolder": _imagefolder,
    "webdataset": webdataset,
    "huggingface": huggingface,
    "csv": _csv,
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "digits": _digits,
    "beton": beton_source,
}
DATASETS = ("imagenet_val", *_SOURCES)
_TWO_SPLITS = ("cifar10", "cifar100", "digits")


def open_source(
    dataset: str, data_dir: Path | None, split: str, labels: Path | None = None, on_error: OnError = "raise"
) -> Source:
    """Open an image set.

    Args:
        dataset: its layout, of `DATASETS`.
        data_dir: the folder; for csv and beton the file, for webdataset also a pattern; digits needs none.
        split: "train" or "val"; another name works where files and folders are named after the split.
        labels: for imagenet_val, the file with the labels.
        on_error: "skip" what cannot be read, such as the damaged part of a shard, and list it in `Source.skipped`.

    Raises:
        DataError: the set is missing, cannot be read, or its splits or labels are unclear.
    """
    omissions = Omissions(on_error)
    if data_dir and dataset not in ("csv", "webdataset", "beton") and not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder")
    if dataset in _TWO_SPLITS and split not in ("train", "val"):
        raise DataError(f"{dataset} has no split {split}, it has train and val")
    if dataset == "imagenet_val":
        source = _imagenet_val(data_dir or Path(), labels or Path(), omissions)
    else:
        source = _SOURCES[dataset](data_dir or Path(), split, omissions)
    split, skipped = source.split or split, omissions.skipped
    return replace(source, dataset=dataset, split=split, left_out=omissions.left_out, skipped=skipped)
