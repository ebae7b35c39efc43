"""Image sets in archives and tables: webdataset's tar files, Parquet and Arrow files."""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError
from ..progress import progress
from .folders import Omissions, check_shards, ending, find_files, image_endings, kind_of, of_split
from .images import ImageFile, Part, Source

_MOST_CLASSES = 1_000_000
_RECORD = 20 * tarfile.BLOCKSIZE  # bytes; archives are padded to a multiple of this
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def whole_number(text: str) -> int | None:
    """Parse a whole number, perhaps with a sign, blanks around it or a trailing ".0"; None if the text is not one.

    Example:
        >>> whole_number(" 7.0"), whole_number("7.5")
        (7, None)
    """
    match = re.fullmatch(r"\s*([+-]?[0-9]{1,4000})(\.0*)?\s*", text)
    return int(match[1]) if match else None


def numbered(labels: Sequence[int], where: str) -> tuple[list[str], np.ndarray]:
    """Name classes after their numbers; return the names, and the labels as int64 (n,).

    Raises:
        DataError: labels of `where` are negative or too large for class numbers.
    """
    if min(labels) < 0 or max(labels) >= _MOST_CLASSES:
        raise DataError(f"{where} has labels from {min(labels)} to {max(labels)}: classes are numbered from 0")
    return [str(label) for label in range(max(labels) + 1)], np.array(labels, np.int64)


def webdataset(data_dir: Path, split: str, omissions: Omissions) -> Source:
    """List the samples in the tar files of the split, from a folder or a pattern, in the order of the files' names.

    A sample consists of the members whose names agree up to the first dot: an image, as .jpg or .input.jpg, and its
    label, a number in .cls or in "label" of .json. Of several images, the one without a second dot is the sample; or,
    if each has its own label, each is a sample.
    """
    where, found = find_files(data_dir, split, {".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst"}, omissions)
    shards = found
    if data_dir.is_dir():
        shards = [file for file in found if ending(file.name) == ".tar"]
        compressed = [file for file in found if ".tar." in file.name.lower() or ending(file.name) == ".tgz"]
        omissions.leave_out("compressed .tar files", len(compressed))
    if not shards:
        raise DataError(
            f"{data_dir} has no .tar files{omissions.remark()}; give a folder, or a pattern such as "
            "'imagenet-train-*.tar'"
        )
    shards = of_split(shards, split, omissions, data_dir, lambda shard: shard.relative_to(where).parts, "shards")
    if data_dir.is_dir():
        check_shards(shards, omissions)
    images: list[Part] = []
    labels: list[int] = []
    for shard in progress(shards, len(shards), "index", "shards"):
        try:
            with shard.open("rb") as file:
                for members in _archives(shard, file, omissions):
                    _add_samples(shard, file, members, omissions, images, labels)
        except OSError as error:
            omissions.fail(shard, f"cannot be read: {error.strerror or error}")
    if not images:
        raise DataError(f"{shards[0]} has no images{omissions.remark()}")
    return Source(*numbered(labels, str(data_dir)), images)


class _Headers(tarfile.TarFile):
    """The file `TarInfo.fromtarfile` reads from; tarfile's own iteration takes a damaged header for the end."""

    def next(self) -> None:
        return None


def _archives(shard: Path, file: BinaryIO, omissions: Omissions) -> Iterator[list[tarfile.TarInfo]]:
    """Yield the members of each archive in a tar file; `cat` may have joined several.

    After damage, reading continues at the next header.
    """

    def damaged(offset: int, reason: str) -> None:
        omissions.fail(shard, f"is not a whole, uncompressed tar file: at byte {offset}, {reason}")

    size, begin = os.fstat(file.fileno()).st_size, file.read(8)
    compressed = next((method for magic, method in _COMPRESSED.items() if begin.startswith(magic)), None)
    if size == 0 or compressed:
        return damaged(0, f"it is compressed with {compressed}: decompress it" if compressed else "it is empty")
    headers = _Headers(fileobj=file, encoding="utf-8")
    headers.offset = 0
    start: int | None = 0  # of the archive; None: unknown, after damage
    members: list[tarfile.TarInfo] = []
    ended = False
    while headers.offset < size:
        offset = headers.offset
        zeros_end = _skip(file, offset, size, _is_zero)
        if zeros_end > offset:
            if start is not None and not _ends_archive(offset - start, zeros_end - start, zeros_end == size):
                damaged(offset, f"{zeros_end - offset} zeros are not the end of an archive")
            yield members
            members, ended = [], True
            headers.offset = start = zeros_end
            headers.pax_headers = {}
            continue
        try:
            file.seek(offset)
            member = tarfile.TarInfo.fromtarfile(headers)
            pieces = _pieces(member)
            stored = member.size if pieces is None else sum(count for _, count in pieces)
            if member.isreg() and member.offset_data + stored > size:
                raise tarfile.ReadError(f"{member.name} is cut off")
            members.append(member)
            ended = False
        except OSError:
            raise
        except Exception as error:  # any error of tarfile about the bytes
            damaged(offset, str(error) or repr(error))
            headers.offset = _skip(file, offset + tarfile.BLOCKSIZE, size, _is_no_header)
            start, ended = None, True
    if not ended:
        damaged(size, "it ends without an end-of-archive marker: it was cut off")
    yield members


