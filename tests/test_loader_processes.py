"""The loader in processes of its own: forks, interrupts, distributed training, what is printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ffcv.loader import OrderOption

from ffcv_cropmix import Loader
from ffcv_cropmix.errors import DataError
from tests.betons import COUNT


def _python(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


READ = """
import os, sys
from ffcv_cropmix import Loader
from ffcv.fields.basics import IntDecoder
from ffcv.transforms import ToTensor
pipelines = {"image": None, "label": [IntDecoder(), ToTensor()]}
"""
FORK = """
loader = Loader(sys.argv[1], 4, num_workers=2, pipelines=pipelines)
for _ in loader:
    pass
child = os.fork()
if child == 0:
    try:
        next(iter(loader))
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_threads_that_would_end_the_process(betons) -> None:
    code = READ + "Loader(sys.argv[1], 4, pipelines=pipelines)"
    runs = {
        "layer is workqueue, which ends the process": _python(code, betons["raw"], NUMBA_THREADING_LAYER="workqueue"),
        "this process was forked from one in which numba's threads run": _python(READ + FORK, betons["raw"]),
    }
    for message, process in runs.items():
        assert message in "".join(process.communicate(timeout=100))


INTERRUPTED = """
import signal, threading, time
from tests.test_loader import Stage
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
pipelines["label"][1:1] = [Stage(lambda batch, _: time.sleep(1000), False)]
batches = iter(Loader(sys.argv[1], 1, num_workers=1, os_cache=False, pipelines=pipelines))
def interrupt():
    time.sleep(5)
    print(time.monotonic(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    next(batches)
finally:
    print(time.monotonic(), flush=True)
"""


def test_an_interrupt_ends_a_wait(betons) -> None:
    process = _python(READ + INTERRUPTED, betons["raw"])
    out, error = process.communicate(timeout=100)
    interrupted, ended = map(float, out.split())
    assert ended - interrupted < 2
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT


DISTRIBUTED = """
from ffcv.loader import OrderOption
import torch
rank, folder = int(sys.argv[2]), sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
for order, drop_last, seed in (("SEQUENTIAL", False, 1), ("RANDOM", False, None), ("RANDOM", True, 1),
                               ("QUASI_RANDOM", True, 1)):
    order = OrderOption[order]
    loader = Loader(sys.argv[1], 4, num_workers=1, pipelines=pipelines, order=order, distributed=True, seed=seed,
                    drop_last=drop_last, os_cache=order != OrderOption.QUASI_RANDOM)
    print(len(loader), loader.seed, *(int(label) for (labels,) in loader for label in labels))
"""


def test_processes_share_the_samples(betons, tmp_path: Path) -> None:
    processes = [_python(READ + DISTRIBUTED, betons["raw"], rank, tmp_path) for rank in range(3)]
    lines = []
    for process in processes:
        out, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
        lines.append([[int(number) for number in line.split()] for line in out.splitlines()])
    sequential, repeating, *dropping = zip(*lines)
    assert sorted(label for _, _, *labels in sequential for label in labels) == list(range(COUNT))  # 13 + 12 + 12
    assert [batches for batches, *_ in sequential] == [4, 3, 3]
    assert len({seed for _, seed, *_ in repeating}) == 1
    sampled = [label for _, _, *labels in repeating for label in labels]
    assert (len(sampled), set(sampled)) == (39, set(range(COUNT)))
    for order, dealt in zip((OrderOption.RANDOM, OrderOption.QUASI_RANDOM), dropping):
        cached = order != OrderOption.QUASI_RANDOM
        alone = Loader(betons["raw"], 4, 1, cached, order, seed=1, pipelines={"image": None})
        whole = [label for (labels,) in alone for label in labels.ravel().tolist()]
        assert [label for turn in zip(*(labels for _, _, *labels in dealt)) for label in turn] == whole


def test_more_processes_than_samples(betons, monkeypatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    options: dict = {"pipelines": {"image": None}, "distributed": True, "seed": 0, "drop_last": False}
    assert len(Loader(betons["raw"], 4, indices=[1, 2, 3], **options)) == 1
    with pytest.raises(DataError, match=r"raw.*: 2 samples are not enough for 3 processes: use fewer"):
        Loader(betons["raw"], 4, indices=[1, 2], **options)


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
