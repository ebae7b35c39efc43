"""Images to .beton, FFCV's file format.

Workers decode, shrink and encode; this process alone writes, in the order of the samples. So the file is the same
whatever the number of workers, a worker that dies is noticed at once, and nothing has the final name before it is
whole and was read back. FFCV's own writer hangs at any error, and lets each worker write.
"""

from __future__ import annotations

import csv
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from io import BytesIO, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
import PIL
import xxhash

from .. import __version__
from ..errors import DataError
from ..progress import progress
from .encode import DCT_ARGUMENTS, Encoded, EncodeOptions, most_bytes
from .images import OnError, Source
from .replacing import followed, replacing
from .sidecar import Sidecar, encode_digests, sample_checksum, sidecar_path, tables_checksum, write_sidecar
from .workers import encode_all, encode_chunk

# FFCV's format, version 2, as ffcv.types and its fields have it: importing those takes seconds of numba.
_VERSION = 2
_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
_FIELD = np.dtype([("type_id", "<u1"), ("name", "S16"), ("arguments", "V1024")])
_IMAGE_TYPE, _INT_TYPE, _CUSTOM_TYPE = 2, 1, 255
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_METADATA = np.dtype([("f0", _IMAGE), ("f1", "<i8")], align=True)
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_PAGE_SIZE = 2**23  # bytes, FFCV's default
_LARGEST_PAGE = 2**31

_CHUNK_BYTES = 2**24  # of the pixels of a chunk: up to three chunks a worker are in memory
_TURNS = 16  # chunks a worker, at least: so that all end at about the same time
_TRIED = 64  # samples that tell how large the file will be, at most
_READ_BACK = 64  # samples


def _largest_sample(source: Source, options: EncodeOptions) -> int:
    """Return an upper bound of a sample's bytes, from the files' headers if it may exceed FFCV's page size."""
    if isinstance(source.images, np.ndarray):
        return source.images[0].nbytes
    if options.max_resolution and 3 * options.max_resolution**2 <= _PAGE_SIZE:
        return 3 * options.max_resolution**2
    largest = 1
    for index, image in enumerate(progress(source.images, len(source), "sizes", "images")):
        with suppress(Exception):  # the worker will report it
            largest = max(largest, most_bytes(index, image, options))
    return largest


def _page_size(largest: int) -> int:
    """Return the page size in bytes for samples of this size."""
    size = _PAGE_SIZE
    while size < min(largest, _LARGEST_PAGE):
        size *= 2
    return size


