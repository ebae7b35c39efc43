"""Whether a .beton file fits the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from .check import Beton, check_beton
from .sidecar import match_names, read_sidecar


def count_classes(path: str) -> int:
    """As many classes as the dataset's sidecar names; without one, ImageNet's 1000."""
    classes = read_classes(path)
    return len(classes) if classes else 1000


def open_labelled(path: str | Path) -> Beton:
    """The tables of a .beton file; DataError if it is not sound, or lacks the field image or label."""
    beton = check_beton(path)
    missing = {"image", "label"} - beton.fields.keys()
    if missing:
        raise DataError(f"{path} has no field {' and no field '.join(sorted(missing))}")
    return beton


def check_dataset(path: str, num_classes: int, numbers: Sequence[int] | None = None) -> int:
    """Check that a .beton file fits a model.

    Args:
        path: the file.
        num_classes: outputs of the model.
        numbers: the output of each class of the file, see `match_classes`; None: labels are outputs.

    Returns:
        The number of images.

    Raises:
        DataError: the file is not sound, or has labels that the model does not have.
    """
    beton = open_labelled(path)
    labels = beton.column("label")
    known = num_classes if numbers is None else len(numbers)
    wrong = np.flatnonzero((labels < 0) | (labels >= known))
    if len(wrong):
        whose = "set model.num_classes" if numbers is None else "the file and its .json do not belong together"
        row = wrong[0]
        raise DataError(f"{path}: sample {row} is of class {labels[row]}, the model's are 0 to {known - 1}; {whose}")
    return len(labels)


class Datasets(NamedTuple):
    """A training set and a validation set that fit each other."""

    num_classes: int
    """Outputs of the model"""
    classes: list[str] | None
    """Their names, as the training set has them; None: unknown. There may be fewer names than outputs"""
    train_images: int
    """Images of the training set"""
    val_images: int
    """Images of the validation set"""
    val_numbers: list[int] | None
    """The output for each label of the validation set, see `match_classes`"""


def check_datasets(train: str, val: str, num_classes: int | None = None) -> Datasets:
    """Check that a training set and a validation set are sound, and have the same classes.

    Args:
        train: a .beton file.
        val: likewise; its labels are matched by name.
        num_classes: outputs of the model; None: as many as the training set's sidecar names, without one 1000.

    Raises:
        DataError: they do not fit each other, or not the model.
    """
    classes = read_classes(train)
    outputs = num_classes or (len(classes) if classes else 1000)
    classes = classes[:outputs] if classes else None
    train_images = check_dataset(train, outputs)
    numbers = match_classes(val, classes, train)
    return Datasets(outputs, classes, train_images, check_dataset(val, outputs, numbers), numbers)


def read_classes(path: str | Path) -> list[str] | None:
    """Names of the classes of a .beton file, by label; None if it has no sidecar."""
    sidecar = read_sidecar(path)
    return sidecar.classes if sidecar else None


def match_classes(
    path: str | Path, model: Sequence[str] | None, where: str | Path, say: Callable[[str], None] = print
) -> list[int] | None:
    """Compare the classes of a .beton file with those of a model, by name.

    Args:
        path: the file.
        model: names of the classes of the model, by output; None: unknown.
        where: what has those names, for messages.
        say: gets a line if labels have to be renumbered, or if there are no names to compare.

    Returns:
        The model's output for each label of the file, -1 for classes that the file has no images of and the model does
        not know; None where the labels are the outputs already, or are taken to be, for want of names.

    Raises:
        DataError: the file has images of classes that the model does not know, or names do not tell classes apart.
    """
    own = read_classes(path)
    if own is None or model is None:
        nameless = (
            f"{path} has no .json that names its classes" if own is None else f"{where} does not name its classes"
        )
        say(f"{nameless}: classes are not compared; label k is taken to be output k")
        return None
    numbers = match_names(own, open_labelled(path).column("label"), model, path=path, other_path=where)
    if numbers == list(range(len(own))):
        return None
    say(f"{path} numbers its {len(own)} classes otherwise than {where}: labels are matched by name")
    return numbers
