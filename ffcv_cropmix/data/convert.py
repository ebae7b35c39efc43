"""Images to .beton, FFCV's file format.

Workers decode, shrink and encode; this process alone writes, in the order of the samples. So the file is the same
whatever the number of workers, a worker that dies is noticed at once, and nothing has the final name before it is
whole. FFCV's own writer hangs at any error, and lets each worker write.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..errors import DataError
from ..progress import progress
from .sources import Source, load_rgb

_JPG, _RAW = 0, 1  # as FFCV's metadata write them
_LARGEST_SIDE = 2**16 - 1  # px, of their type
_PAGE_SIZE = 2**23  # bytes, FFCV's default
_LARGEST_PAGE = 2**31


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
    if max(height, width) > _LARGEST_SIDE:
        raise ValueError(f"{height} x {width} px, a side can have {_LARGEST_SIDE}: use --max_resolution")
    as_jpg = {
        "raw": False,
        "jpg": True,
        "smart": image.nbytes > options.smart_threshold,
        "proportion": _uniform(options.seed, index) < options.compress_probability,
    }[options.write_mode]
    if not as_jpg:
        return Encoded(_RAW, height, width, image.tobytes())
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, options.jpeg_quality])
    return Encoded(_JPG, height, width, data.tobytes())


def _uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that belongs to (seed, index)."""
    return int.from_bytes(blake2b(f"{seed} {index}".encode(), digest_size=8).digest(), "big") / 2**64


def _encode_chunk(chunk: list[tuple[int, str, Any]], options: EncodeOptions) -> list[Encoded]:
    """In a worker: samples given as (index, name, image)."""
    encoded = []
    for index, name, image in chunk:
        try:
            encoded.append(encode(index, load_rgb(image), options))
        except Exception as error:  # whatever Pillow trips over in the bytes
            raise DataError(f"{name} cannot be converted: {error}") from None
    return encoded


def _start_worker() -> None:
    """A worker leaves interrupts to its parent, does not outlive it, and works on one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    Image.MAX_IMAGE_PIXELS = None  # a warning that would name no file

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _encode_all(source: Source, options: EncodeOptions, num_workers: int, chunk_size: int) -> Iterator[Encoded]:
    """The samples in order."""
    chunks = (range(first, min(first + chunk_size, len(source))) for first in range(0, len(source), chunk_size))
    # Spawned, not forked: numba's threads, if there are any, do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker) as pool:
        pending: deque[Future[list[Encoded]]] = deque()
        try:
            for indices in chunks:
                chunk = [(index, source.name(index), source.images[index]) for index in indices]
                pending.append(pool.submit(_encode_chunk, chunk, options))
                workers = list(pool._processes.values())  # emptied when one dies
                if len(pending) > 3 * num_workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        except BrokenProcessPool:
            for worker in workers:  # the pool ends the others, by SIGTERM
                worker.join(1)
            died = next((w for w in workers if w.exitcode not in (None, 0, -signal.SIGTERM)), workers[0])
            raise DataError(
                f"worker process {died.pid} died with exit status {died.exitcode} near {source.name(indices[0])}; "
                "killed for memory? try fewer --num_workers or a smaller --chunk_size"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _page_size(source: Source, options: EncodeOptions) -> int:
    """A power of 2 that the largest sample fits into, bytes."""
    if options.max_resolution:
        largest = 3 * options.max_resolution**2
    elif isinstance(source.images, np.ndarray):
        largest = source.images[0].nbytes
    else:
        largest = 0
        for path in progress(source.images, len(source), "sizes", "images"):
            try:
                with Image.open(path) as image:  # reads the header only
                    largest = max(largest, 3 * image.width * image.height)
            except Exception as error:
                raise DataError(f"{path} cannot be converted: {error}") from None
    size = _PAGE_SIZE
    while size < min(largest, _LARGEST_PAGE):
        size *= 2
    return size


def _write(file: BinaryIO, source: Source, samples: Iterable[Encoded], page_size: int) -> None:
    """Header, fields, metadata, pages of samples, table of allocations."""
    from ffcv.fields import IntField, RGBImageField  # here: workers, which import this module, need no FFCV
    from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType, get_metadata_type

    fields = {"image": (2, RGBImageField()), "label": (1, IntField())}
    header = np.zeros(1, HeaderType)
    header["version"], header["num_fields"], header["page_size"] = CURRENT_VERSION, len(fields), page_size
    header["num_samples"] = len(source)
    descriptors = np.zeros(len(fields), FieldDescType)
    for descriptor, (name, (type_id, field)) in zip(descriptors, fields.items(), strict=True):
        descriptor["type_id"] = type_id
        descriptor["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        descriptor["arguments"] = field.to_binary()[0]
    metadata = np.zeros(len(source), get_metadata_type([field for _, field in fields.values()]))
    metadata["f1"] = source.labels
    table = np.zeros(len(source), ALLOC_TABLE_TYPE)

    def next_page(position: int) -> int:
        return -(-position // page_size) * page_size

    end = next_page(header.nbytes + descriptors.nbytes + metadata.nbytes)
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
    header["alloc_table_ptr"] = next_page(end)
    file.seek(next_page(end))
    file.write(table.tobytes())
    file.seek(0)
    file.write(header.tobytes() + descriptors.tobytes() + metadata.tobytes())


def convert(
    source: Source, path: Path, options: EncodeOptions, *, num_workers: int | None = None, chunk_size: int = 100
) -> int:
    """Write a source as a .beton file with the fields image and label; return its size in bytes.

    Args:
        path: the file; replaced if it exists, once the new one is whole.
        num_workers: processes; None: as many as this one may use cores.
        chunk_size: samples that a worker takes at a time.

    Raises:
        DataError: an image cannot be read, a worker died, or the file cannot be written. Nothing is left behind.
    """
    num_workers = num_workers or len(os.sched_getaffinity(0))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            page_size = _page_size(source, options)
            samples = _encode_all(source, options, num_workers, chunk_size)
            _write(file, source, progress(samples, len(source), path.name, "images"), page_size)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size
