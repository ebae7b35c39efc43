"""Loader: `ffcv.loader.Loader` that checks what it is given, whose failures reach the user, and which ends what it
starts."""

from __future__ import annotations

from . import patches  # noqa: F401

# isort: split
import math
import os
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, Full
from typing import Any

import ffcv.loader
import numba
import numpy as np
import torch
from ffcv.fields.base import Field
from ffcv.loader import OrderOption
from ffcv.loader.epoch_iterator import EpochIterator, select_buffer
from ffcv.loader.loader import DEFAULT_OS_CACHE, ORDER_TYPE
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.reader import Reader
from ffcv.traversal_order import QuasiRandom, Sequential
from numba.core import config

from .data.check import Beton, check_beton
from .errors import DataError
from .operations import CHECKSUM, DecodeError

_LARGE = 0.5  # share of the memory that buffers may take unsaid
_PATIENCE = 0.5  # s, that an interrupt waits for the batch at work; what hangs is left behind

_home: int | None = None
"""The process whose threads numba has started: a fork of it has none."""


class _EpochThread(EpochIterator):
    """The thread that runs the pipeline for one pass, and the queue of its batches."""

    loader: Loader
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

    def run_pipeline(self, b_ix: int, batch_indices: Any, batch_slot: int, cuda_event: Any) -> tuple[Any, ...]:
        result = super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)
        for node in self.loader.image_nodes:
            memory = select_buffer(self.memory_allocations["operation"][node.id], batch_slot, len(batch_indices))
            for failure in node.decoder.failures(batch_indices, memory):
                self.loader.failures.setdefault(failure.index, failure)
        return result

    def __next__(self) -> tuple[Any, ...]:
        if self.closed:
            raise StopIteration
        try:
            return super().__next__()
        except StopIteration:
            if self.failure is None:
                raise
        if isinstance(self.failure, DecodeError):
            self.loader.describe(self.failure)
        raise self.failure

    def close(self, patience: float = math.inf) -> None:
        """End the thread, and those that read pages for it; wait so many seconds for that. May be called again."""
        if self.closed:
            return
        self.closed = True
        self.terminate_event.set()
        until = time.monotonic() + patience
        while self.is_alive():  # it may be waiting for room in the queue
            if time.monotonic() > until:
                return
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

    def __init__(self, thread: _EpochThread, epoch: int, first: int) -> None:
        self._thread = thread
        self.epoch, self.batch = epoch, first
        self.close = weakref.finalize(self, thread.close)
        """End the pass and its threads now; dropping the last reference does so too."""

    def __next__(self) -> tuple[Any, ...]:
        try:
            batch = next(self._thread)
        except KeyboardInterrupt:
            self._thread.close(_PATIENCE)
            raise
        self.batch += 1
        self._thread.loader.position = (self.epoch, self.batch)
        return batch


