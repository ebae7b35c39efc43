"""Images to .beton, FFCV's file format.

Workers decode, shrink and encode; this process alone writes, in the order of the samples. So the file is the same
whatever the number of workers, a worker that dies is noticed at once, and nothing has the final name before it is
whole. FFCV's own writer hangs at any error, and lets each worker write.

Each worker has a pipe of its own: the end of the pipe is the end of the worker, and tells which images it was at.
(Python 3.10's ProcessPoolExecutor hangs when a worker dies while more than 64 KiB wait for it.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..errors import DataError
from ..progress import progress
from .sources import Source, load_rgb

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
_IMAGE_TYPE, _INT_TYPE = 2, 1
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_METADATA = np.dtype([("f0", _IMAGE), ("f1", "<i8")], align=True)
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_JPG, _RAW = 0, 1
_LARGEST_SIDE = {_JPG: 65_500, _RAW: 65_535}  # px: libjpeg's limit, that of a <u2
_PAGE_SIZE = 2**23  # bytes, FFCV's default
_LARGEST_PAGE = 2**31

_CHUNK_BYTES = 2**24  # of the pixels of a chunk: up to three chunks a worker are in memory


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How images are stored."""

    write_mode: Literal["raw", "jpg", "smart", "proportion"] = "jpg"
    """raw: pixels; jpg; smart: jpg where the pixels take more than smart_threshold; proportion: jpg at random"""
    max_resolution: int = 500
    """The longer side is reduced to it, px; 0: as it is"""
    smart_threshold: int = 0
    """Bytes"""
    compress_probability: float = 0.5
    """proportion: chance of jpg, drawn from (seed, index)"""
    jpeg_quality: int = 90
    """0 to 100"""
    seed: int = 0
    """Of the draws"""


class Encoded(NamedTuple):
    """One sample."""

    mode: int
    height: int
    width: int
    data: bytes


def encode(index: int, image: np.ndarray, options: EncodeOptions) -> Encoded:
    """Store an image, uint8 (height, width, 3), as FFCV's RGBImageField does.

    Raises:
        ValueError: a side is longer than the format can say.
    """
    longest = max(image.shape[:2])
    if 0 < options.max_resolution < longest:
        ratio = options.max_resolution / longest
        height, width = (max(int(side * ratio), 1) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    height, width, _ = image.shape
    as_jpg = {
        "raw": False,
        "jpg": True,
        "smart": image.nbytes > options.smart_threshold,
        "proportion": _uniform(options.seed, index) < options.compress_probability,
    }[options.write_mode]
    limit = _LARGEST_SIDE[_JPG if as_jpg else _RAW]
    if max(height, width) > limit:
        raise ValueError(f"{height} x {width} px, a side can have {limit}: use --max_resolution")
    if not as_jpg:
        return Encoded(_RAW, height, width, image.tobytes())
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, options.jpeg_quality])
    return Encoded(_JPG, height, width, data.tobytes())


def _uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that belongs to (seed, index)."""
    return int.from_bytes(blake2b(f"{seed} {index}".encode(), digest_size=8).digest(), "big") / 2**64


def _encode_chunk(chunk: list[tuple[int, str, Any]], options: EncodeOptions) -> list[Encoded] | DataError:
    """The samples, given as (index, name, image), or what is wrong with one of them."""
    encoded = []
    for index, name, image in chunk:
        try:
            encoded.append(encode(index, load_rgb(image), options))
        except Exception as error:  # whatever Pillow trips over in the bytes
            return DataError(f"{name} cannot be converted: {str(error) or repr(error)}")
    return encoded


def _work(pipe: Connection, options: EncodeOptions) -> None:
    """A worker: chunks come in, encoded samples go out, until the parent is gone."""
    cv2.setNumThreads(1)
    Image.MAX_IMAGE_PIXELS = None  # a warning that would name no file
    try:
        while True:
            pipe.send(_encode_chunk(pipe.recv(), options))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def _start_workers(workers: dict[Connection, SpawnProcess], count: int, options: EncodeOptions) -> None:
    """Add processes, by the pipe to each. Ctrl-C is their parent's to handle, also while they start."""
    context = multiprocessing.get_context("spawn")  # numba's threads, if there are any, do not survive a fork
    resource_tracker.ensure_running()  # by the first process otherwise, and it would unblock SIGINT
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # processes inherit it
    try:
        for _ in range(count):
            pipe, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(theirs, options), daemon=True)
            worker.start()
            workers[pipe] = worker
            theirs.close()  # so that the pipe ends with the worker
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _encode_all(
    source: Source, options: EncodeOptions, num_workers: int, chunk_size: int
) -> Generator[Encoded, None, None]:
    """The samples in order. A failure is raised as soon as it is known; the workers at work are not waited for."""
    chunks = [range(first, min(first + chunk_size, len(source))) for first in range(0, len(source), chunk_size)]
    given = 0
    at_work: dict[Connection, int] = {}  # numbers of chunks
    encoded: dict[int, list[Encoded]] = {}  # chunks that wait for their turn
    workers: dict[Connection, SpawnProcess] = {}
    try:
        _start_workers(workers, min(num_workers, len(chunks)), options)
        for turn in range(len(chunks)):
            while True:
                for pipe in workers.keys() - at_work.keys():
                    if given < min(len(chunks), turn + 3 * num_workers):
                        at_work[pipe] = given
                        pipe.send([(index, source.name(index), source.images[index]) for index in chunks[given]])
                        given += 1
                ready = wait(list(at_work), timeout=0 if turn in encoded else None)
                if not ready:
                    break
                for pipe in workers.keys() & ready:
                    result = pipe.recv()
                    if isinstance(result, DataError):
                        raise result
                    encoded[at_work.pop(pipe)] = result
            yield from encoded.pop(turn)
    except (EOFError, OSError):  # of the pipe
        if not at_work:
            raise  # no process could be started
        worker, chunk = workers[pipe], chunks[at_work[pipe]]
        worker.join(1)
        raise DataError(
            f"worker process {worker.pid} died with exit status {worker.exitcode} between {source.name(chunk[0])} and "
            f"{source.name(chunk[-1])}; killed for memory? try fewer --num_workers or a smaller --chunk_size"
        ) from None
    finally:
        for worker in workers.values():
            worker.kill()
        for pipe, worker in workers.items():
            worker.join(1)
            pipe.close()