@dataclass
class Converted:
    """The result of `convert`."""

    size: int = 0
    """Size of the .beton file in bytes"""
    rows: list[int] = field(default_factory=list)
    """Indices of the written samples in the source, by row"""
    kept: int = 0
    """Number of JPEG files stored unchanged, or as their coefficients"""
    damaged: int = 0
    """Number of JPEG files encoded again because decoding them gave an error or a warning"""
    other: int = 0
    """Number of JPEG files encoded again because mode dct cannot reproduce their pixels"""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of the samples that could not be converted, `Source.skipped` first"""


class _Tables(NamedTuple):
    """Everything in a .beton file but the images."""

    front: bytes  # header, fields, metadata
    allocations: np.ndarray  # _ALLOCATION (n,)
    digests: np.ndarray  # uint64 (n,)


def _write(
    file: BinaryIO, source: Source, samples: Iterable[Encoded | str], page_size: int, dct: bool
) -> tuple[Converted, _Tables]:
    """Write header, fields, metadata, pages of samples and the allocation table."""
    image_type = (_CUSTOM_TYPE, b"image", DCT_ARGUMENTS.ljust(1024, b"\0")) if dct else (_IMAGE_TYPE, b"image", b"")
    fields = np.array([image_type, (_INT_TYPE, b"label", b"")], _FIELD)
    metadata = np.zeros(len(source), _METADATA)
    table = np.zeros(len(source), _ALLOCATION)
    digests = np.zeros(len(source), np.uint64)
    done = Converted()

    def next_page(position: int) -> int:
        return -(-position // page_size) * page_size

    end = next_page(_HEADER.itemsize + fields.nbytes + metadata.nbytes)
    for index, sample in enumerate(samples):
        if isinstance(sample, str):
            done.skipped.append((source.name(index), sample))
            continue
        mode, height, width, data, origin = sample
        if end // page_size < (end + len(data) - 1) // page_size:  # a sample lies in one page
            file.flush()
            page = end // page_size * page_size
            os.posix_fadvise(file.fileno(), page, page_size, os.POSIX_FADV_DONTNEED)  # to the disk, in the background
            end = next_page(end)
        file.seek(end)
        file.write(data)
        row = len(done.rows)
        metadata[row] = ((mode, width, height, end), source.labels[index])
        table[row] = (row, end, len(data))
        digests[row] = sample_checksum(data)
        end += len(data)
        done.rows.append(index)
        done.kept += origin == "file"
        done.damaged += origin == "damaged file"
        done.other += origin == "other file"
    count = len(done.rows)
    if count == 0:
        raise DataError("none of the images can be converted; {}: {}".format(*done.skipped[0]))
    header = np.array((_VERSION, len(fields), page_size, count, next_page(end)), _HEADER)
    tables = _Tables(header.tobytes() + fields.tobytes() + metadata[:count].tobytes(), table[:count], digests[:count])
    file.seek(next_page(end))
    file.write(tables.allocations.tobytes())
    done.size = file.tell()
    file.seek(0)
    file.write(tables.front)
    return done, tables


def _read_back(path: Path, file: BinaryIO, size: int, tables: _Tables) -> None:
    """Compare the tables and some of the samples on the disk with what was written.

    Raises:
        DataError: they differ.
    """
    file.flush()
    os.fsync(file.fileno())
    found = os.fstat(file.fileno()).st_size
    if found != size:
        raise DataError(f"{path} has {found} bytes on its disk, {size} were written")

    def stored(address: int, count: int) -> bytes:
        os.posix_fadvise(file.fileno(), address, count, os.POSIX_FADV_DONTNEED)  # from the disk, not the cache
        return os.pread(file.fileno(), count, address)

    rows = np.unique(np.linspace(0, len(tables.digests) - 1, _READ_BACK).astype(int)).tolist()
    places = tables.allocations[rows].tolist()
    wrong = [row for row, (_, *place) in zip(rows, places) if sample_checksum(stored(*place)) != tables.digests[row]]
    if stored(0, len(tables.front)) != tables.front:
        wrong.append("header")
    allocations = tables.allocations.tobytes()
    if stored(size - len(allocations), len(allocations)) != allocations:
        wrong.append("allocation table")
    if wrong:
        raise DataError(
            f"{path} differs on disk from what was written, first in row or part {wrong[0]}: is the disk failing?"
        )


class Estimate(NamedTuple):
    """Size and time of a conversion, estimated from some samples."""

    size: float
    """Size of the file in bytes"""
    seconds: float
    """Time with one process"""
    tried: int
    """Number of samples converted for the estimate"""
    failed: list[tuple[str, str]]
    """(name, reason) of the samples among them that cannot be converted"""


def estimate(source: Source, options: EncodeOptions) -> Estimate:
    """Estimate a conversion: convert a random sample of the images in this process, and write nothing."""
    page_size = _page_size(_largest_sample(source, options))
    indices = _random_indices(len(source), _TRIED)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # as in a worker
    encode_chunk([(indices[0], source.images[indices[0]])], options, page_size)  # mode dct compiles, or loads, its code
    started = time.perf_counter()
    encoded = encode_chunk([(index, source.images[index]) for index in indices], options, page_size)
    seconds = (time.perf_counter() - started) / len(indices) * len(source)
    cv2.setNumThreads(threads)
    failed = [(source.name(index), sample) for index, sample in zip(indices, encoded) if isinstance(sample, str)]
    return Estimate(_sizes(len(source), encoded)[0], seconds, len(indices), failed)


def _random_indices(count: int, some: int) -> list[int]:
    return sorted(np.random.default_rng(0).choice(count, min(count, some), replace=False).tolist())


def _sizes(count: int, encoded: list[Encoded | str]) -> tuple[float, float]:
    """Return the expected size of a file with `count` samples like these, in bytes, and three standard errors less."""
    sizes = np.array([len(sample.data) for sample in encoded if not isinstance(sample, str)] or [0])
    error = sizes.std() / len(sizes) ** 0.5
    tables = _METADATA.itemsize + _ALLOCATION.itemsize
    return count * (sizes.mean() + tables), count * (sizes.mean() - 3 * error + tables)


def _check_space(path: Path, count: int, encoded: list[Encoded | str]) -> None:
    """Raise DataError if a file with `count` samples like these clearly does not fit on its disk."""
    expected, least = _sizes(count, encoded)
    free = shutil.disk_usage(path.parent).free
    if least > free:
        raise DataError(
            f"{path} would take about {expected / 1e6:,.1f} MB, but {free / 1e6:,.1f} MB are free on its disk: make "
            "room, or lower --max_resolution or --jpeg_quality"
        )


def skipped_path(path: Path) -> Path:
    """Return FILE.beton.skipped.csv, the list of skipped images."""
    return Path(f"{path}.skipped.csv")


def convert(
    source: Source,
    path: Path,
    options: EncodeOptions,
    *,
    on_error: OnError = "raise",
    num_workers: int | None = None,
    chunk_size: int = 100,
) -> Converted:
    """Write a source as a .beton file with the fields image and label, and its sidecar.

    Args:
        source: the images and labels.
        path: the file; an existing file is replaced when the new one is complete. A symbolic link is followed.
        options: how images are stored.
        on_error: for an image that cannot be converted, "raise" a DataError, or "skip" it and list it in
            `skipped_path(path)`.
        num_workers: worker processes; None: one per core.
        chunk_size: most samples that a worker takes at a time; fewer are used if they are large or few.

    Raises:
        DataError: an image cannot be converted (with on_error="skip": no image can), a worker died, or the file clearly
            does not fit on its disk, cannot be written, or differs when read back. Nothing is left behind.

    Example:
        >>> images = np.zeros((3, 8, 8, 3), np.uint8)
        >>> source = Source(classes=["cat", "dog"], labels=np.array([0, 1, 1]), images=images)
        >>> convert(source, Path("three.beton"), EncodeOptions(write_mode="raw"), num_workers=1).rows
        [0, 1, 2]
    """
    num_workers = num_workers or len(os.sched_getaffinity(0))
    count = len(source)
    sidecar = _sidecar(source, options)
    write_sidecar(BytesIO(), sidecar)  # so that it cannot fail at the end
    target = followed(path)
    beside = [sidecar_path(target), skipped_path(target)]
    of_link = [Path(f"{path}.json"), skipped_path(path)] if target != path else []  # they describe the old file
    with replacing(target, *beside, *of_link) as (file, sidecar_file, skipped_file, *_):
        largest = _largest_sample(source, options)
        page_size = _page_size(largest)
        chunk_size = max(1, min(chunk_size, _CHUNK_BYTES // largest, count // (_TURNS * num_workers)))
        first_indices = _random_indices(count, min(_TRIED, max(8, count // 20)))
        order = first_indices + np.setdiff1d(np.arange(count), first_indices).tolist()
        chunks = [order[first : first + chunk_size] for first in range(0, count, chunk_size)]
        with closing(
            encode_all(source, chunks, options, largest=page_size, on_error=on_error, num_workers=num_workers)
        ) as encoded:
            each = chain.from_iterable(encoded)
            tried = dict(zip(first_indices, each))
            _check_space(target, count, list(tried.values()))
            dct = options.write_mode == "dct"
            samples = (tried.pop(index) if index in tried else next(each) for index in range(count))
            done, tables = _write(file, source, progress(samples, count, path.name, "images"), page_size, dct)
        _read_back(path, file, done.size, tables)
        sidecar.counts = np.bincount(source.labels[done.rows], minlength=len(source.classes)).tolist()
        sidecar.tables_checksum = tables_checksum([tables.front, tables.allocations.tobytes()])
        sidecar.checksums = encode_digests(tables.digests)
        write_sidecar(sidecar_file, sidecar)
        done.skipped[:0] = source.skipped
        if done.skipped:
            text = TextIOWrapper(skipped_file, "utf-8", "backslashreplace", newline="")
            csv.writer(text).writerows([("path", "reason"), *done.skipped])
            text.detach()
    return done


def _sidecar(source: Source, options: EncodeOptions) -> Sidecar:
    """Make the sidecar from what is known before the conversion."""
    return Sidecar(
        dataset=source.dataset,
        split=source.split,
        classes=source.classes,
        counts=[],
        options={**asdict(options), "smart_threshold": options.smart_threshold or 0},
        versions={
            "ffcv_cropmix": __version__,
            "ffcv": version("ffcv"),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
            "xxhash": xxhash.VERSION,
        },
    )
