"""A run around its loop, with a loader that has no images."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.traversal_order import QuasiRandom
from torch import nn

from ffcv_cropmix import training
from ffcv_cropmix.errors import DataError
from ffcv_cropmix.training.config import LoggingConfig
from ffcv_cropmix.training.distributed import Processes, join
from ffcv_cropmix.training.models import create_sgd
from ffcv_cropmix.training.run import Run
from ffcv_cropmix.training.safe_load import safe_load

REPOSITORY = Path(__file__).parents[2]
STEPS = 6


class _Loader:
    """What a run asks of a loader; a batch is its number."""

    batch_size, fname = 4, ""

    def __init__(self, order: Any) -> None:
        self.traversal_order, self.state = order, {"epoch": 0, "batch": 0}

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[int]]:
        first, self.state = self.state["batch"], {"epoch": self.state["epoch"] + 1, "batch": 0}
        return ((number,) for number in range(first, STEPS))

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.state = dict(state)


@dataclass
class _Training:
    epochs: int
    seed: int


@dataclass
class _Config:
    may_differ = frozenset(["logging", "resume"])

    training: _Training
    logging: LoggingConfig
    resume: str | None


def train(
    folder: Path,
    *,
    resume: str | None = None,
    seed: int = 0,
    labels: Sequence[int] = range(24),
    quasi_random: bool = False,
    nan_at: Any = None,
    signal_at: Any = None,
    number: int = signal.SIGTERM,
    processes: Processes | None = None,
) -> list[tuple[int, int]]:
    """Train for two epochs; the steps that were done."""
    beton = SimpleNamespace(metadata=labels, column=lambda _: np.array(labels))
    order = QuasiRandom.__new__(QuasiRandom) if quasi_random else None
    network, done = nn.Linear(2, 2), []
    optimizer = create_sgd(network.parameters(), 0.1, momentum=0.9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.run, "open_labelled", lambda _: beton)
        run = Run(
            _Config(_Training(epochs=2, seed=seed), LoggingConfig(folder=str(folder), tensorboard=0), resume),
            _Loader(order),  # type: ignore[arg-type]
            {"model": network, "optimizer": optimizer},
            processes=processes or Processes(torch.device("cpu")),
        )
    for epoch in run.epochs():
        for _ in run.steps():
            [step] = run.next_batch()
            if signal_at == (epoch, step):
                os.kill(os.getpid(), number)
            loss = network(torch.ones(1, 2)).square().sum()
            if nan_at and (epoch, step) >= nan_at:
                loss = loss * torch.nan
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.add_loss(loss)
            done.append((epoch, step))
        run.end_epoch(val_loss=math.nan)  # weights may be finite though
    return done


ALL = [(epoch, step) for epoch in range(2) for step in range(STEPS)]


@pytest.mark.parametrize(
    "stop", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]
)
def test_a_signal_leaves_a_checkpoint(stop: signal.Signals, tmp_path: Path, signals: None, capsys) -> None:
    signal.signal(stop, signal.SIG_DFL)  # these tests may run under nohup
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, signal_at=(1, 2), number=stop)
    assert ended.value.code == 128 + stop
    assert capsys.readouterr().out.endswith(
        f"{stop.name}: stopped after step 3 of epoch 2; continue with --resume=auto\n"
    )
    assert train(tmp_path, resume="auto") == [(1, 3), (1, 4), (1, 5)]


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path: Path, signals: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert train(tmp_path, signal_at=(0, 2), number=signal.SIGHUP) == ALL


@pytest.mark.parametrize("nan_at", [(0, 0), (0, 5), (1, 0), (1, 2), (1, 4), (1, 5)])
@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_that_is_not_finite_is_saved(
    nan_at: tuple, stopped: bool, tmp_path: Path, signals: None, capsys
) -> None:
    at = nan_at if stopped else None
    with pytest.raises(DataError, match=r"loss is NaN or infinite at step \d of epoch \d: try a smaller lr") as ended:
        train(tmp_path, nan_at=nan_at, signal_at=at)
    step, epoch = int(str(ended.value).split(" of epoch")[0].split()[-1]) - 1, nan_at[0]
    assert nan_at[1] <= step <= nan_at[1] + 1
    saved = tmp_path / "checkpoint.pt"
    assert saved.exists() == (epoch == 1)
    if epoch == 1:
        assert str(ended.value).endswith(f"; {saved} is unchanged")
        content = safe_load(saved)
        assert content["progress"]["epoch"] == 1
        assert all(value.isfinite().all() for value in content["model"].values())
        assert len((tmp_path / "log").read_text().splitlines()) == 1
        assert train(tmp_path, resume="auto") == ALL[STEPS:]


def test_another_runs_checkpoint_replaces_no_run(tmp_path: Path, signals: None) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second):
        train(folder)
    before = {path.name: path.read_bytes() for path in second.iterdir()}
    with pytest.raises(DataError, match=r"second already holds another run than .*first/checkpoint.pt"):
        train(second, resume=f"{first}/checkpoint.pt")
    assert {path.name: path.read_bytes() for path in second.iterdir()} == before
    assert train(third, resume=f"{first}/checkpoint.pt") == []
    assert (third / "log").read_bytes() == (first / "log").read_bytes()


def test_a_run_that_was_stopped_before_its_first_epoch_ended_is_not_lost(tmp_path: Path, signals: None) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, signal_at=(0, 2))
    with pytest.raises(DataError, match="already holds a run"):
        train(tmp_path)
    assert train(tmp_path, resume="auto") == ALL[3:]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"labels": range(12)}, "of a run with (training set size 24, not 12|checksum of the labels .* not )"),
        ({"labels": range(23, -1, -1)}, "is of a run with checksum of the labels .*, not "),
        ({"quasi_random": True}, "is of a run with (micro-batch size.* None, not 4|processes None, not 1)"),
        ({"seed": 1}, "is of a run with training.seed=0, not 1"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(other: dict, message: str, tmp_path: Path, signals: None) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, signal_at=(1, 2))
    before = (tmp_path / "checkpoint.pt").read_bytes(), (tmp_path / "log").read_bytes()
    with pytest.raises(DataError, match=message):
        train(tmp_path, resume="auto", **other)
    assert ((tmp_path / "checkpoint.pt").read_bytes(), (tmp_path / "log").read_bytes()) == before
    assert train(tmp_path, resume="auto") == ALL[9:]


BY_TWO: list[tuple[list[dict[str, Any]], str]] = [
    ([{"folder": "here", "signal_at": (1, 2)}, {"folder": "here"}], "stopped"),
    (
        [{"folder": "here", "resume": "auto"}, {"folder": "there", "resume": "auto"}],
        "process 0 starts at epoch 2, step 5, process 1 at epoch 1, step 1, or with another log: ",
    ),
    (
        [{"folder": "here", "resume": "auto"}, {"folder": "here", "resume": "auto", "seed": 1}],
        "process 1: here/checkpoint.pt is of a run with training.seed=0, not 1",
    ),
    (
        [{"folder": "here", "resume": "auto"}, {"folder": "here", "resume": "gone.pt"}],
        "process 1: gone.pt: no such file or directory",
    ),
    (
        [{"folder": "new"}, {"folder": "new", "seed": 1}],
        "process 1 has training.seed 1, process 0 has 0: they must agree",
    ),
    (
        [{"folder": "new"}, {"folder": "new", "labels": [0] * 24}],
        "process 1 has checksum of the labels ",
    ),
    ([{"folder": "here"}, {"folder": "other"}], "here already holds a run"),
    ([{"folder": "new"}, {"folder": "new", "nan_at": (1, 2)}], "the training loss is NaN or infinite at step "),
    ([{"folder": "here", "resume": "auto"}] * 2, "the rest"),
]
"""What each process is told, and what both say"""


def test_two_processes_begin_and_end_together(tmp_path: Path) -> None:
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29714"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", "from tests.training.test_run import main; main()"]
    processes = []
    for rank in ("0", "1"):
        own = {**os.environ, **environment, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=own, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=200)[1] for process in processes]
    for messages, process in zip(said, processes):
        assert process.returncode == 0, messages
        lines = [line.removeprefix("case: ") for line in messages.splitlines() if line.startswith("case: ")]
        assert len(lines) == len(BY_TWO)
        for line, (_, expected) in zip(lines, BY_TWO):
            assert line.startswith(expected)


def main() -> None:
    """One of the two processes."""
    processes = join(0)
    for options, _ in BY_TWO:
        own = dict(options[processes.rank])
        try:
            done = train(Path(own.pop("folder")), processes=processes, **own)
            said = "the rest" if done == ALL[10:] else str(done)
        except DataError as error:
            said = str(error)
        except SystemExit:
            said = "stopped"
        print(f"case: {said}", file=sys.stderr)