def _largest_sample(source: Source, options: EncodeOptions) -> int:
    """How many bytes of pixels a sample can have."""
    if isinstance(source.images, np.ndarray):
        return source.images[0].nbytes
    if options.max_resolution:
        return 3 * options.max_resolution**2
    largest = 0
    for path in progress(source.images, len(source), "sizes", "images"):
        try:
            with Image.open(path) as image:  # reads the header only
                largest = max(largest, 3 * image.width * image.height)
        except Exception as error:
            raise DataError(f"{path} cannot be converted: {str(error) or repr(error)}") from None
    return largest


def _write(file: BinaryIO, source: Source, samples: Iterable[Encoded], page_size: int) -> None:
    """Header, fields, metadata, pages of samples, table of allocations."""
    fields = np.array([(_IMAGE_TYPE, b"image", b""), (_INT_TYPE, b"label", b"")], _FIELD)
    metadata = np.zeros(len(source), _METADATA)
    metadata["f1"] = source.labels
    table = np.zeros(len(source), _ALLOCATION)

    def next_page(position: int) -> int:
        return -(-position // page_size) * page_size

    end = next_page(_HEADER.itemsize + fields.nbytes + metadata.nbytes)
    for row, (mode, height, width, data) in enumerate(samples):
        if len(data) > page_size:
            raise DataError(f"{source.name(row)} takes {len(data)} bytes, a page has {page_size}: shrink it")
        if end // page_size < (end + len(data) - 1) // page_size:  # a sample lies in one page
            end = next_page(end)
        file.seek(end)
        file.write(data)
        metadata["f0"][row] = (mode, width, height, end)
        table[row] = (row, end, len(data))
        end += len(data)
    header = np.array((_VERSION, len(fields), page_size, len(source), next_page(end)), _HEADER)
    file.seek(next_page(end))
    file.write(table.tobytes())
    file.seek(0)
    file.write(header.tobytes() + fields.tobytes() + metadata.tobytes())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, under a temporary name: it replaces `path` once it is whole and on the disk, or it goes.

    Raises:
        DataError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None


def convert(
    source: Source, path: Path, options: EncodeOptions, *, num_workers: int | None = None, chunk_size: int = 100
) -> int:
    """Write a source as a .beton file with the fields image and label; return its size in bytes.

    Args:
        path: the file; replaced if it exists, once the new one is whole.
        num_workers: processes; None: as many as this one may use cores.
        chunk_size: samples that a worker takes at a time, at most: fewer if they are large.

    Raises:
        DataError: an image cannot be read, a worker died, or the file cannot be written. Nothing is left behind.
    """
    num_workers = num_workers or len(os.sched_getaffinity(0))
    with replacing(path) as file:
        largest = _largest_sample(source, options)
        page_size = _PAGE_SIZE
        while page_size < min(largest, _LARGEST_PAGE):
            page_size *= 2
        chunk_size = max(1, min(chunk_size, _CHUNK_BYTES // largest))
        with closing(_encode_all(source, options, num_workers, chunk_size)) as samples:
            _write(file, source, progress(samples, len(source), path.name, "images"), page_size)
    return path.stat().st_size
