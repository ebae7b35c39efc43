"""Several processes: they do together what one does."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ffcv_cropmix.evaluation.accuracy import evaluate
from ffcv_cropmix.training import distributed
from ffcv_cropmix.training.config import DistConfig
from ffcv_cropmix.training.distributed import Processes, StopSignal, join, mute_closed_terminal, seed_step, split_batch

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((512, None, 8), (512, 1)),
        ((512, 4096, 8), (512, 1)),
        ((512, 4096, 1), (512, 8)),
        ((500, 4096, 1), (256, 16)),
        ((512, 4096, 16), (256, 1)),
        ((1, 6, 2), (1, 3)),
        ((4, 7, 1), (1, 7)),
    ],
)
def test_a_global_batch_is_split_equally(arguments: tuple, expected: tuple[int, int]) -> None:
    batch_size, global_batch_size, world_size = arguments
    assert split_batch(batch_size, global_batch_size, world_size=world_size) == expected


def test_a_global_batch_that_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="global_batch_size=4096 is not a multiple of 3 processes"):
        split_batch(512, 4096, world_size=3)


def test_a_signal_is_kept_and_a_later_one_ends_the_process(monkeypatch, signals: None) -> None:
    stop = StopSignal(Processes(torch.device("cpu")))
    assert stop.agreed() == 0
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # as a scheduler and torchrun send it
        os.kill(os.getpid(), number)
    assert stop.agreed() == stop.agreed() == signal.SIGTERM
    ended = []
    monkeypatch.setattr(distributed, "_SAME_SIGNAL", -1.0)
    monkeypatch.setattr(os, "kill", lambda _, number: ended.append((number, signal.getsignal(number))))
    signal.raise_signal(signal.SIGINT)
    assert ended == [(signal.SIGINT, signal.SIG_DFL)]


def test_a_first_process_that_cannot_be_reached_is_named(monkeypatch, capsys) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: started.append(arguments))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for host in ("127.0.0.1", ""):  # of one address, or of all
        with socket.create_server((host, 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(SystemExit):
                join(0, DistConfig(world_size=2, port=port))
        assert capsys.readouterr().err == f"error: dist.port={port}: address already in use: choose another one\n"
    with pytest.raises(SystemExit):
        join(0, DistConfig(world_size=2, address="no-such-host.invalid"))
    message = capsys.readouterr().err
    assert message.startswith("error: dist.address=no-such-host.invalid: ")
    assert message.count("\n") == 1
    assert not started
    monkeypatch.setattr(distributed, "_start_again", lambda _: started.append([]))
    join(0, DistConfig(world_size=1, port=port))
    assert not started


def test_writing_to_a_closed_terminal_does_not_fail(tmp_path: Path) -> None:
    keyboard, terminal = pty.openpty()
    with (tmp_path / "file").open("wb") as file:
        mute_closed_terminal(terminal, file.fileno())
        os.write(terminal, b"seen")
        assert os.read(keyboard, 9) == b"seen"
        os.close(keyboard)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(terminal, b"lost")
        mute_closed_terminal(terminal, file.fileno())
        os.write(terminal, b"lost")
        file.write(b"kept")
    os.close(terminal)
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_each_step_has_random_numbers_of_its_own() -> None:
    def sampled(*step: int) -> float:
        seed_step(*step)
        return float(torch.rand(()))

    first = sampled(0, 1, 2, 3)
    assert first == sampled(0, 1, 2, 3)
    assert len({first, sampled(1, 1, 2, 3), sampled(0, 2, 2, 3), sampled(0, 1, 3, 3), sampled(0, 1, 2, 4)}) == 5


def _evaluation(rank: int, count: int, samples: int = 11) -> list[float]:
    """Of the samples of a process, in batches of 2."""
    random = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(samples, 7, generator=random), torch.randint(7, (samples,), generator=random)
    images, labels = outputs[rank::count, :, None, None], labels[rank::count]
    result = evaluate(nn.Flatten(), zip(images.split(2), labels.split(2)), num_classes=7, flip_tta=False)
    assert len(result.confidence) == len(result.correct) == samples
    return [result.top_1, result.top_5, result.loss, result.rms_calibration_error, float(result.confidence.sum())]


EVALUATE = """
import json, sys, torch
from tests.training.test_distributed import _evaluation
rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/{count}", rank=rank, world_size=count)
print(json.dumps(_evaluation(rank, count)))
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("count", [2, 3])
def test_each_sample_is_evaluated_once_by_any_number_of_processes(count: int, tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", EVALUATE, str(rank), str(count), str(tmp_path)] for rank in range(count)]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert json.loads(out) == pytest.approx(_evaluation(0, 1), abs=1e-5)
