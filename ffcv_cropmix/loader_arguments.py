"""Check and convert the arguments of `Loader`: order, pipelines, indices, checksums, threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch

from .batch_loop import CHECKSUM
from .data.reader import Beton
from .errors import DataError
from .ffcv_compat import (
    TYPE_ID_HANDLER,
    Operation,
    OrderOption,
    PipelineSpec,
    QuasiRandom,
    Random,
    Sequential,
    TraversalOrder,
    generate_order_inner,
)

if TYPE_CHECKING:
    from .loader import Loader

_home: int | None = None
"""The process in which numba has started its threads; a fork of it has none"""


class QuasiRandomOrder(QuasiRandom):
    """FFCV's quasi-random order, computed from arrays instead of a Python set for each page of the file."""

    def __init__(self, loader: Loader) -> None:
        TraversalOrder.__init__(self, loader)

    def sample_order(self, epoch: int) -> np.ndarray:
        rows, counts = self._pages()
        order = np.zeros(len(self.indices), np.int64)
        generate_order_inner(self.seed * 912300 + epoch, rows, counts, order, 2 * self.loader.batch_size)
        return order

    def _pages(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows on each page, int64 (pages, most rows), and their counts; FFCV shuffles these arrays."""
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
    OrderOption.QUASI_RANDOM: QuasiRandomOrder,
}


def order_class(order: Any) -> Callable[[Loader], TraversalOrder]:
    """Return the object that computes the traversal order of a loader.

    Raises:
        ValueError: `order` is neither an `OrderOption` nor a `TraversalOrder`.
    """
    if order in _ORDERS:
        return _ORDERS[order]
    if isinstance(order, TraversalOrder) or (isinstance(order, type) and issubclass(order, TraversalOrder)):
        return order  # FFCV calls either with the loader
    raise ValueError(
        f"order must be one of {', '.join(map(str, _ORDERS))}, or a subclass of TraversalOrder, got {order!r}"
    )


def pipeline_specs(pipelines: Mapping[str, Any], beton: Beton) -> dict[str, PipelineSpec]:
    """Return the pipeline of each output, in FFCV's order: the file's fields, then the others.

    The pipelines are copies, because FFCV moves the decoder out of the user's list.

    Raises:
        ValueError: a pipeline is not a list of operations, or does not fit its field.
    """
    specs = {name: PipelineSpec(name) for name in beton.fields if name not in pipelines}
    for name, spec in pipelines.items():
        if isinstance(spec, PipelineSpec):
            specs[name] = PipelineSpec(spec.source, spec.decoder, list(spec.transforms))
        elif isinstance(spec, Sequence):
            specs[name] = PipelineSpec(name, None, list(spec))
        elif spec is not None:
            raise ValueError(f"pipelines: {name} must be a list of operations, a PipelineSpec, or None, got {spec!r}")
        source = specs[name].source if spec is not None else name
        if isinstance(source, str) and source not in beton.fields:
            raise ValueError(f"pipelines: there is no field {source!r}; the fields are {', '.join(beton.fields)}")
        if spec is not None:
            _check_operations(name, specs[name], beton)
    return {name: specs[name] for name in (*beton.fields, *pipelines) if name in specs}


_DECODERS = tuple({field.get_decoder_class(field) for field in TYPE_ID_HANDLER.values() if field})
"""The decoders of FFCV's fields; this package's decoders are subclasses of them"""


def _check_operations(name: str, spec: PipelineSpec, beton: Beton) -> None:
    """Raise ValueError unless all are operations and only the first is a decoder, one for the type of the field."""
    field = beton.fields[spec.source] if isinstance(spec.source, str) else None
    decoder = field.get_decoder_class() if field else ()
    for place, operation in enumerate([*([spec.decoder] if spec.decoder else []), *spec.transforms]):
        if not isinstance(operation, (Operation, torch.nn.Module)):
            made = ", not a class" * isinstance(operation, type)
            raise ValueError(f"pipelines: {name} must have operations and torch modules{made}, got {operation!r}")
        if isinstance(operation, _DECODERS) and (place > 0 or not isinstance(operation, decoder)):
            of = f", {type(field).__name__}" if field else ""
            raise ValueError(
                f"pipelines: {name}: a decoder must be the first operation and fit the type of its field{of}; got "
                f"{type(operation).__name__} in place {place}"
            )


def stored_checksums(beton: Beton) -> np.ndarray:
    """Return the checksums of a file's images, uint64 (samples,).

    Raises:
        DataError: the sidecar has none, or a sample has several images.
    """
    path = beton.file_name
    digests = beton.sidecar.digests() if beton.sidecar else None
    if digests is None:
        raise DataError(f"{path}: there are no checksums in {path}.json to compare with: convert the images again")
    if len(beton.images()) != 1:
        raise DataError(f"{path}: checksums need one image per sample, it has {len(beton.images())}")
    return digests


def with_checksums(metadata: np.ndarray, columns: set[str], digests: np.ndarray) -> np.ndarray:
    """Return a copy of the metadata with a checksum added to each of these columns."""
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
        wider[name][CHECKSUM] = digests
    wider.setflags(write=False)
    return wider


def checked_indices(indices: Sequence[int], samples: int) -> np.ndarray:
    """Return indices as int64 (n,), checked: compiled code does not check them, and could read anywhere in memory.

    Raises:
        ValueError: they are not integers, or not in 0 to samples - 1.
    """
    array = np.asarray(indices)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, (n,) with n >= 1, got {array.dtype} {array.shape}")
    outside = array[(array < 0) | (array >= samples)]
    if len(outside):
        raise ValueError(f"indices must be in 0 to {samples - 1}, the samples of the file, got {outside[0]}")
    return array.astype(np.int64)


def check_threads() -> None:
    """Raise RuntimeError where numba's threads would hang or end the process."""
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


def common_seed() -> int:
    """Return a seed that process 0 samples for all processes."""
    seed = [int(np.random.randint(2**31 - 1))]
    torch.distributed.broadcast_object_list(seed)
    return seed[0]
