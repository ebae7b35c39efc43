"""One pass over a loader: the thread that runs the pipeline ahead of the consumer, and the iterator of its batches."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from .decoders import DecodeError
from .ffcv_compat import select_buffer
from .streams import SlotStreams

if TYPE_CHECKING:
    from .loader import Loader

_PATIENCE = 0.5  # s that an interrupt waits for the batch in progress; a pipeline that hangs is abandoned


class _PassThread(threading.Thread):
    """Compute the batches of one pass into a ring of slots, at most `batches_ahead` ahead of the consumer.

    One more slot holds the batch in progress, and another the batch that the consumer is using. The latter stays
    unchanged until the consumer requests the next batch.
    """

    def __init__(self, loader: Loader) -> None:
        super().__init__(daemon=True, name="ffcv_cropmix pass")
        self.loader = loader
        self.failure: BaseException | None = None
        self._held: int | None = None
        """The slot that the consumer is using"""
        self._ready: deque[tuple[int, tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._stopped = self._ended = False

    @property
    def waits(self) -> bool:
        """Return whether the pass was neither started nor closed."""
        return self.ident is None and not self._stopped

    def begin(self, order: np.ndarray) -> None:
        """Start to compute the batches of these rows."""
        loader = self.loader
        self._batches = [order[start : start + loader.batch_size] for start in range(0, len(order), loader.batch_size)]
        slots = loader.batches_ahead + 2
        self._memory = loader.graph.allocate_memory(loader.batch_size, slots)
        self._slots, self._streams = slots, SlotStreams(slots, [*self._memory["operation"].values()])
        self._storage = loader.memory_manager.schedule_epoch(self._batches)
        self._storage.__enter__()
        self.start()

    def run(self) -> None:
        try:
            numba.set_num_threads(self.loader.num_workers)  # of this thread
            self._streams.enter_thread()
            try:
                self._compute_all()
            finally:
                self._streams.finish()
        except BaseException as failure:  # raised where the consumer waits
            self.failure = failure
        finally:
            self._storage.__exit__(None, None, None)
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _compute_all(self) -> None:
        for number, rows in enumerate(self._batches):
            with self._changed:
                while len(self._ready) > self.loader.batches_ahead and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
            slot = number % self._slots
            result = self._compute(number, rows, slot)
            with self._changed:
                self._ready.append((slot, result))
                self._changed.notify_all()

    def _compute(self, number: int, rows: np.ndarray, slot: int) -> tuple[Any, ...]:
        """Run the compiled pipeline for one batch, as FFCV's `EpochIterator.run_pipeline` does."""
        loader = self.loader
        self._storage.start_batch(number)
        values: dict[str, Any] = {
            "batch_indices": rows,
            "storage_state": self._storage.state,
            "metadata": loader.reader.metadata,
        }
        for kind, prefix in (("operation", "memory"), ("shared", "shared_memory")):
            for node, memory in self._memory[kind].items():
                values[f"{prefix}_{node}"] = select_buffer(memory, slot, len(rows))
        with self._streams.fill(slot):
            stages, outputs = loader.code
            for stage, nodes in stages:
                for node, result in zip(nodes, stage(**values)):
                    values[f"result_{node}"] = result
        loader.note_failures(rows, {node: values[f"memory_{node.id}"] for node in loader.image_nodes})
        return tuple(values[f"result_{node}"] for node in outputs)

    def next_batch(self) -> tuple[Any, ...] | None:
        """Release the batch of the last call, and return the next one when it is ready; None after the last.

        Raises:
            Exception: the pipeline's own, raised after the batches that precede the failure.
        """
        if self._held is not None:
            self._streams.hand_back(self._held)
        with self._changed:
            while not self._ready and not self._ended and not self._stopped:
                self._changed.wait(1)
                if not self.is_alive() and not self._ended:
                    raise RuntimeError("this pass was begun in another process: begin one in this process")
            if self._stopped:
                return None
            if self._ready:
                self._held, batch = self._ready.popleft()
                self._changed.notify_all()
                self._streams.hand_over(self._held, batch)
                return batch
        self.close()
        if isinstance(self.failure, StopIteration):  # would end the consumer's loop
            raise RuntimeError("an operation of the pipeline raised StopIteration") from self.failure
        if self.failure is not None:
            raise self.failure
        return None

    def close(self, patience: float | None = None) -> None:
        """Start no further batch, and wait at most `patience` seconds for the one in progress. May be called again."""
        with self._changed:
            if self._stopped:
                return
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
        if self.ident is None:
            return
        if threading.current_thread() is not self:  # garbage is collected in any thread
            self.join(patience)
        if patience is None or not self.is_alive():
            self._streams.release()


class Pass(Iterator[tuple[Any, ...]]):
    """One pass over a `Loader`, an iterator over its batches.

    The pass starts, and gets its epoch number, when its first batch is requested. Lightning calls `iter` to check
    that a loader is iterable, and before it restores the loader's state: neither call may start or count a pass.

    A running thread is never collected, but this handle is: dropping it ends the pass.
    """

    def __init__(self, loader: Loader) -> None:
        self._thread = _PassThread(loader)
        self._loader = loader
        self.close = weakref.finalize(self, self._thread.close)
        """End the pass and its threads now; dropping the last reference does so too."""

    def __next__(self) -> tuple[Any, ...]:
        if self._thread.waits:
            order, self.epoch, self.batch = self._loader.next_pass()
            self._thread.begin(order)
        try:
            batch = self._thread.next_batch()
        except KeyboardInterrupt:
            self._thread.close(_PATIENCE)
            raise
        except DecodeError as failure:
            self._loader.describe(failure)
            raise
        if batch is None:
            raise StopIteration
        self.batch += 1
        self._loader.position = (self.epoch, self.batch)
        return batch
