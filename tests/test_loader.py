"""The loader raises what fails, ends what it starts, and leaves the process as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.loader import OrderOption
from ffcv.pipeline.operation import Operation
from ffcv.transforms import ToTensor

from ffcv_cropmix import CropMixRGBImageDecoder, Loader
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


def test_torchs_threads_stay(betons) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in _labels(betons["raw"], ToTensor()):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_workers_default_to_the_cores_that_may_be_used(betons) -> None:
    assert Loader(betons["raw"], 4, pipelines={"image": None}).num_workers == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": COUNT + 1}, f"batch_size {COUNT + 1} is above its {COUNT} samples"),
        ({"batch_size": 0}, "batch_size is at least 1, got 0"),
        ({"batch_size": 4, "num_workers": 10_000}, "num_workers is at most .*, got 10000"),
    ],
)
def test_wrong_options_are_named(betons, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(betons["raw"], pipelines={"image": None}, **options)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.beton: no such file or directory"):
        Loader(tmp_path / "missing.beton", 4)


QUIET = """
import gc, sys, numba, torch
threads = torch.get_num_threads()
from ffcv_cropmix import Loader, CropMixRGBImageDecoder
from ffcv.transforms import ToTensor
assert torch.get_num_threads() == threads
for os_cache in (True, False):
    for _ in range(3):
        pipelines = {"image": [CropMixRGBImageDecoder((4, 4)), ToTensor()]}
        loader = Loader(sys.argv[1], 4, num_workers=1, os_cache=os_cache, pipelines=pipelines)
        for _ in loader:
            break
        del loader
        gc.collect()
assert numba.uint8[::1].mutable  # FFCV's reader changes numba's own type: noise, sooner or later
"""


def test_nothing_is_printed(betons) -> None:
    command = [sys.executable, "-c", QUIET, str(betons["raw"])]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
