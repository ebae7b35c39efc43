"""The loader raises what fails, ends what it starts, and leaves the process as it was."""

from __future__ import annotations

import os
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ffcv.fields import NDArrayField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.ndarray import NDArrayDecoder
from ffcv.loader import OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from ffcv.transforms import ToTensor
from ffcv.traversal_order.base import TraversalOrder
from numba.core import config

import ffcv_cropmix.loader
from ffcv_cropmix import CropMixRGBImageDecoder, Loader
from ffcv_cropmix.decoders import DecodeError
from ffcv_cropmix.errors import DataError
from tests.betons import COUNT


class Stage(Operation):
    """Runs a function on each batch, compiled or in Python."""

    def __init__(self, function, compiled: bool) -> None:
        super().__init__()
        self.function, self.compiled = function, compiled

    def generate_code(self):
        return self.function

    def declare_state_and_memory(self, previous_state):
        return replace(previous_state, jit_mode=self.compiled), None


def _python_failure(batch, _):
    if batch[0, 0] == 8:
        raise ZeroDivisionError("in Python")
    return batch


def _compiled_failure(batch, _):
    if batch[0, 0] == 8:
        raise ZeroDivisionError("compiled")
    return batch


def _wrongly_typed(batch, _):
    return batch.no_such_attribute


def _labels(path: Path, *stages: Operation, **options) -> Loader:
    pipelines = {"image": None, "label": [IntDecoder(), *stages]}
    return Loader(path, 4, num_workers=1, pipelines=pipelines, **options)


@pytest.mark.parametrize("batches_ahead", [1, 3])
@pytest.mark.parametrize(
    ("stage", "batches", "error"),
    [
        (Stage(_python_failure, False), 2, ZeroDivisionError),
        (Stage(_compiled_failure, True), 2, ZeroDivisionError),
        (Stage(_wrongly_typed, True), 0, Exception),
    ],
)
def test_a_failure_is_raised_after_the_batches_before_it(
    betons, stage: Stage, batches: int, error: type, batches_ahead: int
) -> None:
    before = threading.active_count()
    passes = iter(_labels(betons["raw"], stage, ToTensor(), batches_ahead=batches_ahead))
    for number in range(batches):
        time.sleep(0.2)  # the thread is ahead, and waits
        assert next(passes)[0][0, 0] == 4 * number
    started = time.perf_counter()
    with pytest.raises(error):
        next(passes)
    assert time.perf_counter() - started < 3 or batches == 0  # typing it takes time
    with pytest.raises(StopIteration):
        next(passes)
    assert threading.active_count() == before


@pytest.mark.parametrize("os_cache", [True, False])
def test_breaking_off_leaves_nothing_behind(betons, os_cache: bool) -> None:
    loader = _labels(betons["raw"], ToTensor(), os_cache=os_cache, batches_ahead=1)

    def break_off() -> tuple[int, int]:
        for _ in loader:
            break
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    before = threading.active_count()
    first = break_off()
    assert first[0] == before
    for _ in range(20):
        assert break_off() == first


class _Interrupt(BaseException):
    """As a KeyboardInterrupt, which would end pytest."""


def _next(loader: Loader) -> torch.Tensor:
    return next(iter(loader))[0]


def _break(loader: Loader) -> torch.Tensor:
    for (labels,) in loader:
        batch = labels
        break
    return batch


def _interrupt(loader: Loader) -> torch.Tensor:
    try:
        for (labels,) in loader:
            batch = labels
            raise _Interrupt
    except _Interrupt:
        pass
    return batch


