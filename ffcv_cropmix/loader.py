"""Loader: `ffcv.loader.Loader` whose failures reach the user, and which ends what it starts."""

from __future__ import annotations

from . import patches  # noqa: F401

# isort: split
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, Full
from typing import Any

import ffcv.loader
import torch
from ffcv.fields.base import Field
from ffcv.loader import OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.loader.loader import DEFAULT_OS_CACHE, ORDER_TYPE
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from numba.core import config

from .errors import DataError
from .operations import DecodeError


class _EpochThread(EpochIterator):
    """The thread that runs the pipeline for one pass, and the queue of its batches."""

    closed: bool
    failure: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except BaseException as failure:
            self.failure = failure
            while not self.terminate_event.is_set():  # after the batches that are ready: the end
                try:
                    return self.output_queue.put(None, timeout=0.5)
                except Full:
                    pass

    def __next__(self) -> tuple[Any, ...]:
        if self.closed:
            raise StopIteration
        try:
            return super().__next__()
        except StopIteration:
            if self.failure is None:
                raise
        if isinstance(self.failure, DecodeError):
            self.failure.file_name = str(self.loader.fname)
        raise self.failure

    def close(self) -> None:
        """End the thread, and those that read pages for it. May be called again."""
        if self.closed:
            return
        self.closed = True
        self.terminate_event.set()
        while self.is_alive():  # it may be waiting for room in the queue
            try:
                self.output_queue.get(timeout=0.01)
            except Empty:
                pass
        self.memory_context.__exit__(None, None, None)
        if hasattr(self.memory_context, "executor"):  # os_cache=False
            for reader in self.memory_context.executor.threads:
                reader.join()


class _Batches(Iterator[tuple[Any, ...]]):
    """One pass over a loader.

    A running thread is never collected. This handle is: whoever breaks off and drops it ends the thread.
    """

    def __init__(self, thread: _EpochThread) -> None:
        self._thread = thread
        self.close = weakref.finalize(self, thread.close)
        """End the pass and its threads now; dropping the last reference does so too."""

    def __next__(self) -> tuple[Any, ...]:
        return next(self._thread)


class Loader(ffcv.loader.Loader):
    """`ffcv.loader.Loader`, and safe: the same arguments, attributes and batches.

    A failure anywhere in a pipeline is raised from the `for` loop that reads the loader, where FFCV waits for ever.
    Breaking out of that loop ends the threads of the pass. Torch's thread count stays as it is. Each pass is numbered
    for the decoders of this package, whose randomness depends on it (`set_epoch`).

    A batch is a view of memory that a later batch of the same pass overwrites, as FFCV's is: `clone` what you keep.

    Args:
        num_workers: threads; below 1: as many as the process may use cores.
        *: as in `ffcv.loader.Loader`.

    Raises:
        DataError: the file cannot be read.
        ValueError: batch_size or num_workers out of range.
    """

    def __init__(
        self,
        fname: str | os.PathLike[str],
        batch_size: int,
        num_workers: int = -1,
        os_cache: bool = DEFAULT_OS_CACHE,
        order: ORDER_TYPE = OrderOption.SEQUENTIAL,
        distributed: bool = False,
        seed: int | None = None,
        indices: Sequence[int] | None = None,
        pipelines: Mapping[str, Sequence[Operation | torch.nn.Module] | None] = {},
        custom_fields: Mapping[str, type[Field]] = {},
        drop_last: bool = True,
        batches_ahead: int = 3,
        recompile: bool = False,
    ) -> None:
        try:
            with Path(fname).open("rb"):
                pass
        except OSError as error:
            raise DataError(f"{fname}: {(error.strerror or str(error)).lower()}") from None
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, got {batch_size}")
        if num_workers < 1:
            num_workers = len(os.sched_getaffinity(0))
        most = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        if num_workers > most:
            raise ValueError(f"num_workers is at most {most}, the cores, got {num_workers}")
        super().__init__(
            str(fname),
            batch_size,
            num_workers=num_workers,
            os_cache=os_cache,
            order=order,
            distributed=distributed,
            seed=seed,
            indices=indices,
            # FFCV takes the decoder out of the list, which would then lack it in the next loader
            pipelines={name: list(spec) if isinstance(spec, Sequence) else spec for name, spec in pipelines.items()},
            custom_fields=custom_fields,
            drop_last=drop_last,
            batches_ahead=batches_ahead,
            recompile=recompile,
        )
        if len(self) == 0:
            raise ValueError(
                f"{fname}: batch_size {batch_size} is above its {len(self.first_traversal_order)} samples: "
                "with drop_last=True there is no batch"
            )

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass `epoch`, from 0: it determines order and augmentation. Later passes count on."""
        self.next_epoch = epoch

    def __iter__(self) -> _Batches:
        Compiler.set_num_threads(self.num_workers)
        order = self.next_traversal_order()[: len(self) * self.batch_size]
        if self.recompile:
            self.generate_code()
        for node in self.graph.nodes:
            set_epoch = getattr(getattr(node, "decoder", None), "set_epoch", None)
            if set_epoch:
                set_epoch(self.next_epoch)
        self.next_epoch += 1
        return _Batches(_EpochThread(self, order))
