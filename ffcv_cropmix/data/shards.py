"""Sets in archives and tables: webdataset's tar files, parquet and arrow files."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..progress import progress
from .images import ImageFile, Part, Source

_IMAGE_ENDS = {"jpg", "jpeg", "png", "ppm", "pgm", "pbm", "webp", "bmp", "gif", "tif", "tiff"}
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_MOST_CLASSES = 1_000_000


def numbered(labels: Sequence[int], where: str) -> tuple[list[str], np.ndarray]:
    """Classes that have numbers for names, and the labels, int64 (n,).

    Raises:
        DataError: `where` has labels that are no numbers of classes.
    """
    found = np.array(labels, np.int64)
    if found.min() < 0 or found.max() >= _MOST_CLASSES:
        raise DataError(f"{where} has labels from {found.min()} to {found.max()}: classes are numbered from 0")
    return [str(label) for label in range(found.max() + 1)], found


def webdataset(data_dir: Path, split: str) -> Source:
    """The tar files of a folder (or of its folder `split`), or those that a pattern names, in order of their names.

    A sample is the members of one name: an image (.jpg, .png, ...), and its label, a number in .cls or in "label" of
    .json.
    """
    if data_dir.is_dir():
        shards = sorted((data_dir / split if (data_dir / split).is_dir() else data_dir).glob("*.tar"))
    else:
        shards = sorted(data_dir.parent.glob(data_dir.name))
    if not shards:
        raise DataError(f"{data_dir} has no .tar files; it is a folder, or a pattern such as 'imagenet-train-*.tar'")
    images: list[Part] = []
    labels: list[int] = []
    for shard in progress(shards, len(shards), "index", "shards"):
        try:
            _index(shard, images, labels)
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{shard} is not a tar file, uncompressed and whole: {error}") from None
    if not images:
        raise DataError(f"{shards[0]} has no images")
    return Source(*numbered(labels, str(data_dir)), images)


def _index(shard: Path, images: list[Part], labels: list[int]) -> None:
    """Add a shard's samples."""
    found: dict[str, Part] = {}
    labelled: dict[str, int] = {}
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            folder, _, file = member.name.rpartition("/")
            base, _, end = file.partition(".")
            key, end = f"{folder}/{base}", end.lower()
            if not member.isfile() or not base:
                continue
            if end in _IMAGE_ENDS:
                if key in found:
                    raise DataError(f"{shard}/{member.name} is not the only image of its sample")
                found[key] = Part(shard, member.name, member.offset_data, member.size)
            elif end in ("cls", "json"):
                content = archive.extractfile(member).read()  # type: ignore[union-attr]
                label = _label(content, end)
                if label is not None:
                    labelled[key] = label
    for key, image in found.items():
        if key not in labelled:
            raise DataError(f'{shard}/{image.name} has no label: a number in .cls, or in "label" of .json')
        images.append(image)
        labels.append(labelled[key])


def _label(content: bytes, end: str) -> int | None:
    try:
        label = json.loads(content)
    except ValueError:
        return None
    if end == "json":
        label = label.get("label") if isinstance(label, dict) else None
    return label if type(label) is int else None


class _Rows(Sequence[ImageFile]):
    """The column of images of a table."""

    def __init__(self, table: Any, column: str, folder: Path) -> None:
        self._table, self._column, self._folder = table, column, folder

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Rows(self._table.select(range(*index.indices(len(self)))), self._column, self._folder)
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends an iteration
        try:
            row = self._table[index][self._column]
        except Exception as error:  # of the libraries below, about the file
            raise DataError(f"{self._folder}: row {index} cannot be read: {error}") from None
        row = row or {"bytes": None, "path": None}
        return self._folder / row["path"] if row["bytes"] is None and row["path"] else row["bytes"] or b""


def huggingface(data_dir: Path, split: str) -> Source:
    """The parquet or arrow files in a folder, read by `datasets`: a column of images and one of labels.

    If names of files or folders begin with those of splits (train-00000-of-00257.parquet), only those of the split.
    `datasets` keeps parquet files as arrow files in its cache.
    """
    try:
        import datasets
    except ImportError:
        raise DataError("huggingface needs the package datasets: pip install 'ffcv-cropmix[huggingface]'") from None
    files = _of_split(data_dir, split)
    datasets.disable_progress_bars()
    try:
        if files[0].suffix == ".arrow":
            table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
        else:
            table = datasets.Dataset.from_parquet([str(file) for file in files])
        image, label = _columns(table.features, datasets)
        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        labels = table.data.column(label).to_numpy()
    except DataError:
        raise
    except Exception as error:  # of datasets, pyarrow, pandas
        raise DataError(f"{data_dir} cannot be read by datasets: {error}") from None
    if labels.dtype.kind not in "iu":
        raise DataError(f"{data_dir}: column {label} is not a number in each row")
    classes, labels = numbered(labels, f"{data_dir}: column {label}")
    names = getattr(table.features[label], "names", None) or classes
    if len(classes) > len(names):
        raise DataError(f"{data_dir}: column {label} has the label {labels.max()}, of {len(names)} classes")
    return Source(list(names), labels, _Rows(table.select_columns([image]), image, data_dir))


def _of_split(data_dir: Path, split: str) -> list[Path]:
    files = sorted(data_dir.rglob("*.parquet")) or sorted(data_dir.rglob("*.arrow"))
    files = [file for file in files if not file.name.startswith("cache-")]  # what `datasets` left of its operations
    if not files:
        raise DataError(f"{data_dir} has no .parquet or .arrow files")

    def split_of(file: Path) -> str | None:
        for part in reversed(file.relative_to(data_dir).parts):
            first = re.split(r"[-_.]", part)[0]
            if first in _SPLITS or first == split:
                return _SPLITS.get(first, first)
        return None

    splits = {file: found for file in files if (found := split_of(file))}
    chosen = [file for file in files if splits.get(file) == _SPLITS.get(split, split)]
    if splits and not chosen:
        raise DataError(
            f"{data_dir} has no files of split {split}, it has {' and '.join(sorted(set(splits.values())))}"
        )
    return chosen or files


def _columns(features: Any, datasets: Any) -> tuple[str, str]:
    """The names of the columns of images and of labels."""

    def only(kind: str, names: list[str]) -> str:
        if len(names) != 1:
            raise DataError(f"there is no telling the {kind} among the columns {', '.join(features)}: keep or name one")
        return names[0]

    images = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys())
    ]
    if "label" in features:
        return only("images", images), "label"
    return only("images", images), only(
        "labels", [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    )
