"""Check that labelled .beton files fit a model and each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from .check import Beton, check_beton
from .sidecar import match_names, read_sidecar


def count_classes(path: str) -> int:
    """Return the number of classes that the sidecar of a .beton file names; without a sidecar, ImageNet's 1000."""
    classes = read_classes(path)
    return len(classes) if classes else 1000


def open_labelled(path: str | Path) -> Beton:
    """Open a .beton file with the fields image and label.

    Raises:
        DataError: The file is broken, or lacks one of the fields.
    """
    beton = check_beton(path)
    missing = {"image", "label"} - beton.fields.keys()
    if missing:
        raise DataError(f"{path} has no field {' and no field '.join(sorted(missing))}")
    return beton


def check_dataset(path: str, num_classes: int, numbers: Sequence[int] | None = None) -> int:
    """Check that a .beton file fits a model.

    Args:
        path: The .beton file.
        num_classes: Number of outputs of the model.
        numbers: Output of the model for each label; see `match_classes`. None: labels are outputs.

    Returns:
        The number of images.

    Raises:
        DataError: The file is broken, or has a label that is out of range.
    """
    beton = open_labelled(path)
    labels = beton.column("label")
    known = num_classes if numbers is None else len(numbers)
    wrong = np.flatnonzero((labels < 0) | (labels >= known))
    if len(wrong):
        hint = "set model.num_classes" if numbers is None else "the file and its .json do not belong together"
        row = wrong[0]
        raise DataError(f"{path}: sample {row} has the label {labels[row]}, the model has 0 to {known - 1}; {hint}")
    return len(labels)


class Datasets(NamedTuple):
    """Facts about a training set and a validation set that fit each other."""

    num_classes: int
    """Number of outputs of the model"""
    classes: list[str] | None
    """Names of the outputs, from the training set; None: unknown. There may be fewer names than outputs"""
    train_images: int
    """Size of the training set"""
    val_images: int
    """Size of the validation set"""
    val_numbers: list[int] | None
    """Output of the model for each label of the validation set; see `match_classes`"""


def check_datasets(train: str, val: str, num_classes: int | None = None) -> Datasets:
    """Check that a training set and a validation set are sound and have the same classes.

    Args:
        train: The .beton file of the training set.
        val: The .beton file of the validation set. Its classes are matched by name.
        num_classes: Number of outputs of the model; None: as many as the training set's sidecar names, or else 1000.

    Raises:
        DataError: A file is broken, or does not fit the other or the model.
    """
    classes = read_classes(train)
    outputs = num_classes or (len(classes) if classes else 1000)
    classes = classes[:outputs] if classes else None
    train_images = check_dataset(train, outputs)
    numbers = match_classes(val, classes, train)
    return Datasets(outputs, classes, train_images, check_dataset(val, outputs, numbers), numbers)


def read_classes(path: str | Path) -> list[str] | None:
    """Return the class names of a .beton file, by label; None if it has no sidecar."""
    sidecar = read_sidecar(path)
    return sidecar.classes if sidecar else None


def match_classes(
    path: str | Path, model: Sequence[str] | None, where: str | Path, say: Callable[[str], None] = print
) -> list[int] | None:
    """Match the classes of a .beton file with those of a model, by name.

    Args:
        path: The .beton file.
        model: Class names of the model, by output; None: unknown.
        where: Source of those names, for messages.
        say: Called with a line if labels are renumbered, or if there are no names to compare.

    Returns:
        The model's output for each label of the file, or -1 for a class that the model lacks and that has no images.
        None if labels are outputs already, or have to be assumed so for lack of names.

    Raises:
        DataError: The file has images of a class that the model lacks, or names are ambiguous.
    """
    own = read_classes(path)
    if own is None or model is None:
        nameless = f"{path} has no .json with class names" if own is None else f"{where} does not name its classes"
        say(f"{nameless}: classes are not compared; label k is assumed to be output k")
        return None
    numbers = match_names(own, open_labelled(path).column("label"), model, path=path, other_path=where)
    if numbers == list(range(len(own))):
        return None
    say(f"{path} numbers its {len(own)} classes differently from {where}: labels are matched by name")
    return numbers
