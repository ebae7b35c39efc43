"""The run's folder."""

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ffcv_cropmix.errors import DataError
from ffcv_cropmix.training.logs import Meter, RunLog, claim

TRAINED: dict = {
    "train_loss": 0.5,
    "lr": 0.1,
    "images_per_second": 200.0,
    "seconds": 40.0,
    "waiting": 1.25,
}


def _record(epoch: int, **further: float) -> dict[str, Any]:
    return {"epoch": epoch, **TRAINED, **further}


EVALUATED = {"top_1": 97.5, "top_5": 99.25, "val_loss": 0.125, "rms_calibration_error": 3.5}


def _new(folder: Path, *resumed: Any) -> RunLog:
    folder.mkdir(parents=True, exist_ok=True)
    return RunLog(folder, {"training": {"epochs": 2}}, *resumed, tensorboard=False)


def test_params_hold_the_options(tmp_path: Path) -> None:
    _new(tmp_path / "deep" / "run")
    assert json.loads((tmp_path / "deep" / "run" / "params.json").read_text()) == {"training": {"epochs": 2}}


def test_one_json_line_an_epoch(tmp_path: Path, capsys) -> None:
    log = _new(tmp_path)
    log.add(_record(0), 2)
    log.add(_record(1, **EVALUATED), 2)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == [{"epoch": 0, **TRAINED}, {"epoch": 1, **TRAINED, **EVALUATED}]
    trained = "train loss 0.500, lr 0.1, 200 images/s, 1.2 % waiting"
    assert capsys.readouterr().out.splitlines() == [
        f"epoch 1/2: {trained}",
        f"epoch 2/2: {trained}, top_1 97.5, top_5 99.25, val_loss 0.125, rms_calibration_error 3.5",
    ]


def test_weights_are_the_plain_state_dict(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    path = _new(tmp_path).save_weights(network)
    assert path == tmp_path / "final_weights.pt"
    weights = torch.load(path, weights_only=True)
    assert list(weights) == list(network.state_dict())
    assert torch.equal(weights["0.weight"], network[0].weight)


def test_a_resumed_log_has_what_the_checkpoint_has(tmp_path: Path) -> None:
    log = _new(tmp_path)
    for epoch in range(3):
        log.add(_record(epoch), 4)
    resumed = _new(tmp_path, [_record(epoch) for epoch in range(2)])  # killed before the third was saved
    assert [record["epoch"] for record in resumed.records] == [0, 1]
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log").read_text().splitlines()] == [0, 1]
    resumed.add(_record(2), 4)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log").read_text().splitlines()] == [0, 1, 2]
    _new(tmp_path, [])  # killed before the first was saved
    assert not (tmp_path / "log").exists()


def test_tensorboard_gets_what_the_log_gets(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, {})
    log.add(_record(0), 2)
    log.add(_record(1, **EVALUATED), 2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("top_1")] == [(1, 97.5)]
    assert [event.value for event in events.Scalars("images_per_second")] == [200, 200]


def test_a_meter_counts_what_it_waited_for(monkeypatch) -> None:
    clock = iter([0, 0, 10, 11, 13, 15, 16, 20, 20])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    meter = Meter(64)  # started at 0
    for step, batch in enumerate(meter.watch("ab"), start=1):  # asked at 0: came at 10; asked at 13: came at 15
        assert batch in "ab"
        meter.step(torch.tensor(3.0 * step), step, 0.1)  # at 11 and 16
    assert meter.status() == "21 images/s, loss 3.000, lr 0.1, 33.3 % waiting"  # from 10 to 16
    meter.finish()
    assert (meter.seconds, meter.images_per_second, meter.waiting) == (20, 12.8, 20)


def test_an_epoch_that_does_not_fit_on_the_disk_leaves_the_log_as_it_was(tmp_path: Path, file_limit) -> None:
    log = _new(tmp_path)
    log.add(_record(0), 9)
    before = (tmp_path / "log").read_bytes()
    for room in (0, 5):  # bytes; the beginning of a line would be written
        with file_limit(len(before) + room), pytest.raises(DataError, match=r"log cannot be written: File too large"):
            log.add(_record(1), 9)
        assert (tmp_path / "log").read_bytes() == before


def test_tensorboards_failure_is_one_line(tmp_path: Path, file_limit, monkeypatch, capfd) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    with file_limit(0), pytest.raises(DataError, match="cannot be written"):
        RunLog(tmp_path, {})
    log = RunLog(tmp_path, {})
    [events] = tmp_path.glob("events.out*")
    with file_limit(events.stat().st_size), pytest.raises(DataError, match=f"{tmp_path} cannot be written: File too"):
        log._log = Path("/dev/null")
        for epoch in range(3):
            log.add(_record(epoch), 9)
    time.sleep(0.1)
    assert "Traceback" not in capfd.readouterr().err


def test_weights_that_do_not_fit_on_the_disk_leave_the_former_ones(tmp_path: Path, file_limit) -> None:
    log, network = _new(tmp_path), nn.Linear(300, 300)
    before = log.save_weights(network).read_bytes()
    with file_limit(100_000), pytest.raises(DataError, match=r"final_weights.pt cannot be written: File too large"):
        log.save_weights(network)
    assert (tmp_path / "final_weights.pt").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"final_weights.pt", "params.json"}


@pytest.mark.parametrize("name", ["checkpoint.pt", "log", "final_weights.pt"])
def test_a_folder_with_a_run_is_not_taken(name: str, tmp_path: Path) -> None:
    claim(tmp_path, None)
    claim(tmp_path, "auto")
    claim(tmp_path, "elsewhere.pt")
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=r"already holds a run: .*, continue the run with --resume=auto"):
        claim(tmp_path, None)
    if name != "checkpoint.pt":
        with pytest.raises(DataError, match=r"holds a run without its checkpoint.pt"):
            claim(tmp_path, "auto")
    (tmp_path / "checkpoint.pt").write_text("")
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoint.pt").write_text("")
    with pytest.raises(DataError, match=r"already holds another run than .*other/checkpoint.pt"):
        claim(tmp_path, str(other / "checkpoint.pt"))
    (tmp_path / "link").symlink_to(tmp_path)
    for resume in ("auto", f"{tmp_path}/checkpoint.pt", f"{other}/../checkpoint.pt", f"{tmp_path}/link/checkpoint.pt"):
        claim(tmp_path, resume)


def _claim_and_wait(folder: Path, claimed: Any) -> None:
    claim(folder, None)
    claimed.set()
    time.sleep(100)


def test_one_run_a_folder_until_it_is_killed(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    claimed = processes.Event()
    first = processes.Process(target=_claim_and_wait, args=(tmp_path, claimed))
    first.start()
    assert claimed.wait(30)
    holder = f"process {first.pid} on {socket.gethostname()}"
    for resume in (None, "auto"):
        with pytest.raises(DataError) as refused:
            claim(tmp_path, resume)
        assert str(refused.value) == f"another run, {holder}, is writing to {tmp_path}: choose another folder"
    first.kill()
    first.join()
    claim(tmp_path, None)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/run cannot be written: Not a directory"):
        claim(tmp_path / "file" / "run", None)