class Loader(ffcv.loader.Loader):
    """`ffcv.loader.Loader`, and safe: the same arguments, attributes and batches.

    The file and the arguments are checked first. A failure anywhere in a pipeline is raised from the `for` loop that
    reads the loader, where FFCV waits for ever. Breaking out of that loop ends the threads of the pass. Torch's thread
    count stays as it is. Each pass is numbered for the decoders of this package, whose randomness depends on it
    (`set_epoch`); a run goes on in the middle of a pass with `state_dict` and `load_state_dict`.

    A batch is a view of memory that a later batch of the same pass overwrites, as FFCV's is: `clone` what you keep.

    With `distributed`, the order of one process is dealt out in turn: n batches of n processes hold what one process
    has in a batch n times as large (not in quasi-random order, which depends on the batch size). A `seed` of None is
    drawn by process 0 and is the same in all. Each process has as many samples: with `drop_last` the last few are left
    out, without it some are repeated, as torch's DistributedSampler does. But in sequential order without `drop_last`
    each sample is in exactly one process, for exact evaluation: the numbers of batches then may differ by one. The
    processes are those of torch.distributed's default group.

    Args:
        num_workers: threads; below 1: as many as the process may use cores.
        checksums: compare each image's bytes with the checksum in the file's sidecar as it is read: damage often
            decodes without an error. For the decoders of this package.
        *: as in `ffcv.loader.Loader`.

    Raises:
        DataError: the file cannot be read, is not a sound .beton (`check_beton`), has no checksums to compare, or has
            fewer samples than there are processes.
        ValueError: an argument is out of range; names it and the value.
        RuntimeError: the process is a fork of one in which numba's threads run, or they cannot serve two loaders.
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
        *,
        checksums: bool = False,
    ) -> None:
        self._beton = check_beton(fname, custom_fields)
        self._checksums = _checksums(fname, self._beton) if checksums else None
        samples = len(self._beton.metadata)
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, got {batch_size}")
        if batches_ahead < 1:
            raise ValueError(f"batches_ahead is at least 1, got {batches_ahead}")
        if num_workers < 1:
            num_workers = len(os.sched_getaffinity(0))
        most = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        if num_workers > most:
            raise ValueError(f"num_workers is at most {most}, the cores, got {num_workers}")
        _check_threads()
        self._rank, self._processes = 0, 1
        if distributed:
            self._rank, self._processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
            if seed is None:
                seed = _common_seed()
        rows = None if indices is None else _checked_indices(indices, samples)
        chosen = samples if rows is None else len(rows)
        if chosen < self._processes:
            raise DataError(f"{fname}: {chosen} samples are not enough for {self._processes} processes: use fewer")
        self.failures: dict[int, DecodeError] = {}
        self.position = (0, 0)
        self._first_batch = 0
        super().__init__(
            str(fname),
            batch_size,
            num_workers=num_workers,
            os_cache=os_cache,
            order=order,
            distributed=False,  # its order of several processes is another than that of one: next_traversal_order
            seed=seed,
            indices=rows,
            # FFCV takes the decoder out of the list, which would then lack it in the next loader
            pipelines={name: list(spec) if isinstance(spec, Sequence) else spec for name, spec in pipelines.items()},
            custom_fields=custom_fields,
            drop_last=drop_last,
            batches_ahead=batches_ahead,
            recompile=recompile,
        )
        self.distributed = self._args["distributed"] = distributed
        self.image_nodes = [node for node in self.graph.nodes if hasattr(getattr(node, "decoder", None), "failures")]
        if len({id(node.decoder) for node in self.image_nodes}) < len(self.image_nodes):
            raise ValueError(
                "a decoder in two pipelines would decode twice, and draw other numbers: begin the second one with what "
                "the first one decoded, PipelineSpec(decoder, transforms=[...])"
            )
        if checksums and not self.image_nodes:
            raise ValueError("checksums=True: no decoder of this package reads an image of this loader")
        if len(self) == 0:
            raise ValueError(
                f"{fname}: batch_size {batch_size} is above its {len(self.first_traversal_order)} samples: "
                "with drop_last=True there is no batch"
            )
        self._warn_of_memory()

    @property
    def reader(self) -> Reader:
        """The file's tables as FFCV reads them; with `checksums`, the metadata of images have a column of them."""
        return self._reader

    @reader.setter
    def reader(self, reader: Reader) -> None:
        if self._checksums is not None:
            images = {f"f{list(self._beton.fields).index(name)}" for name in self._beton.images()}
            reader.metadata = _with_column(reader.metadata, images, self._checksums)
        self._reader = reader

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass `epoch`, from 0: it determines order and augmentation. Later passes count on."""
        self.next_epoch = epoch
        self._first_batch = 0

    def state_dict(self) -> dict[str, int]:
        """Where the pass that delivered the last batch stands: for `load_state_dict` of a loader made the same way."""
        epoch, batch = self.position
        if batch >= len(self):
            epoch, batch = epoch + 1, 0
        samples = len(self.first_traversal_order)
        return {"epoch": epoch, "batch": batch, "seed": self.seed, "batch_size": self.batch_size, "samples": samples}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken: the next pass has the same remaining batches, order and pixels.

        Args:
            state: of a loader with the same file, order, seed, batch size, and number of processes.

        Raises:
            ValueError: this loader has another seed, batch size or number of samples.
        """
        own = self.state_dict()
        for name in ("seed", "batch_size", "samples"):
            if state[name] != own[name]:
                raise ValueError(f"the state is of a loader with {name}={state[name]}, this one has {own[name]}")
        self.set_epoch(state["epoch"])
        self._first_batch = state["batch"]
        self.position = (state["epoch"], state["batch"])

    def report(self) -> list[DecodeError]:
        """The samples that were replaced by zeros so far (`on_error="zero"`), each once, by row."""
        return [self.describe(self.failures[index]) for index in sorted(self.failures)]

    def describe(self, failure: DecodeError) -> DecodeError:
        """Add the file and the class to a failure; return it."""
        failure.file_name = str(self.fname)
        if "label" in self._beton.fields and not self._beton.column("label").dtype.names:
            label = self._beton.column("label")[failure.index].item()
            classes = self._beton.sidecar.classes if self._beton.sidecar else []
            named = isinstance(label, int) and 0 <= label < len(classes)
            failure.label = f"{label} ({classes[label]})" if named else str(label)
        return failure

    def next_traversal_order(self) -> np.ndarray:
        if isinstance(self.traversal_order, QuasiRandom):
            self.traversal_order.prepare_data_structures()  # it shuffles them in place, further with each pass
        order = super().next_traversal_order()
        count, processes = len(order), self._processes
        if self.drop_last:
            order = order[: count - count % processes]
        elif not isinstance(self.traversal_order, Sequential):
            order = np.resize(order, -(-count // processes) * processes)  # repeats the first ones
        return order[self._rank :: processes]

    def __iter__(self) -> _Batches:
        _check_threads()
        Compiler.set_num_threads(self.num_workers)
        epoch, first = self.next_epoch, self._first_batch
        order = self.next_traversal_order()[first * self.batch_size : len(self) * self.batch_size]
        if self.recompile:
            self.generate_code()
        for node in self.graph.nodes:
            set_epoch = getattr(getattr(node, "decoder", None), "set_epoch", None)
            if set_epoch:
                set_epoch(epoch)
        self.set_epoch(epoch + 1)
        self.position = (epoch, first)
        return _Batches(_EpochThread(self, order), epoch, first)

    def _warn_of_memory(self) -> None:
        sample = 0
        for wanted in self.graph.collect_requirements()[0]["operation"].values():
            queries = [wanted] if isinstance(wanted, AllocationQuery) else wanted or ()
            for query in queries:
                kind = query.dtype if isinstance(query.dtype, torch.dtype) else np.dtype(query.dtype)
                sample += kind.itemsize * math.prod(query.shape)
        needed = sample * self.batch_size * (self.batches_ahead + 2) / 2**30
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        if needed > _LARGE * memory:
            warnings.warn(
                f"{self.fname}: the buffers of batch_size={self.batch_size} and batches_ahead={self.batches_ahead} "
                f"take {needed:.1f} GiB of the {memory:.1f} GiB of memory; FFCV's decoders keep whole images there",
                ResourceWarning,
                stacklevel=3,
            )


def _checksums(path: Any, beton: Beton) -> np.ndarray:
    """Of the images of a file, uint64 (samples,)."""
    digests = beton.sidecar.digests() if beton.sidecar else None
    if digests is None:
        raise DataError(f"{path}: there are no checksums in {path}.json to compare with: write both anew")
    if len(beton.images()) != 1:
        raise DataError(f"{path}: checksums are of one image a sample, it has {len(beton.images())}")
    return digests


def _with_column(metadata: np.ndarray, columns: set[str], values: np.ndarray) -> np.ndarray:
    """The metadata with a further column of checksums in some of its columns."""
    names = metadata.dtype.names or ()
    kinds = {name: metadata.dtype[name] for name in names}
    for name in columns:
        kinds[name] = np.dtype([*kinds[name].descr, (CHECKSUM, "<u8")])
    wider = np.empty(len(metadata), np.dtype(list(kinds.items()), align=True))
    for name in names:
        for part in metadata.dtype[name].names or ():
            wider[name][part] = metadata[name][part]
        if not metadata.dtype[name].names:
            wider[name] = metadata[name]
    for name in columns:
        wider[name][CHECKSUM] = values
    wider.setflags(write=False)
    return wider


def _checked_indices(indices: Sequence[int], samples: int) -> np.ndarray:
    """As int64 (n,), each of 0 to samples - 1; compiled code would read anywhere in memory."""
    array = np.asarray(indices)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"indices are integers, (n,) with n >= 1, got {array.dtype} {array.shape}")
    outside = array[(array < 0) | (array >= samples)]
    if len(outside):
        raise ValueError(f"indices are of 0 to {samples - 1}, the samples of the file, got {outside[0]}")
    return array.astype(np.int64)


def _check_threads() -> None:
    """Raise RuntimeError where numba's threads would hang, or end the process."""
    global _home
    if _home is None:
        _home = os.getpid()
    if _home != os.getpid():
        raise RuntimeError(
            "this process was forked from one in which numba's threads run, and has none: start it by spawn, "
            'multiprocessing.get_context("spawn")'
        )
    numba.get_num_threads()  # starts them, if they have not been
    if numba.threading_layer() == "workqueue":
        raise RuntimeError(
            "numba's threading layer is workqueue, which ends the process when two loaders run: install tbb, or "
            "libgomp, or unset NUMBA_THREADING_LAYER"
        )


def _common_seed() -> int:
    """A seed that process 0 draws for all."""
    seed = [int(np.random.randint(2**31 - 1))]
    torch.distributed.broadcast_object_list(seed)
    return seed[0]
