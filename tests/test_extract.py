"""python -m ffcv_cropmix.extract, as its users start it."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_cropmix import extract
from ffcv_cropmix.data.reader import Beton
from ffcv_cropmix.errors import run_program
from tests.betons import COUNT, damaged, stored_image


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[object, str]:
        """Exit status, or the message of an error; stdout."""
        monkeypatch.setattr(sys, "argv", ["extract", *map(str, arguments)])
        try:
            run_program(extract.main)
        except SystemExit as end:
            return end.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


def test_the_same_pixels(run, betons, sealed, sealed_dct: Path, tmp_path: Path) -> None:
    assert run(sealed_dct, tmp_path / "dct") == (0, f"{tmp_path}/dct: {COUNT} images\n")
    assert run(sealed["jpg"], tmp_path / "jpg")[0] == run(betons["raw"], tmp_path / "raw", "--rows", 30, 2)[0] == 0
    jpg = Beton(sealed["jpg"])
    for row in range(COUNT):
        ours, theirs = (tmp_path / mode / f"class {row}" / f"{row:02d}.jpg" for mode in ("dct", "jpg"))
        assert theirs.read_bytes() == jpg.read("image", row).tobytes()
        assert (np.asarray(Image.open(ours)) == np.asarray(Image.open(BytesIO(theirs.read_bytes())))).all()
    files = sorted(path for path in (tmp_path / "raw").rglob("*") if path.is_file())
    assert [path.relative_to(tmp_path / "raw").as_posix() for path in files] == ["02/02.png", "30/30.png"]
    assert (np.asarray(Image.open(files[1])) == stored_image(betons["raw"], 30)).all()


def test_errors_leave_nothing(run, sealed, sealed_dct: Path, tmp_path: Path) -> None:
    path = damaged(sealed_dct, tmp_path / "x.beton", 11, "a bit")
    target = tmp_path / "images"
    assert run(path, target)[0] == f"error: {path}, sample 11: its coefficients are damaged"
    assert run(path, target, "--rows", COUNT)[0] == f"error: {path} has no row {COUNT}: there are {COUNT}, from 0"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.beton"]
    target.mkdir()
    (target / "x").touch()
    assert run(sealed_dct, target)[0] == f"error: {target} exists and is not an empty folder: name another one"
    assert [entry.name for entry in target.iterdir()] == ["x"]


def test_names_of_classes_that_are_none_for_folders() -> None:
    assert extract._folders(["cat", "dog/wolf"]) == ["cat", "dog_wolf"]
    assert extract._folders(["a/b", "a_b"]) == extract._folders(["..", "b"]) == ["0", "1"]