def _close(loader: Loader) -> torch.Tensor:
    batches = iter(loader)
    (batch,) = next(batches)
    batches.close()
    return batch


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("break_off", [_next, _break, _interrupt, _close])
def test_breaking_off_begins_no_further_batch(betons, break_off, os_cache: bool) -> None:
    begun = []

    def count(batch, _):
        begun.append(batch[0, 0])
        return batch

    rows = np.arange(8000) % COUNT
    loader = _labels(betons["raw"], Stage(count, False), ToTensor(), os_cache=os_cache, indices=rows)
    batch = break_off(loader)
    assert batch[:, 0].tolist() == [0, 1, 2, 3]
    after = len(begun)
    assert after <= loader.batches_ahead + 3
    time.sleep(1)
    assert len(begun) == after
    assert batch[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("batches_ahead", [1, 3])
def test_a_batch_lasts_until_the_next_is_asked_for(betons, batches_ahead: int) -> None:
    loader = _labels(betons["raw"], ToTensor(), batches_ahead=batches_ahead, indices=np.arange(400) % COUNT)
    for number, (labels,) in enumerate(loader):
        if number % 20 == 0:
            time.sleep(0.05)  # the thread is as far ahead as it gets
        assert labels[:, 0].tolist() == [(4 * number + row) % COUNT for row in range(4)]
    assert number == 99


def test_passes_are_nested_and_concurrent(betons) -> None:
    loader = _labels(betons["raw"], ToTensor())
    firsts = [int(labels[0, 0]) for (labels,) in loader]
    for outer, (labels,) in enumerate(loader):
        assert [int(inner[0, 0]) for (inner,) in loader] == firsts
        assert labels[0, 0] == firsts[outer]
    assert [[int(a[0, 0]), int(b[0, 0])] for (a,), (b,) in zip(loader, loader)] == [[first] * 2 for first in firsts]


def test_stop_iteration_in_a_pipeline_is_a_failure(betons) -> None:
    def stop(batch, _):
        raise StopIteration

    with pytest.raises(RuntimeError, match="an operation of the pipeline raised StopIteration"):
        next(iter(_labels(betons["raw"], Stage(stop, False), ToTensor())))


def test_a_pass_begins_with_its_first_batch(betons) -> None:
    begun = []

    def count(batch, _):
        begun.append(batch[0, 0])
        return batch

    loader = _labels(betons["raw"], Stage(count, False), ToTensor())
    threads = threading.active_count()
    iter(loader)
    first, second, closed = iter(loader), iter(loader), iter(loader)
    time.sleep(0.1)
    assert (begun, threading.active_count()) == ([], threads)
    loader.load_state_dict({**loader.state_dict(), "epoch": 4, "batch": 2})
    assert next(first)[0][0, 0] == 8
    assert loader.position == (4, 3)
    loader.set_epoch(7)
    next(second)
    assert loader.position == (7, 1)
    closed.close()
    with pytest.raises(StopIteration):
        next(closed)
    assert loader.next_epoch == 8


def test_a_pass_ends_once(betons) -> None:
    loader = _labels(betons["raw"], ToTensor(), drop_last=False)
    batches = iter(loader)
    assert sum(len(labels) for (labels,) in batches) == COUNT
    with pytest.raises(StopIteration):
        next(batches)
    batches.close()
    opened = iter(loader)
    next(opened)
    opened.close()
    opened.close()
    with pytest.raises(StopIteration):
        next(opened)


def test_epochs_number_order_and_augmentation(betons) -> None:
    def passes(loader: Loader, count: int) -> list[list[tuple[int, bytes]]]:
        return [[(int(y), x.numpy().tobytes()) for xs, ys in loader for x, y in zip(xs, ys)] for _ in range(count)]

    def create() -> Loader:
        pipelines = {"image": [CropMixRGBImageDecoder((8, 8)), ToTensor()]}
        return Loader(betons["raw"], 4, num_workers=2, order=OrderOption.RANDOM, seed=3, pipelines=pipelines)

    three = passes(create(), 3)
    assert three[0] != three[1] != three[2]
    resumed = create()
    resumed.set_epoch(1)
    assert passes(resumed, 2) == three[1:]


def test_pipelines_serve_two_loaders(betons) -> None:
    pipelines = {"image": [CropMixRGBImageDecoder((8, 8)), ToTensor()], "label": None}
    for _ in range(2):
        (images,) = next(iter(Loader(betons["raw"], 4, num_workers=1, pipelines=pipelines)))
        assert images.shape == (4, 8, 8, 3)
    assert len(pipelines["image"]) == 2


def test_filter_keeps_rows_and_guards(betons) -> None:
    pipelines = {"image": [CropMixRGBImageDecoder((8, 8)), ToTensor()]}
    options = {"num_workers": 1, "order": OrderOption.RANDOM, "seed": 2, "drop_last": False, "pipelines": pipelines}
    loader = Loader(betons["raw"], 4, indices=np.arange(COUNT - 1, -1, -1), **options)
    some = loader.filter("label", lambda label: int(label) % 9 == 5).filter("label", lambda label: int(label) > 5)
    assert type(some) is Loader
    assert some.indices.tolist() == [32, 23, 14]
    pixels = {int(label): image.numpy().tobytes() for images, labels in loader for image, label in zip(images, labels)}
    some.set_epoch(0)
    for images, labels in some:
        assert sorted(labels[:, 0].tolist()) == [14, 23, 32]
        assert [image.numpy().tobytes() for image in images] == [pixels[int(label)] for label in labels]
    with pytest.raises(ValueError, match="the fields are image, label, got 'lable'"):
        loader.filter("lable", bool)
    with pytest.raises(ValueError, match=f"no label of its {COUNT} samples meets the condition"):
        loader.filter("label", lambda label: False)


@pytest.mark.parametrize(
    ("pipelines", "message"),
    [
        ({"lable": [IntDecoder()]}, "there is no field 'lable'; the fields are image, label"),
        ({"image": None, "two": PipelineSpec("lable")}, "there is no field 'lable'; the fields are image, label"),
        ({"image": 3}, "image must be a list of operations, a PipelineSpec, or None, got 3"),
        ({"image": [CropMixRGBImageDecoder]}, "image must have operations and torch modules, not a class, got <class"),
        ({"label": [IntDecoder(), "x"]}, "label must have operations and torch modules, got 'x'"),
        (
            {"label": [CropMixRGBImageDecoder()]},
            "label: a decoder must be .* its field, IntField; got CropMixRGBImageDecoder in place 0",
        ),
        ({"image": [IntDecoder()]}, "its field, RGBImageField; got IntDecoder in place 0"),
        ({"image": [CropMixRGBImageDecoder()] * 2}, "image: .*; got CropMixRGBImageDecoder in place 1"),
        ({"label": PipelineSpec("label", NDArrayDecoder())}, "label: .* IntField; got NDArrayDecoder in place 0"),
        (
            {"label": PipelineSpec(ToTensor(), transforms=[IntDecoder()])},
            "label: .* its field; got IntDecoder in place 0",
        ),
    ],
)
def test_wrong_pipelines_are_named(betons, pipelines: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(betons["raw"], 4, pipelines=pipelines)


def test_an_order_of_ones_own(betons) -> None:
    class Twice(TraversalOrder):
        def sample_order(self, epoch: int) -> np.ndarray:
            return np.repeat(self.indices, 2)[epoch:]

    loader = _labels(betons["raw"], ToTensor(), order=Twice, drop_last=False, indices=[4, 9, 2])
    assert len(loader) == 2
    assert [label for (labels,) in loader for label in labels[:, 0].tolist()] == [4, 4, 9, 9, 2, 2]
    assert [label for (labels,) in loader for label in labels[:, 0].tolist()] == [4, 9, 9, 2, 2]
    with pytest.raises(ValueError, match=r"order must be one of .*, or a subclass of TraversalOrder, got 'random'"):
        _labels(betons["raw"], ToTensor(), order="random")


def test_torchs_threads_stay(betons) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in _labels(betons["raw"], ToTensor()):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_workers_default_to_the_cores_that_may_be_used(betons, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Loader(betons["raw"], 4, pipelines={"image": None}).num_workers == len(os.sched_getaffinity(0))
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", 1)
    assert Loader(betons["raw"], 4, pipelines={"image": None}).num_workers == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": COUNT + 1}, f"batch_size {COUNT + 1} is above its {COUNT} samples"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": 4, "batches_ahead": 0}, "batches_ahead must be >= 1, got 0"),
        ({"batch_size": 4, "indices": [3, COUNT]}, f"indices must be in 0 to {COUNT - 1}, .* got {COUNT}"),
        ({"batch_size": 4, "indices": [-1]}, f"indices must be in 0 to {COUNT - 1}, .* got -1"),
        ({"batch_size": 4, "indices": [0.5]}, r"indices must be integers, .* got float64 \(1,\)"),
        ({"batch_size": 4, "indices": [True] * COUNT}, "indices must be integers, .* got bool"),
        ({"batch_size": 4, "indices": [[1, 2]]}, r"indices must be integers, .* got int64 \(1, 2\)"),
        ({"batch_size": 4, "indices": []}, r"indices must be integers, .* \(0,\)"),
        ({"batch_size": 4, "num_workers": 10_000}, "num_workers must be <= .*, got 10000"),
    ],
)
def test_wrong_options_are_named(betons, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(betons["raw"], pipelines={"image": None}, **options)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.beton: no such file or directory"):
        Loader(tmp_path / "missing.beton", 4)


def _views(loader: Loader, most: int = COUNT) -> list[tuple[list[int], bytes]]:
    """Labels and pixels of the batches of a pass, or of its first ones."""
    batches = []
    for images, labels in loader:
        batches.append((labels[:, 0].tolist(), images.numpy().tobytes()))
        if len(batches) == most:
            break
    return batches


@pytest.mark.parametrize(
    ("order", "os_cache"),
    [
        (OrderOption.SEQUENTIAL, True),
        (OrderOption.RANDOM, True),
        (OrderOption.RANDOM, False),
        (OrderOption.QUASI_RANDOM, True),
        (OrderOption.QUASI_RANDOM, False),
    ],
)
def test_a_run_goes_on_where_its_state_was_taken(betons, order, os_cache: bool) -> None:
    def create(**options) -> Loader:
        options = {"num_workers": 1, "order": order, "os_cache": os_cache, "seed": 5, "drop_last": False, **options}
        pipelines = {"image": [CropMixRGBImageDecoder((8, 8)), ToTensor()]}
        return Loader(betons["raw"], 8, pipelines=pipelines, **options)

    whole = create()
    epochs = [_views(whole) for _ in range(3)]
    assert [len(batches) for batches in epochs] == [5, 5, 5]
    if order != OrderOption.SEQUENTIAL:
        assert sorted(label for labels, _ in epochs[1] for label in labels) == list(range(COUNT))
        assert [labels for labels, _ in epochs[0]] != [labels for labels, _ in epochs[1]]
    broken_off = create()
    _views(broken_off)
    _views(broken_off, most=2)
    state = broken_off.state_dict()
    assert state == {"epoch": 1, "batch": 2, "seed": 5, "batch_size": 8, "samples": COUNT}
    resumed = create()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert _views(resumed) == epochs[1][2:]
    assert resumed.state_dict()["epoch"] == 2
    assert _views(resumed) == epochs[2]
    resumed.load_state_dict(whole.state_dict() | {"epoch": 0, "batch": 0})
    assert _views(resumed) == epochs[0]
    with pytest.raises(ValueError, match="the state is of a loader with seed=6, this one has 5"):
        resumed.load_state_dict(state | {"seed": 6})


def test_large_buffers_are_said(betons, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Loader(betons["jpg"], 4, pipelines={"image": [CropMixRGBImageDecoder((8, 8))]})
    monkeypatch.setattr(ffcv_cropmix.loader, "_LARGE", 5 * 4 * 8 * 8 * 3 / memory)
    with pytest.warns(ResourceWarning, match="jpg.beton: the buffers of batch_size=4 and batches_ahead=3 take"):
        Loader(betons["jpg"], 4, pipelines={"image": [CropMixRGBImageDecoder((8, 8))]})


def test_sizes_of_buffers_do_not_overflow(betons) -> None:
    class Large(Operation):  # as SimpleRGBImageDecoder's: sizes are those of the metadata
        def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
            return previous_state, AllocationQuery((np.uint16(60_000), np.uint16(50_000), 3), np.dtype("u1"))

        def generate_code(self):
            return lambda batch, memory: batch

    with pytest.warns(ResourceWarning, match=r"take 167\.6 GiB"):
        Loader(betons["raw"], 4, pipelines={"image": None, "label": [IntDecoder(), Large()]})


def test_only_an_integer_label_is_a_class(betons) -> None:
    loader = Loader(betons["raw"], 4, pipelines={"image": None})
    assert loader.describe(DecodeError(5, 2)).label == "5"
    loader.reader.fields["label"] = NDArrayField(np.dtype("f4"), (2,))  # its column has addresses
    assert loader.describe(DecodeError(5, 2)).label is None
