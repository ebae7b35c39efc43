"""What a .beton file does not say about itself, in a JSON file beside it: FILE.beton.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError


@dataclass(kw_only=True)
class Sidecar:
    """About the samples of one .beton file."""

    dataset: str
    """Where they come from: imagefolder, cifar10, ..."""
    split: str
    """Which part of it: train, val"""
    classes: list[str]
    """Names of the classes, by label"""
    counts: list[int]
    """Samples of each class"""
    options: dict[str, Any] = field(default_factory=dict)
    """The writer's options"""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that wrote it"""


def sidecar_path(beton: str | Path) -> Path:
    """FILE.beton.json"""
    return Path(f"{beton}.json")


def write_sidecar(file: BinaryIO, sidecar: Sidecar) -> None:
    """Write it to a file, and have it there at once: what is still in a buffer can fail to get to the disk."""
    file.write(json.dumps(asdict(sidecar), indent=1).encode() + b"\n")
    file.flush()


def read_sidecar(beton: str | Path) -> Sidecar | None:
    """The sidecar of a .beton file; None if it has none.

    Raises:
        DataError: there is one, and it cannot be read.
    """
    path = sidecar_path(beton)
    try:
        sidecar = Sidecar(**json.loads(path.read_text()))
        if not isinstance(sidecar.classes, list) or not all(isinstance(name, str) for name in sidecar.classes):
            raise ValueError("its classes are not a list of names")
        return sidecar
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a sidecar of write_dataset.py: {error}; remove it or write it anew") from None
