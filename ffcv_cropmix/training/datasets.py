"""Whether a .beton file fits the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data.check import Beton, check_beton
from ..data.sidecar import read_sidecar
from ..errors import DataError


def count_classes(path: str) -> int:
    """As many classes as the dataset's sidecar names; without one, ImageNet's 1000."""
    sidecar = read_sidecar(path)
    return len(sidecar.classes) if sidecar else 1000


def open_labelled(path: str | Path) -> Beton:
    """The tables of a .beton file; DataError if it is not sound, or lacks the field image or label."""
    beton = check_beton(path)
    missing = {"image", "label"} - beton.fields.keys()
    if missing:
        raise DataError(f"{path} has no field {' and no field '.join(sorted(missing))}")
    return beton


def check_dataset(path: str, num_classes: int) -> int:
    """How many images a .beton file holds; DataError if it is not sound, or has labels that the model does not."""
    beton = open_labelled(path)
    labels = beton.column("label")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"{path}: sample {wrong[0]} is of class {labels[wrong[0]]}, the model's are 0 to {num_classes - 1}; "
            "set model.num_classes"
        )
    return len(labels)
