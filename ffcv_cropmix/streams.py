"""The CUDA streams of a pass over a loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import cuda


class SlotStreams:
    """Synchronise the copies of a pass to GPUs with the work of its consumer. Does nothing on a machine without a GPU.

    A slot is a pinned buffer on the host and one on the GPU. Copies and the consumer's work are both asynchronous.
    Therefore

    - a slot's stream waits for earlier uses of its buffers, which were allocated on the consumer's stream;
    - the pass thread waits until a slot's last copy has ended before it fills the pinned buffer again (`fill`);
    - a slot's stream waits for the consumer's work on the slot's last batch before it overwrites it (`fill`);
    - if that batch is the pinned buffer itself, the host waits for that work before the buffer is filled again (`fill`)
      or freed (`release`): the consumer may copy from it with `non_blocking=True`;
    - the consumer's stream waits for the copy of the batch (`hand_over`);
    - the pass thread waits for all copies before the buffers are freed (`finish`): torch's allocators do not track
      copies from parts of a pinned buffer or on a slot's streams, and would give the memory to the next pass.

    The host waits for events, never for a stream: `torch.cuda.set_sync_debug_mode`, which applies to the whole process,
    reports the latter.

    Args:
        slots: Number of slots.
        memory: Buffers of the pass; the devices of CUDA tensors in it get streams.
    """

    def __init__(self, slots: int, memory: Sequence[Any]) -> None:
        self._devices: list[int] = []
        if cuda.is_available():
            here = cuda.current_device()
            found = {tensor.device.index for tensor in _cuda_tensors(memory)}
            self._devices = [*sorted(found - {here}), here]  # the last one that is entered is the current device
        self._streams = [[cuda.Stream(device) for device in self._devices] for _ in range(slots)]
        for slot_streams in self._streams:
            for stream in slot_streams:
                stream.wait_stream(cuda.current_stream(stream.device))
        self._copied: list[list[cuda.Event]] = [[] for _ in range(slots)]
        self._consumed: list[list[cuda.Event]] = [[] for _ in range(slots)]
        self._on_host = [False] * slots
        """Whether the slot's last batch is in memory of the host, which FFCV pins"""
        self._consumers: list[Any] = []
        """The consumer's current streams when it got the last batch"""

    def enter_thread(self) -> None:
        """Set this thread's current device to that of the thread that started the pass.

        A new thread starts with GPU 0, where each process would create a CUDA context of half a GiB (ffcv#190).
        """
        if self._devices:
            cuda.set_device(self._devices[-1])

    @contextmanager
    def fill(self, slot: int) -> Iterator[None]:
        """Return the context in which the pass thread fills a slot."""
        for event in [*self._copied[slot], *(self._consumed[slot] if self._on_host[slot] else ())]:
            event.synchronize()
        streams = self._streams[slot]
        try:
            with ExitStack() as entered:
                for stream in streams:
                    entered.enter_context(cuda.stream(stream))
                for stream, event in zip(streams, self._consumed[slot]):
                    stream.wait_event(event)
                yield
        finally:
            self._copied[slot] = [_record(stream) for stream in streams]

    def hand_over(self, slot: int, batch: Any) -> None:
        """Make the consumer's current streams wait for a slot's copies."""
        self._consumers = [cuda.current_stream(stream.device) for stream in self._streams[slot]]
        for consumer, stream in zip(self._consumers, self._streams[slot]):
            consumer.wait_stream(stream)
        self._on_host[slot] = bool(self._devices) and _on_host(batch)
        for tensor in _cuda_tensors(batch):  # made on a slot's stream by a module, or before on another stream
            tensor.record_stream(cuda.current_stream(tensor.device))

    def hand_back(self, slot: int) -> None:
        """Record events after the work that the consumer has submitted so far: all its work on the slot's batch."""
        self._consumed[slot] = [_record(cuda.current_stream(stream.device)) for stream in self._streams[slot]]

    def finish(self) -> None:
        """Wait until all copies have ended."""
        for events in self._copied:
            for event in events:
                event.synchronize()

    def release(self) -> None:
        """Wait for the consumer's work on batches in pinned memory, before that memory is freed."""
        if any(self._on_host):
            consumed = [event for slot, on_host in zip(self._consumed, self._on_host) if on_host for event in slot]
            for event in [*consumed, *map(_record, self._consumers)]:
                event.synchronize()


def _record(stream: Any) -> Any:
    event = cuda.Event(blocking=True)  # the host waits without a busy core
    event.record(stream)
    return event


def _arrays(values: Any) -> Iterator[Any]:
    """Find the tensors and NumPy arrays in nested lists and tuples."""
    if isinstance(values, (torch.Tensor, np.ndarray)):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _arrays(value)


def _cuda_tensors(values: Any) -> Iterator[torch.Tensor]:
    return (array for array in _arrays(values) if isinstance(array, torch.Tensor) and array.is_cuda)


def _on_host(values: Any) -> bool:
    return any(isinstance(array, np.ndarray) or array.is_pinned() for array in _arrays(values))
