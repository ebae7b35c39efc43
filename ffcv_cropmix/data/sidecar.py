"""The sidecar FILE.beton.json: class names, options and checksums, which a .beton file itself does not hold."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from ..errors import DataError
from .images import Source


@dataclass(kw_only=True)
class Sidecar:
    """What is known about the samples of one .beton file."""

    dataset: str
    """Layout they were read from: imagefolder, cifar10, ..."""
    split: str
    """Name of the split: train, val"""
    classes: list[str]
    """Class names, by label"""
    counts: list[int]
    """Number of samples of each class"""
    options: dict[str, Any] = field(default_factory=dict)
    """The writer's options"""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that wrote the file"""
    tables_checksum: str | None = None
    """`tables_checksum` of header, field descriptors, metadata and allocation table"""
    checksums: str | None = None
    """`sample_checksum` of each image as it is stored, by row: base64 of little-endian uint64"""

    def digests(self) -> np.ndarray | None:
        """Return the checksums of the samples, uint64 (n,); None if there are none.

        Raises:
            DataError: the checksums are garbled.
        """
        if self.checksums is None:
            return None
        try:
            return np.frombuffer(base64.b64decode(self.checksums, validate=True), "<u8")
        except (binascii.Error, ValueError, TypeError) as error:
            raise DataError(f"the sidecar's checksums are garbled: {error}") from None


def sample_checksum(data: Any) -> int:
    """Return the XXH64 (seed 0) of a sample's image as it is stored, bytes or a contiguous array.

    Example:
        >>> hex(sample_checksum(b"abc"))
        '0x44bc2cf5ad770999'
    """
    return xxhash.xxh64_intdigest(data)


def tables_checksum(tables: Iterable[Any]) -> str:
    """Return the XXH64 (seed 0), in 16 hexadecimal digits, of everything in the file but the images, in file order.

    Args:
        tables: header, field descriptors, metadata and allocation table, in any number of pieces: bytes or contiguous
            arrays of bytes (not every structured array has a buffer).
    """
    checksum = xxhash.xxh64()
    for table in tables:
        checksum.update(table)
    return checksum.hexdigest()


def encode_digests(digests: np.ndarray) -> str:
    """Encode checksums, uint64 (n,), as `Sidecar.checksums`."""
    return base64.b64encode(digests.astype("<u8").tobytes()).decode()


def sidecar_path(beton: str | os.PathLike[str]) -> Path:
    """Return FILE.beton.json; if FILE.beton is a symbolic link without one, the path beside the file it leads to."""
    path = Path(f"{beton}.json")
    if not path.exists() and Path(beton).is_symlink():
        return Path(f"{os.path.realpath(beton)}.json")
    return path


def write_sidecar(file: BinaryIO, sidecar: Sidecar) -> None:
    """Write a sidecar to an open file."""
    file.write(json.dumps(asdict(sidecar), indent=1).encode() + b"\n")


def read_sidecar(beton: str | os.PathLike[str]) -> Sidecar | None:
    """Read the sidecar of a .beton file; None if it has none.

    Raises:
        DataError: the sidecar cannot be read.
    """
    path = sidecar_path(beton)
    try:
        sidecar = Sidecar(**json.loads(path.read_text()))
        sidecar.digests()
        if not isinstance(sidecar.classes, list) or not all(isinstance(name, str) for name in sidecar.classes):
            raise ValueError("its classes are not a list of names")
        return sidecar
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, DataError) as error:
        advice = "remove it, or convert the images again"
        raise DataError(f"{path} is not a sidecar of write_dataset.py: {error}; {advice}") from None


def match_names(
    own: Sequence[str], labels: np.ndarray, other: Sequence[str], *, path: Any, other_path: Any
) -> list[int]:
    """Map class names to their labels in another file or model.

    Args:
        own: class names, by label.
        labels: labels of the samples, integers (n,).
        other: class names of the other file or model, by its labels.
        path, other_path: the files, for messages.

    Returns:
        The label in `other` of each class of `own`; -1 for a class without samples that `other` lacks.

    Raises:
        DataError: `other` lacks a class that has samples in `own`, or has two classes of that name.

    Example:
        >>> match_names(["cat", "dog"], np.array([0, 1]), ["ant", "cat", "dog"], path="a.beton", other_path="b.beton")
        [1, 2]
    """
    if list(own) == list(other[: len(own)]):
        return list(range(len(own)))
    present = set(np.unique(labels).tolist())
    used = [name for label, name in enumerate(own) if label in present]
    numbers = {name: label for label, name in enumerate(other)}
    unknown = [name for name in used if name not in numbers]
    if unknown:
        more = f" and of {len(unknown) - 1} more classes" if len(unknown) > 1 else ""
        known = ", ".join(map(repr, other[:3])) + (", ..." if len(other) > 3 else "")
        raise DataError(
            f"{path} has images of {unknown[0]!r}{more}, which is none of the {len(other)} classes of {other_path} "
            f"({known}): give the classes of both the same names"
        )
    twice = next((name for name in used if used.count(name) > 1 or list(other).count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} and {other_path} number their classes differently, and {twice!r} names more than one")
    return [numbers.get(name, -1) for name in own]


def number_as(source: Source, beton: Path) -> Source:
    """Return a source with the labels that its class names have in a .beton file.

    Raises:
        DataError: the file has no sidecar, or lacks a class that has samples.
    """
    sidecar = read_sidecar(beton)
    if sidecar is None:
        raise DataError(f"{sidecar_path(beton)}, which names the classes, is missing")
    numbers = match_names(source.classes, source.labels, sidecar.classes, path="the source", other_path=beton)
    return replace(source, classes=sidecar.classes, labels=np.array(numbers, np.int64)[source.labels])
