"""The images of a .beton file as a source, to convert, plot or extract them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .images import Source, Stored
from .shards import numbered

if TYPE_CHECKING:
    from .folders import Omissions
    from .reader import Beton


class _Samples(Sequence[Stored]):
    """The samples of a field of images, by row."""

    def __init__(self, beton: Path, rows: np.ndarray, images: np.ndarray, sizes: np.ndarray) -> None:
        self._beton, self._rows, self._images, self._sizes = beton, rows, images, sizes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Samples(self._beton, self._rows[index], self._images[index], self._sizes[index])
        mode, width, height, offset = self._images[index].item()
        return Stored(self._beton, int(self._rows[index]), mode, height, width, offset, int(self._sizes[index]))


def stored_samples(beton: Beton, field: str) -> Sequence[Stored]:
    """Return the images of a field by row. The file must have passed `check_beton`."""
    table, images = beton.alloc_table, beton.column(field)
    if len(beton.order):
        table = table[beton.order]
    sizes = table["size"][np.searchsorted(table["ptr"], images["data_ptr"], "right") - 1]
    return _Samples(Path(beton.file_name), np.arange(len(images)), images, sizes)


def beton_source(file: Path, split: str = "", omissions: Omissions | None = None) -> Source:
    """List all images and labels of a .beton file. The split is the one in its sidecar, if it has one.

    Raises:
        DataError: the file is not sound, does not have exactly one field of images, or has no integer field label.
    """
    from .check import check_beton

    beton = check_beton(file)
    names = beton.images()
    if len(names) != 1:
        raise DataError(f"{file} has {len(names)} fields of images, among {', '.join(beton.fields)}: one is needed")
    column = beton.column("label") if "label" in beton.fields else None
    if column is None or column.dtype.kind != "i":
        raise DataError(f"{file} has no field label with integers, but {', '.join(beton.fields)}")
    classes, labels = numbered(column.tolist(), f"{file}: field label")
    samples, sidecar = stored_samples(beton, names[0]), beton.sidecar
    if sidecar is None:
        return Source(classes, labels, samples, split=split)
    if len(classes) > len(sidecar.classes):
        raise DataError(f"{file} has the label {labels.max()}, its sidecar {len(sidecar.classes)} classes")
    return Source(sidecar.classes, labels, samples, split=sidecar.split)
