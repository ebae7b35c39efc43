"""`Loader`: `ffcv.loader.Loader` that checks its arguments, raises errors in the loop and ends its threads."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numba.core import config

from .data.check import check_beton
from .data.memory import MappedFile, PageCache, physical_memory
from .data.reader import Beton
from .decoders import DecodeError
from .errors import DataError
from .ffcv_compat import (
    DEFAULT_OS_CACHE,
    ORDER_TYPE,
    AllocationQuery,
    Compiler,
    FFCVLoader,
    Field,
    Graph,
    IntField,
    Operation,
    OrderOption,
    Random,
    Sequential,
    TraversalOrder,
)
from .loader_arguments import (
    QuasiRandomOrder,
    check_threads,
    checked_indices,
    common_seed,
    order_class,
    pipeline_specs,
    stored_checksums,
    with_checksums,
)
from .passes import Pass

_LARGE = 0.5  # share of the memory that buffers may take without a warning


class Loader(FFCVLoader):
    """A drop-in replacement for `ffcv.loader.Loader` that fails safely.

    It takes the same arguments, has the same attributes and yields the same batches, with these differences:

    - The file and the arguments are checked first.
    - An error anywhere in a pipeline is raised from the `for` loop over the loader; with FFCV the loop hangs.
    - Breaking out of the loop ends the threads of the pass, and torch's number of threads stays as it is.
    - Passes are numbered from 0, and the decoders of this package derive their randomness from that number
      (`set_epoch`). A pass starts, and gets its number, when its first batch is requested: `iter(loader)` alone costs
      nothing. `state_dict` and `load_state_dict` resume in the middle of a pass.
    - With `distributed`, n batches of n processes hold the same samples as one batch of a single process that is n
      times as large (except in quasi-random order, which depends on the batch size). A `seed` of None is sampled by
      process 0 and shared. All processes get the same number of samples: `drop_last=True` leaves out the last few, and
      `drop_last=False` repeats some, as torch's DistributedSampler does. The exception is sequential order with
      `drop_last=False`, for exact evaluation: each sample is then in exactly one process, and the numbers of batches
      may differ by one. The processes are the default group of torch.distributed.

    As with FFCV, a batch is a view of memory that a later batch of the same pass overwrites: `clone` what you keep.

    Args:
        fname: path of the .beton file.
        batch_size: samples per batch and process.
        num_workers: threads; below 1: as many as the process may use cores.
        os_cache: True: rely on the operating system's cache; False: read the file page by page.
        order: an `OrderOption`, or a `TraversalOrder`.
        distributed: share the samples among the processes of torch.distributed.
        seed: determines order and augmentation; None: a random one.
        indices: rows of the file to read, integers (n,); None: all.
        pipelines: for each output the list of its operations, a `PipelineSpec`, or None to leave the field out.
        custom_fields: types of fields that FFCV does not have.
        drop_last: leave out the last batch if it is smaller.
        batches_ahead: batches prepared in advance.
        recompile: generate the pipelines' code again for each pass.
        checksums: compare the bytes of each image with its checksum in the sidecar as it is read, since damaged data
            often decodes without an error. Needs a decoder of this package.

    Raises:
        DataError: the file cannot be read or is not sound (`check_beton`), has no checksums to compare, or has fewer
            samples than there are processes.
        ValueError: an argument is out of range; the message names it and the value.
        RuntimeError: the process was forked from one in which numba's threads run, or these cannot serve two loaders.

    Example:
        >>> from ffcv.fields.basics import IntDecoder
        >>> from ffcv.transforms import ToTensor
        >>> pipelines = {"image": None, "label": [IntDecoder(), ToTensor()]}
        >>> for (labels,) in Loader("train.beton", batch_size=2, num_workers=1, pipelines=pipelines):
        ...     print(labels.flatten().tolist())
        [0, 1]
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
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if batches_ahead < 1:
            raise ValueError(f"batches_ahead must be >= 1, got {batches_ahead}")
        most = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        if num_workers < 1:
            num_workers = min(len(os.sched_getaffinity(0)), most)
        if num_workers > most:
            raise ValueError(f"num_workers must be <= {most}, numba's threads, got {num_workers}")
        check_threads()
        self._rank, self._processes = 0, 1
        if distributed:
            self._rank, self._processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
            if seed is None:
                seed = common_seed()
        rows = None if indices is None else checked_indices(indices, beton.num_samples)
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
        self._order = order_class(order)
        self._chosen = rows
        self._open(beton, checksums, os_cache)
        if self._order not in (Sequential, Random, QuasiRandomOrder):
            self.traversal_order  # noqa: B018  # its errors are raised here
        Compiler.num_threads = num_workers  # that code is compiled for
        self.pipeline_specs = pipeline_specs(pipelines, beton)
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
                "a decoder in two pipelines would decode twice, with other random numbers: start the second pipeline "
                "from the first one's output, PipelineSpec(decoder, transforms=[...])"
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
        """Set the file that batches are read from."""
        if checksums:
            images = {f"f{beton.field_names.index(name)}" for name in beton.images()}
            beton.metadata = with_checksums(beton.metadata, images, stored_checksums(beton))
        if beton.sidecar:
            beton.sidecar.checksums = None  # 11 bytes per sample that no pass needs
        self.reader = beton
        self.memory_manager = MappedFile(beton) if os_cache else PageCache(beton)

    @cached_property
    def indices(self) -> np.ndarray:
        """Rows of the file that this loader reads, integers (n,)."""
        return np.arange(self.reader.num_samples, dtype=np.uint64) if self._chosen is None else self._chosen

    @cached_property
    def traversal_order(self) -> TraversalOrder:
        """The object that orders the rows of a pass."""
        # FFCV's orders share samples among processes in another way: see next_traversal_order
        distributed, self.distributed = self.distributed, False
        try:
            return self._order(self)
        finally:
            self.distributed = distributed

    @cached_property
    def first_traversal_order(self) -> np.ndarray:
        """Rows of the pass that was next when this was first used, in order."""
        return self.next_traversal_order()

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next pass, from 0, which determines order and augmentation. Later passes count up."""
        self.next_epoch = epoch
        self._first_batch = 0

    def state_dict(self) -> dict[str, int]:
        """Return the position after the last batch that was delivered, for `load_state_dict` of an equal loader."""
        epoch, batch = self.position
        if batch >= len(self):
            epoch, batch = epoch + 1, 0
        samples = self._samples()
        return {"epoch": epoch, "batch": batch, "seed": self.seed, "batch_size": self.batch_size, "samples": samples}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume where `state_dict` was taken: the next pass has the same remaining batches, with the same pixels.

        Args:
            state: the state of a loader with the same file, order, seed, batch size and number of processes.

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
        """Return the samples that were replaced by zeros so far (`on_error="zero"`), each once, sorted by row."""
        return [self.describe(self.failures[index]) for index in sorted(self.failures)]

    def describe(self, failure: DecodeError) -> DecodeError:
        """Add the file and the class to a failure, and return it."""
        failure.file_name = self.fname
        beton = self.reader
        if isinstance(beton.fields.get("label"), IntField):
            label = int(beton.column("label")[failure.index])
            classes = beton.sidecar.classes if beton.sidecar else []
            failure.label = f"{label} ({classes[label]})" if 0 <= label < len(classes) else str(label)
        return failure

    def note_failures(self, rows: np.ndarray, memory: Mapping[Any, Any]) -> None:
        """Remember the samples of a batch that decoders replaced by zeros, from the memory of `image_nodes`."""
        for node, allocated in memory.items():
            for failure in node.decoder.failures(rows, allocated):
                self.failures.setdefault(failure.index, failure)

    def filter(self, field_name: str, condition: Callable[[Any], bool]) -> Loader:
        """Return a loader of the samples that meet a condition.

        Args:
            field_name: the field to look at.
            condition: takes a sample of that field, after its pipeline; returns whether to keep it.

        Raises:
            ValueError: there is no such field, or no sample meets the condition.

        Example:
            >>> from ffcv.fields.basics import IntDecoder
            >>> from ffcv.transforms import ToTensor
            >>> pipelines = {"image": None, "label": [IntDecoder(), ToTensor()]}
            >>> loader = Loader("train.beton", batch_size=1, num_workers=1, pipelines=pipelines)
            >>> loader.filter("label", lambda label: label > 0).indices.tolist()
            [1]
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
        """Return the rows of the next pass in this process, in order."""
        order = self.traversal_order.sample_order(self.next_epoch)
        return np.resize(order, self._shared(len(order)))[self._rank :: self._processes]  # may repeat the first ones

    def _shared(self, samples: int) -> int:
        """Return how many samples all processes read together."""
        if self.drop_last:
            return samples - samples % self._processes
        if self._order is Sequential:
            return samples
        return -(-samples // self._processes) * self._processes

    def _samples(self) -> int:
        """Return how many samples a pass reads in this process."""
        if self._order not in (Sequential, Random, QuasiRandomOrder):
            return len(self.first_traversal_order)
        samples = self.reader.num_samples if self._chosen is None else len(self._chosen)
        return len(range(self._rank, self._shared(samples), self._processes))

    def __len__(self) -> int:
        samples = self._samples()
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Pass:
        if self.recompile:
            self.generate_code()
        return Pass(self)

    def next_pass(self) -> tuple[np.ndarray, int, int]:
        """Number the next pass and prepare the decoders for it.

        Returns:
            The rows of the samples it still has to read, in order; its epoch; the number of its first batch.
        """
        check_threads()
        Compiler.num_threads = self.num_workers
        epoch, first = self.next_epoch, self._first_batch
        order = self.next_traversal_order()[first * self.batch_size : len(self) * self.batch_size]
        for node in self.graph.nodes:
            set_epoch = getattr(getattr(node, "decoder", None), "set_epoch", None)
            if set_epoch:
                set_epoch(epoch)
        self.set_epoch(epoch + 1)
        self.position = (epoch, first)
        return order, epoch, first

    def _warn_of_memory(self) -> None:
        """Warn if the buffers of batches take much of the machine's memory."""
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
