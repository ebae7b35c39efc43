"""Loader: `ffcv.loader.Loader` that checks what it is given, whose failures reach the user, and which ends what it
starts."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numba
import numpy as np
import torch
from numba.core import config

from .batch_loop import CHECKSUM
from .data.check import check_beton
from .data.memory import MappedFile, PageCache, physical_memory
from .data.reader import Beton
from .decoders import DecodeError
from .errors import DataError
from .ffcv_compat import (
    DEFAULT_OS_CACHE,
    ORDER_TYPE,
    TYPE_ID_HANDLER,
    AllocationQuery,
    Compiler,
    FFCVLoader,
    Field,
    Graph,
    IntField,
    Operation,
    OrderOption,
    PipelineSpec,
    QuasiRandom,
    Random,
    Sequential,
    TraversalOrder,
    generate_order_inner,
)
from .passes import Pass

_LARGE = 0.5  # share of the memory that buffers may take unsaid

_home: int | None = None
"""The process whose threads numba has started: a fork of it has none."""


class Loader(FFCVLoader):
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
        beton = check_beton(fname, custom_fields)
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, got {batch_size}")
        if batches_ahead < 1:
            raise ValueError(f"batches_ahead is at least 1, got {batches_ahead}")
        most = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        if num_workers < 1:
            num_workers = min(len(os.sched_getaffinity(0)), most)
        if num_workers > most:
            raise ValueError(f"num_workers is at most {most}, numba's threads, got {num_workers}")
        _check_threads()
        self._rank, self._processes = 0, 1
        if distributed:
            self._rank, self._processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
            if seed is None:
                seed = _common_seed()
        rows = None if indices is None else _checked_indices(indices, beton.num_samples)
        chosen = beton.num_samples if rows is None else len(rows)
        if chosen < self._processes:
            raise DataError(f"{fname}: {chosen} samples are not enough for {self._processes} processes: use fewer")
        if seed is None:
            seed = int(np.random.randint(2**31 - 1))
        self._args: dict[str, Any] = {
            "fname": fname,
            "batch_size": batch_size,
            "num_workers": num_workers,
            "os_cache": os_cache,
            "order": order,
            "distributed": distributed,
            "seed": seed,
            "indices": rows,
            "pipelines": pipelines,
            "custom_fields": custom_fields,
            "drop_last": drop_last,
            "batches_ahead": batches_ahead,
            "recompile": recompile,
            "checksums": checksums,
        }
        self.fname, self.batch_size, self.num_workers, self.seed = str(fname), batch_size, num_workers, seed
        self.drop_last, self.batches_ahead, self.recompile = drop_last, batches_ahead, recompile
        self.distributed = distributed
        self.failures: dict[int, DecodeError] = {}
        self.position = (0, 0)
        self.next_epoch = self._first_batch = 0
        self._order = _order_class(order)
        self._chosen = rows
        self._open(beton, checksums, os_cache)
        if self._order not in (Sequential, Random, _QuasiRandom):
            self.traversal_order  # noqa: B018  # its errors are raised here
        Compiler.num_threads = num_workers  # that code is compiled for
        self.pipeline_specs = _pipeline_specs(pipelines, beton)
        self.field_name_to_f_ix = {name: number for number, name in enumerate(beton.fields)}
        self.graph = Graph(
            self.pipeline_specs,
            beton.fields,
            self.field_name_to_f_ix,
            beton.metadata,
            self.memory_manager.compile_reader(),
        )
        self.generate_code()
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
                f"{fname}: batch_size {batch_size} is above its {self._samples()} samples: "
                "with drop_last=True there is no batch"
            )
        self._warn_of_memory()

    def _open(self, beton: Beton, checksums: bool, os_cache: bool) -> None:
        """Read from this file."""
        if checksums:
            images = {f"f{beton.field_names.index(name)}" for name in beton.images()}
            beton.metadata = _with_column(beton.metadata, images, _checksums(beton))
        if beton.sidecar:
            beton.sidecar.checksums = None  # 11 bytes a sample that no pass needs
        self.reader = beton
        self.memory_manager = MappedFile(beton) if os_cache else PageCache(beton)

    @cached_property
    def indices(self) -> np.ndarray:
        """The rows of the file that this loader reads, (n,)."""
        return np.arange(self.reader.num_samples, dtype=np.uint64) if self._chosen is None else self._chosen

    @cached_property
    def traversal_order(self) -> TraversalOrder:
        """What orders the rows of a pass."""
        # FFCV's orders deal samples out to processes in another way: see next_traversal_order
        distributed, self.distributed = self.distributed, False
        try:
            return self._order(self)
        finally:
            self.distributed = distributed

    @cached_property
    def first_traversal_order(self) -> np.ndarray:
        """The rows of the next pass at the time of the first use."""
        return self.next_traversal_order()

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass `epoch`, from 0: it determines order and augmentation. Later passes count on."""
        self.next_epoch = epoch
        self._first_batch = 0

    def state_dict(self) -> dict[str, int]:
        """Where the pass that delivered the last batch stands: for `load_state_dict` of a loader made the same way."""
        epoch, batch = self.position
        if batch >= len(self):
            epoch, batch = epoch + 1, 0
        samples = self._samples()
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
        failure.file_name = self.fname
        beton = self.reader
        if isinstance(beton.fields.get("label"), IntField):
            label = int(beton.column("label")[failure.index])
            classes = beton.sidecar.classes if beton.sidecar else []
            failure.label = f"{label} ({classes[label]})" if 0 <= label < len(classes) else str(label)
        return failure

    def note_failures(self, rows: np.ndarray, memory: Mapping[Any, Any]) -> None:
        """Remember the samples of a batch that its decoders replaced by zeros, from the memory of `image_nodes`."""
        for node, allocated in memory.items():
            for failure in node.decoder.failures(rows, allocated):
                self.failures.setdefault(failure.index, failure)

    def filter(self, field_name: str, condition: Callable[[Any], bool]) -> Loader:
        """Return a loader of the samples that meet a condition.

        Args:
            field_name: the field that is looked at.
            condition: takes a sample of that field as this loader's pipeline makes it; true to keep it.

        Raises:
            ValueError: there is no such field, or no sample meets the condition.

        Example::

            first_ten_classes = loader.filter("label", lambda label: label < 10)
        """
        pipelines = self._args["pipelines"]
        if field_name not in {*self.reader.fields, *pipelines}:
            raise ValueError(f"the fields are {', '.join(self.reader.fields)}, got {field_name!r}")
        looked_at = dict.fromkeys({*self.reader.fields, *pipelines} - {field_name})
        if pipelines.get(field_name) is not None:
            looked_at[field_name] = pipelines[field_name]
        changed = {
            "pipelines": looked_at,
            "order": OrderOption.SEQUENTIAL,
            "drop_last": False,
            "distributed": False,
            "checksums": False,
        }
        meets = [bool(condition(sample)) for (batch,) in Loader(**{**self._args, **changed}) for sample in batch]
        if not any(meets):
            raise ValueError(f"{self.fname}: no {field_name} of its {len(meets):,} samples meets the condition")
        return Loader(**{**self._args, "indices": self.indices[np.array(meets)]})

    def next_traversal_order(self) -> np.ndarray:
        order = self.traversal_order.sample_order(self.next_epoch)
        return np.resize(order, self._dealt(len(order)))[self._rank :: self._processes]  # may repeat the first ones

    def _dealt(self, samples: int) -> int:
        """How many samples all processes read together."""
        if self.drop_last:
            return samples - samples % self._processes
        if self._order is Sequential:
            return samples
        return -(-samples // self._processes) * self._processes

    def _samples(self) -> int:
        """How many samples a pass reads in this process."""
        if self._order not in (Sequential, Random, _QuasiRandom):
            return len(self.first_traversal_order)
        samples = self.reader.num_samples if self._chosen is None else len(self._chosen)
        return len(range(self._rank, self._dealt(samples), self._processes))

    def __len__(self) -> int:
        samples = self._samples()
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Pass:
        _check_threads()
        Compiler.num_threads = self.num_workers
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
        return Pass(self, order, epoch, first)

    def _warn_of_memory(self) -> None:
        sample = 0
        for wanted in self.graph.collect_requirements()[0]["operation"].values():
            queries = [wanted] if isinstance(wanted, AllocationQuery) else wanted or ()
            for query in queries:
                kind = query.dtype if isinstance(query.dtype, torch.dtype) else np.dtype(query.dtype)
                sample += kind.itemsize * math.prod(map(int, query.shape))
        needed = sample * self.batch_size * (self.batches_ahead + 2) / 2**30
        memory = physical_memory() / 2**30
        if needed > _LARGE * memory:
            warnings.warn(
                f"{self.fname}: the buffers of batch_size={self.batch_size} and batches_ahead={self.batches_ahead} "
                f"take {needed:.1f} GiB of the {memory:.1f} GiB of memory; FFCV's decoders keep whole images there",
                ResourceWarning,
                stacklevel=3,
            )


class _QuasiRandom(QuasiRandom):
    """FFCV's quasi-random order, from arrays instead of a set for each page; each sample is on one page."""

    def __init__(self, loader: Loader) -> None:
        TraversalOrder.__init__(self, loader)

    def sample_order(self, epoch: int) -> np.ndarray:
        rows, counts = self._pages()
        order = np.zeros(len(self.indices), np.int64)
        generate_order_inner(self.seed * 912300 + epoch, rows, counts, order, 2 * self.loader.batch_size)
        return order

    def _pages(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows on each page, int64 (pages, most rows), and their numbers: new arrays, which FFCV shuffles."""
        beton = self.loader.reader
        table = beton.alloc_table[::-1]
        page_of = np.zeros(beton.num_samples, np.uint32)
        page_of[table["sample_id"]] = table["ptr"] // np.uint64(beton.page_size)  # of several, the first
        beton.release_table()
        rows = np.asarray(self.indices).astype(np.int64)
        pages, counts = np.unique(page_of[rows], return_counts=True)
        arranged = np.zeros((len(pages), counts.max()), np.int64)
        sorted_rows = rows[np.argsort(page_of[rows], kind="stable")]
        arranged[np.arange(arranged.shape[1]) < counts[:, None]] = sorted_rows
        return arranged, counts


_ORDERS: dict[Any, type[TraversalOrder]] = {
    OrderOption.SEQUENTIAL: Sequential,
    OrderOption.RANDOM: Random,
    OrderOption.QUASI_RANDOM: _QuasiRandom,
}


def _order_class(order: Any) -> Callable[[Loader], TraversalOrder]:
    if order in _ORDERS:
        return _ORDERS[order]
    if isinstance(order, TraversalOrder) or (isinstance(order, type) and issubclass(order, TraversalOrder)):
        return order  # FFCV calls either with the loader
    raise ValueError(f"order is one of {', '.join(map(str, _ORDERS))}, or a subclass of TraversalOrder, got {order!r}")


def _pipeline_specs(pipelines: Mapping[str, Any], beton: Beton) -> dict[str, PipelineSpec]:
    """A pipeline for each output, in FFCV's order: the file's fields, then the others.

    They are copies: FFCV moves a decoder out of the list, which would then lack it in the next loader.
    """
    specs = {name: PipelineSpec(name) for name in beton.fields if name not in pipelines}
    for name, spec in pipelines.items():
        if isinstance(spec, PipelineSpec):
            specs[name] = PipelineSpec(spec.source, spec.decoder, list(spec.transforms))
        elif isinstance(spec, Sequence):
            specs[name] = PipelineSpec(name, None, list(spec))
        elif spec is not None:
            raise ValueError(f"pipelines: {name} is a list of operations, a PipelineSpec, or None, got {spec!r}")
        source = specs[name].source if spec is not None else name
        if isinstance(source, str) and source not in beton.fields:
            raise ValueError(f"pipelines: there is no field {source!r}; the fields are {', '.join(beton.fields)}")
        if spec is not None:
            _check_operations(name, specs[name], beton)
    return {name: specs[name] for name in (*beton.fields, *pipelines) if name in specs}


_DECODERS = tuple({field.get_decoder_class(field) for field in TYPE_ID_HANDLER.values() if field})
"""Of FFCV's fields; those of this package are subclasses."""


def _check_operations(name: str, spec: PipelineSpec, beton: Beton) -> None:
    """Raise ValueError unless all are operations, and the one decoder is the first one and of that field."""
    field = beton.fields[spec.source] if isinstance(spec.source, str) else None
    decoder = field.get_decoder_class() if field else ()
    for place, operation in enumerate([*([spec.decoder] if spec.decoder else []), *spec.transforms]):
        if not isinstance(operation, (Operation, torch.nn.Module)):
            made = ", not a class" * isinstance(operation, type)
            raise ValueError(f"pipelines: {name} has operations and torch modules{made}, got {operation!r}")
        if isinstance(operation, _DECODERS) and (place > 0 or not isinstance(operation, decoder)):
            of = f", {type(field).__name__}" if field else ""
            raise ValueError(
                f"pipelines: {name}: a decoder is the first operation, and for the type of its field{of}; got "
                f"{type(operation).__name__} in place {place}"
            )


def _checksums(beton: Beton) -> np.ndarray:
    """The checksums of a file's images, uint64 (samples,)."""
    path = beton.file_name
    digests = beton.sidecar.digests() if beton.sidecar else None
    if digests is None:
        raise DataError(f"{path}: there are no checksums in {path}.json to compare with: write both anew")
    if len(beton.images()) != 1:
        raise DataError(f"{path}: checksums are of one image a sample, it has {len(beton.images())}")
    return digests


def _with_column(metadata: np.ndarray, columns: set[str], values: np.ndarray) -> np.ndarray:
    """The metadata with a further column of checksums in some of its columns."""
    kinds = {name: metadata.dtype[name] for name in metadata.dtype.names or ()}
    for name in columns:
        parts = {part: kinds[name][part] for part in kinds[name].names or ()}
        kinds[name] = np.dtype([*parts.items(), (CHECKSUM, np.dtype("<u8"))], align=True)
    wider = np.empty(len(metadata), np.dtype(list(kinds.items()), align=True))
    for name in kinds:
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