def _skip(file: BinaryIO, offset: int, size: int, passed: Callable[[bytes], bool]) -> int:
    """Return the offset of the first block from `offset` on that `passed` does not accept, or the end of the file."""
    file.seek(offset)
    while offset < size and passed(file.read(tarfile.BLOCKSIZE)):
        offset += tarfile.BLOCKSIZE
    return min(offset, size)


def _is_zero(block: bytes) -> bool:
    return not block.strip(b"\0")


def _is_no_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return True
    return False


def _ends_archive(begin: int, end: int, last: bool) -> bool:
    """Return whether zeros from `begin` to `end` end an archive: two blocks, and padding to a full record."""
    marker = 2 * tarfile.BLOCKSIZE
    if last:
        return end - begin < marker + _RECORD
    return end - begin == marker or end == -(-(begin + marker) // _RECORD) * _RECORD


def _add_samples(
    shard: Path,
    file: BinaryIO,
    members: list[tarfile.TarInfo],
    omissions: Omissions,
    images: list[Part],
    labels: list[int],
) -> None:
    """Add the samples of an archive to images and labels."""
    named = {posixpath.normpath(member.name): member for member in members}
    pictures: dict[str, dict[str, list[Part]]] = {}  # by the name up to the first dot, and from there to the last
    given: dict[str, dict[str, set[int]]] = {}
    for member in members:
        folder, _, name = member.name.rpartition("/")
        base, _, ends = name.partition(".")
        infix, _, end = ends.lower().rpartition(".")
        if member.isdir():
            continue
        if not base or not (member.isreg() or member.islnk() or member.issym()):
            omissions.leave_out(kind_of(name) if not base else "members that are neither files nor links")
        elif not ends or (end not in ("cls", "json") and f".{end}" not in image_endings()):
            omissions.leave_out(kind_of(name))
        elif part := _part(shard, member, named, omissions):
            key = f"{folder}/{base}"
            if end in ("cls", "json"):
                given.setdefault(key, {}).setdefault(infix, set()).update(_label(part.read(file), end))
            else:
                pictures.setdefault(key, {}).setdefault(infix, []).append(part)
    omissions.leave_out("samples without an image", len(given.keys() - pictures.keys()))
    for key, found in pictures.items():
        told = {infix: label for infix, label in given.get(key, {}).items() if label}
        chosen = {"": found[""]} if "" in found else found
        first, *others = chain.from_iterable(chosen.values())
        if others and (len(chosen) <= len(others) or not chosen.keys() <= told.keys()):
            omissions.fail(f"{shard}/{others[0].name}", f"is not the only image of its sample: {first.name} is another")
            continue
        omissions.leave_out("further images of samples", len(found) - len(chosen))
        for infix, (image,) in chosen.items():
            label = told.get(infix) or told.get("") or (next(iter(told.values())) if len(told) == 1 else set())
            if len(label) == 1:
                images.append(image)
                labels.extend(label)
            elif label:
                omissions.fail(f"{shard}/{image.name}", f"has the labels {' and '.join(map(str, sorted(label)))}")
            else:
                omissions.fail(
                    f"{shard}/{image.name}", 'has no label: a number in .cls, or in "label" of .json, of the same name'
                )


def _part(shard: Path, member: tarfile.TarInfo, named: dict[str, tarfile.TarInfo], omissions: Omissions) -> Part | None:
    """Return the place of a member's bytes, following links; None if a link leads out of the shard."""
    target, path = member, posixpath.normpath(member.name)
    seen: set[str] = set()
    while not target.isreg():
        seen.add(path)
        within = posixpath.dirname(target.name) if target.issym() else ""
        path = posixpath.normpath(posixpath.join(within, target.linkname))
        if path in seen or path not in named:
            omissions.fail(
                f"{shard}/{member.name}", f"is a link to {member.linkname}, which is not a file of this shard"
            )
            return None
        target = named[path]
    return Part(shard, member.name, target.offset_data, target.size, _pieces(target))


def _pieces(member: tarfile.TarInfo) -> tuple[tuple[int, int], ...] | None:
    """Return `Part.pieces` from tarfile's map of a sparse member."""
    sparse: Any = member.sparse
    return None if sparse is None else tuple(sparse)


def _label(content: bytes, end: str) -> set[int]:
    """Return the label in a .cls or .json file as a set of one number; empty if there is none."""
    label = None
    if end == "cls":
        label = whole_number(content.decode("ascii", "replace"))
    else:
        with suppress(ValueError):
            read = json.loads(content)
            label = read.get("label") if isinstance(read, dict) else None
    return {label} if type(label) is int else set()


class _Rows(Sequence[ImageFile]):
    """The column of images of a table, as image files."""

    def __init__(self, table: Any, column: str, folder: Path) -> None:
        self._table, self._column, self._folder = table, column, folder

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Rows(self._table.select(range(*index.indices(len(self)))), self._column, self._folder)
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends iteration
        try:
            row = self._table[index][self._column]
        except Exception as error:  # any error of the libraries below about the file
            raise DataError(f"{self._folder}: row {index} cannot be read: {error}") from None
        row = row or {"bytes": None, "path": None}
        return self._folder / row["path"] if row["bytes"] is None and row["path"] else row["bytes"] or b""


def huggingface(data_dir: Path, split: str, omissions: Omissions) -> Source:
    """Read a column of images and one of labels from Parquet or Arrow files in a folder, with `datasets`.

    If names of files or folders tell splits (train-00000-of-00257.parquet, imagenet-1k-train.arrow), take only the
    files of the split. `datasets` caches Parquet files as Arrow files.
    """
    try:
        import datasets
    except ImportError:
        raise DataError("huggingface needs the package datasets: pip install 'ffcv-cropmix[huggingface]'") from None
    files = _tables(data_dir, split, omissions)
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
    except Exception as error:  # any error of datasets, PyArrow or pandas
        raise DataError(f"{data_dir} cannot be read by datasets: {error}") from None
    if labels.dtype.kind not in "iu":
        raise DataError(f"{data_dir}: column {label} is not a number in each row")
    classes, labels = numbered(labels, f"{data_dir}: column {label}")
    names = getattr(table.features[label], "names", None) or classes
    if len(classes) > len(names):
        raise DataError(f"{data_dir}: column {label} has the label {labels.max()}, of {len(names)} classes")
    return Source(list(names), labels, _Rows(table.select_columns([image]), image, data_dir))


def _tables(data_dir: Path, split: str, omissions: Omissions) -> list[Path]:
    where, found = find_files(data_dir, split, {".parquet", ".arrow"}, omissions)
    files = [file for file in found if not file.name.startswith("cache-")]
    omissions.leave_out("cache-* files, what datasets left of its operations", len(found) - len(files))
    parquet = [file for file in files if file.suffix == ".parquet"]
    if parquet:
        omissions.leave_out("arrow files beside parquet files", len(files) - len(parquet))
    if not files:
        raise DataError(f"{data_dir} has no .parquet or .arrow files{omissions.remark()}")
    chosen = of_split(parquet or files, split, omissions, data_dir, lambda file: file.relative_to(where).parts, "files")
    if data_dir.is_dir():
        check_shards(chosen, omissions)
    return chosen


def _columns(features: Any, datasets: Any) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""

    def only(kind: str, names: list[str]) -> str:
        if len(names) != 1:
            raise DataError(f"cannot tell the {kind} among the columns {', '.join(features)}: keep or name one")
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
