"""The order of copies and work on a GPU, on a device that does nothing until the host waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ffcv.loader import OrderOption
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.transforms import ToTensor

from ffcv_cropmix import CenterCropRGBImageDecoder, Loader, streams

HERE = 1  # the current device of the consumer; a new thread's is 0


class Stream:
    """A queue of work that runs at the latest possible moment. It has no `synchronize`: no host waits for a stream."""

    _lock = threading.RLock()

    def __init__(self, device: int) -> None:
        self.device, self.submitted, self._done = device, 0, 0
        self._queue: deque[Callable[[], Any]] = deque()

    def submit(self, work: Callable[[], Any]) -> None:
        with self._lock:
            self._queue.append(work)
            self.submitted += 1

    def run(self, until: int) -> None:
        with self._lock:
            while self._done < until:
                work = self._queue.popleft()
                self._done += 1
                work()

    def record_event(self) -> Event:
        event = Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self.submit(event.synchronize)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


class Event:
    def __init__(self, blocking: bool = False) -> None: ...

    def record(self, stream: Stream) -> None:
        self._stream, self._until = stream, stream.submitted

    def synchronize(self) -> None:
        self._stream.run(self._until)


class LazyCuda(SimpleNamespace):
    """What `streams` calls of torch.cuda."""

    Stream, Event = Stream, Event

    def __init__(self) -> None:
        self._thread = threading.local()
        self._default = Stream(HERE)

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return getattr(self._thread, "device", 0)

    def set_device(self, device: int) -> None:
        self._thread.device = device

    def current_stream(self, device: int = HERE) -> Stream:
        assert device == HERE
        return getattr(self._thread, "stream", self._default)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self._thread.stream = stream
        yield
        del self._thread.stream


class Copy(Operation):
    """As `ToDevice` copies out of pinned memory."""

    def __init__(self, cuda: LazyCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def declare_state_and_memory(self, previous_state):
        query = AllocationQuery(previous_state.shape, torch.uint8, torch.device("cpu"))
        return replace(previous_state, jit_mode=False), query

    def generate_code(self):
        def copy(images, memory):
            assert self.cuda.current_device() == HERE
            target = memory[: len(images)]
            self.cuda.current_stream().submit(lambda: target.copy_(images))
            return target

        return copy


def _loader(path: Path, *operations: Operation, tensors: bool = True) -> Loader:
    pipeline = [CenterCropRGBImageDecoder((8, 8)), *[ToTensor()] * tensors, *operations]
    order = OrderOption.RANDOM
    pipelines = {"image": pipeline, "label": None}
    return Loader(path, 4, 1, order=order, seed=0, batches_ahead=1, pipelines=pipelines)


@pytest.mark.parametrize("waits", [False, True])
def test_no_buffer_is_filled_or_freed_while_it_is_in_use(betons, monkeypatch, waits: bool) -> None:
    """Two passes, and an allocator that gives the buffers of the first to the second.

    The consumer never waits for its work, or at once for each batch.
    """
    plain = _loader(betons["raw"])
    expected = [images.clone() for _ in range(2) for (images,) in plain]
    cuda = LazyCuda()
    cuda.set_device(HERE)
    monkeypatch.setattr(streams, "cuda", cuda)
    loader = _loader(betons["raw"], Copy(cuda))
    memory = loader.graph.allocate_memory(4, 3)
    monkeypatch.setattr(loader.graph, "allocate_memory", lambda *_: memory)
    seen: list[torch.Tensor] = []
    for _ in range(2):
        for (images,) in loader:
            cuda.current_stream().submit(lambda images=images: seen.append(images.clone()))
            if waits:
                cuda.current_stream().record_event().synchronize()
    assert waits or len(seen) < len(expected)  # the consumer was ahead of its device
    cuda.current_stream().record_event().synchronize()
    torch.testing.assert_close(torch.stack(seen), torch.stack(expected), rtol=0, atol=0)


@pytest.mark.parametrize("tensors", [True, False])
def test_a_batch_on_the_host_is_not_filled_while_it_is_copied(betons, monkeypatch, tensors: bool) -> None:
    """The consumer, which never waits, copies each batch to the device itself, with `non_blocking=True`."""
    plain = _loader(betons["raw"])
    expected = [images.clone() for _ in range(2) for (images,) in plain]
    cuda = LazyCuda()
    cuda.set_device(HERE)
    monkeypatch.setattr(streams, "cuda", cuda)
    loader = _loader(betons["raw"], tensors=tensors)
    memory = loader.graph.allocate_memory(4, 3)  # the second pass gets the buffers of the first
    monkeypatch.setattr(loader.graph, "allocate_memory", lambda *_: memory)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)  # FFCV pins buffers where there is a GPU
    seen: list[torch.Tensor] = []
    for _ in range(2):
        for (images,) in loader:
            cuda.current_stream().submit(lambda images=images: seen.append(torch.as_tensor(images).clone()))
    torch.testing.assert_close(torch.stack(seen), torch.stack(expected), rtol=0, atol=0)


def test_a_pass_that_is_left_ends_its_copies(betons, monkeypatch) -> None:
    cuda = LazyCuda()
    cuda.set_device(HERE)
    monkeypatch.setattr(streams, "cuda", cuda)
    loader = _loader(betons["raw"], Copy(cuda))
    batches = iter(loader)
    next(batches)
    thread = batches._thread
    batches.close()
    ended = thread._streams._copied
    assert any(ended)
    assert all(event._stream._done >= event._until for events in ended for event in events)
