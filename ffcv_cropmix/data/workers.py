"""Encode images in worker processes, and report a worker that dies.

Each worker has its own pipe. The pipe ends when the worker does, which tells the images it was working on.
(Python 3.10's ProcessPoolExecutor hangs when a worker dies while more than 64 KiB wait for it.)
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import tempfile
from collections.abc import Generator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeGuard

import cv2
from PIL import Image
from xxhash import xxh64_digest

from ..errors import DataError
from .encode import Encoded, EncodeOptions, encode_file
from .images import JPG, OnError, Source, read


def encode_chunk(chunk: list[tuple[int, Any]], options: EncodeOptions, largest: int) -> list[Encoded | str]:
    """Encode samples, given as (index, image); an error is returned as its message."""
    encoded: list[Encoded | str] = []
    for index, image in chunk:
        try:
            encoded.append(encode_file(index, image, options, largest))
        except Exception as error:  # any error of Pillow about the bytes
            encoded.append(" ".join(str(error).split()) or repr(error))
    return encoded


def _is_file(sample: Encoded | str) -> TypeGuard[Encoded]:
    """Return whether a sample is an unchanged JPEG file."""
    return isinstance(sample, Encoded) and sample.origin == "file" and sample.mode == JPG


def _without_file(sample: Encoded | str) -> Encoded | str:
    """Replace an unchanged JPEG file by its checksum: the parent reads the file faster than a pipe delivers it."""
    if not _is_file(sample):
        return sample
    return sample._replace(data=xxh64_digest(sample.data))


def _with_file(sample: Encoded | str, source: Source, index: int) -> Encoded | str:
    """Put the bytes of an unchanged JPEG file back.

    Raises:
        DataError: the file has changed since the worker checked it.
    """
    if not _is_file(sample):
        return sample
    data: Any = b""
    with suppress(OSError):
        data = read(source.images[index])
    if xxh64_digest(data) != sample.data:
        raise DataError(f"{source.name(index)} was changed, or could not be read again: is something writing it?")
    return sample._replace(data=data)


def _work(pipe: Connection, options: EncodeOptions, largest: int) -> None:
    """Run a worker: receive chunks and send encoded samples until the parent is gone."""
    cv2.setNumThreads(1)
    Image.MAX_IMAGE_PIXELS = None  # its warning would not name the file
    try:
        while True:
            pipe.send([_without_file(sample) for sample in encode_chunk(pipe.recv(), options, largest)])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def _start_workers(workers: dict[Connection, BaseProcess], count: int, *arguments: Any) -> None:
    """Start workers and add them to `workers`, by their pipes. The parent alone handles Ctrl-C, also while they start.

    Raises:
        DataError: a process cannot be started; the message says what to do.
    """
    needed = len(list(Path("/proc/self/fd").iterdir())) + 2 * count + 10  # and some to start them
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise DataError(
            f"{count} worker processes need {needed} open files, and {limit} are allowed: raise the limit, ulimit -n, "
            "or try fewer --num_workers"
        )
    context = multiprocessing.get_context("forkserver")  # numba's threads would not survive a fork
    context.set_forkserver_preload([__name__])
    resource_tracker.ensure_running()  # else the first process starts it, and unblocks SIGINT
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by the processes
    try:
        for _ in range(count):
            pipe, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(theirs, *arguments), daemon=True)
            worker.start()
            workers[pipe] = worker
            theirs.close()  # so that the pipe ends with the worker
    except OSError as error:
        too_long = f"; TMPDIR={tempfile.gettempdir()} is too long for the name of a socket: set it to /tmp"
        advice = too_long if "AF_UNIX" in str(error) else ""
        raise DataError(f"worker processes cannot be started: {error}{advice}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def encode_all(
    source: Source,
    chunks: list[Sequence[int]],
    options: EncodeOptions,
    *,
    largest: int,
    on_error: OnError,
    num_workers: int,
) -> Generator[list[Encoded | str], None, None]:
    """Yield chunks of encoded samples in order; a sample that failed is the message of its error.

    Args:
        source: the images.
        chunks: indices of the samples of each chunk.
        options: how to store the images.
        largest: most bytes that an encoded sample may have.
        on_error: "raise" the error of a sample as soon as it is known.
        num_workers: number of processes.

    Raises:
        DataError: a sample cannot be encoded, or a worker died. Busy workers are not waited for.
    """
    given = 0
    at_work: dict[Connection, int] = {}  # numbers of chunks
    encoded: dict[int, list[Encoded | str]] = {}  # finished chunks that wait for their turn
    workers: dict[Connection, BaseProcess] = {}
    try:
        _start_workers(workers, min(num_workers, len(chunks)), options, largest)
        for turn in range(len(chunks)):
            while True:
                for pipe in workers.keys() - at_work.keys():
                    if given < min(len(chunks), turn + 3 * num_workers):
                        at_work[pipe] = given
                        pipe.send([(index, source.images[index]) for index in chunks[given]])
                        given += 1
                ready = wait(list(at_work), timeout=0 if turn in encoded else None)
                if not ready:
                    break
                for pipe in workers.keys() & ready:
                    result = pipe.recv()
                    number = at_work.pop(pipe)
                    for index, sample in zip(chunks[number], result):
                        if isinstance(sample, str) and on_error == "raise":
                            raise DataError(f"{source.name(index)} cannot be converted: {sample}")
                    encoded[number] = result
            yield [_with_file(sample, source, index) for index, sample in zip(chunks[turn], encoded.pop(turn))]
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
