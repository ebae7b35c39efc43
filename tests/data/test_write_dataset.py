"""write_dataset.py as its users start it."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ffcv.reader import Reader
from PIL import Image

from ffcv_cropmix.data.sidecar import read_sidecar

REPOSITORY = Path(__file__).parents[2]


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "write_dataset.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_digits(tmp_path: Path) -> None:
    path = tmp_path / "val.beton"
    result = _run("--dataset=digits", "--split=val", "--write_path", path, "--subset=50", "--num_workers=1")
    assert result.returncode == 0, result.stderr
    assert "50 images of 10 classes" in result.stdout
    assert "val.beton: 50/50 in " in result.stderr
    assert " images/s, 00:00 left" in result.stderr
    reader = Reader(str(path))
    assert reader.num_samples == 50
    assert set(reader.metadata["f0"]["mode"]) == {0}
    sidecar = read_sidecar(path)
    assert sidecar.classes == list("0123456789")
    assert sidecar.counts == np.bincount(reader.metadata["f1"]).tolist()
    assert sidecar.options["jpeg_quality"] == 90
    assert {"ffcv", "ffcv_cropmix"} <= sidecar.versions.keys()


def _refused(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    """Exit status and message."""
    monkeypatch.setattr(sys, "argv", ["write_dataset.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "write_dataset.py"), run_name="__main__")
    code = ended.value.code
    return (code, capsys.readouterr().err.rstrip("\n")) if isinstance(code, int) else (1, str(code))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--dataset=imagenet", "argument --dataset: invalid choice: 'imagenet'"),
        ("--max_resolution=big", "argument --max_resolution: invalid int value: 'big'"),
        ("--max_resolution=-1", "--max_resolution is at least 0, got -1"),
        ("--write_mode=smart", "--smart_threshold BYTES is needed"),
        ("--smart_threshold=-1", "--smart_threshold is at least 0, got -1"),
        ("--compress_probability=1.5", "--compress_probability is in [0, 1], got 1.5"),
        ("--jpeg_quality=101", "--jpeg_quality is in 0 to 100, got 101"),
        ("--num_workers=0", "--num_workers is at least 1, got 0"),
        ("--chunk_size=0", "--chunk_size is at least 1, got 0"),
        ("--subset=0", "--subset is at least 1, or -1, got 0"),
        ("--dataset=cifar10", "--data_dir is needed for cifar10, got None"),
        ("--write_path=/nowhere/x.beton", "--write_path is a file in a folder that exists, got /nowhere/x.beton"),
        ("--write_path=/tmp", "--write_path is a file, and so is the .json beside it, got /tmp"),
        ("--epochs=3", "unrecognized arguments: --epochs=3"),
    ],
)
def test_wrong_options_are_answered_in_one_line(monkeypatch, capsys, tmp_path, change: str, message: str) -> None:
    good = ["--dataset=digits", f"--write_path={tmp_path / 'x.beton'}"]
    status, printed = _refused(monkeypatch, capsys, *good, change)
    assert status == 2
    assert message in printed
    assert "\n" not in printed
    assert not list(tmp_path.iterdir())


def test_a_bad_image_and_a_missing_folder_end_with_one_line(monkeypatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "images/a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images/a/good.png")
    (tmp_path / "images/a/bad.jpg").write_text("no image")
    out = tmp_path / "x.beton"
    Path(f"{out}.json").write_text("of an earlier file")
    result = _run("--data_dir", tmp_path / "images", "--write_path", out)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {tmp_path}/images/a/bad.jpg cannot be converted: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "x.beton.json"]
    assert Path(f"{out}.json").read_text() == "of an earlier file"
    expected = (1, f"error: {tmp_path}/none: no such folder")
    assert _refused(monkeypatch, capsys, "--data_dir", tmp_path / "none", "--write_path", out) == expected


def test_a_file_that_cannot_be_written_is_named(monkeypatch, capsys, tmp_path: Path) -> None:
    for path, reason in (("/proc/x.beton", "No such file"), (tmp_path / ("x" * 250), "File name too long")):
        status, printed = _refused(monkeypatch, capsys, "--dataset=digits", "--write_path", path)
        assert status == 1
        assert printed.startswith(f"error: {path} cannot be written: {reason}")
        assert "\n" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "status", "message"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_a_signal_ends_the_run(tmp_path: Path, number: signal.Signals, status: int, message: str) -> None:
    (tmp_path / "images/a").mkdir(parents=True)
    os.mkfifo(tmp_path / "images/a/0.png")  # a worker that opens it is stuck
    command = [
        sys.executable,
        "write_dataset.py",
        f"--data_dir={tmp_path / 'images'}",
        f"--write_path={tmp_path / 'x'}",
    ]
    run = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while run.poll() is None and len(children.read_text().split()) < 2:  # resource tracker and worker
        time.sleep(0.01)
    time.sleep(0.1)
    worker = Path(f"/proc/{children.read_text().split()[-1]}/status").read_text()
    blocked = int(worker.split("SigBlk:")[1].split()[0], 16)
    assert blocked == 1 << signal.SIGINT - 1  # from its first moment on: it would print a traceback
    sent = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # as Ctrl-C does: to the worker, which just starts, as well
    else:
        run.send_signal(number)
    assert run.communicate(timeout=20) == (None, message)
    assert run.returncode == status
    assert time.monotonic() - sent < 5
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
