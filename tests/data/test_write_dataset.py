"""write_dataset.py as its users start it."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ffcv.reader import Reader
from PIL import Image

from ffcv_cropmix.data.sidecar import read_sidecar
from ffcv_cropmix.errors import DataError

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
        ("--compress_probability=1.5", "--compress_probability is in [0, 1], got 1.5"),
        ("--jpeg_quality=101", "--jpeg_quality is in 0 to 100, got 101"),
        ("--num_workers=0", "--num_workers is at least 1, got 0"),
        ("--chunk_size=0", "--chunk_size is at least 1, got 0"),
        ("--subset=0", "--subset is at least 1, or -1, got 0"),
        ("--dataset=cifar10", "--data_dir is needed for cifar10, got None"),
        ("--write_path=/nowhere/x.beton", "--write_path is a file in a folder that exists, got /nowhere/x.beton"),
        ("--write_path=/tmp", "--write_path is a file, got /tmp"),
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
    result = _run("--data_dir", tmp_path / "images", "--write_path", out)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {tmp_path}/images/a/bad.jpg cannot be converted: ")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    expected = (1, f"error: {tmp_path}/none: no such folder")
    assert _refused(monkeypatch, capsys, "--data_dir", tmp_path / "none", "--write_path", out) == expected


def test_sidecar_missing_or_garbled(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path / "x.beton") is None
    for text in ("", "[1]", "{}", json.dumps({"classes": 1, "extra": 2})):
        (tmp_path / "x.beton.json").write_text(text)
        with pytest.raises(DataError, match=r"x\.beton\.json is not a sidecar"):
            read_sidecar(tmp_path / "x.beton")
