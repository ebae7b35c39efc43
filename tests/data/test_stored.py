"""A .beton file from a .beton file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ffcv_cropmix.data.convert import convert
from ffcv_cropmix.data.encode import EncodeOptions
from ffcv_cropmix.data.reader import Beton
from ffcv_cropmix.data.sources import open_source
from ffcv_cropmix.errors import DataError
from tests.betons import COUNT, damaged, payload
from tests.data.test_dct import pixels
from tests.data.test_write_dataset import _refused, _run

KEEP = {"max_resolution": 0}


def test_the_same_samples_and_labels(sealed, sealed_dct: Path, tmp_path: Path) -> None:
    """jpg to dct and back, and both to raw: no loss."""
    jpg = Beton(sealed["jpg"])
    images = [pixels(jpg.read("image", row).tobytes()) for row in range(COUNT)]
    expected = {"dct": Beton(sealed_dct), "jpg": jpg}
    for origin, path in (("jpg", sealed["jpg"]), ("dct", sealed_dct)):
        source = open_source("beton", path, "val")
        assert (source.dataset, source.split, source.classes[11]) == ("beton", "train", "class 11")  # the sidecar's
        for mode in ("jpg", "dct", "raw"):
            out = tmp_path / f"{origin}-{mode}.beton"
            done = convert(source, out, EncodeOptions(write_mode=mode, **KEEP), num_workers=1)
            assert done.kept == (0 if mode == "raw" else COUNT)
            beton = Beton(out)
            assert beton.column("label").tolist() == list(range(COUNT))
            assert beton.sidecar.classes == source.classes
            for row in (0, 1, 5, 30):
                stored = beton.read("image", row)
                if mode == "raw":
                    assert stored.tobytes() == images[row].tobytes()
                elif mode == "dct" or origin == mode:
                    assert stored.tobytes() == expected[mode].read("image", row).tobytes()
                else:
                    assert (pixels(stored.tobytes()) == images[row]).all()


def test_subsets_and_files_without_sidecars(betons, tmp_path: Path) -> None:
    source = open_source("beton", betons["raw"], "val")
    assert (source.split, source.classes, len(source.images[:3])) == ("val", [str(k) for k in range(COUNT)], 3)
    rows = np.array([30, 2])
    few = replace(source, labels=source.labels[rows], images=[source.images[row] for row in rows])
    convert(few, tmp_path / "few.beton", EncodeOptions(write_mode="raw", **KEEP), num_workers=1)
    found, original = Beton(tmp_path / "few.beton"), Beton(betons["raw"])
    assert found.column("label").tolist() == [30, 2]
    assert [found.read("image", k).tobytes() for k in (0, 1)] == [original.read("image", r).tobytes() for r in (30, 2)]


def test_damage_is_named(sealed_dct: Path, tmp_path: Path) -> None:
    path = damaged(sealed_dct, tmp_path / "x.beton", 20, "a bit")
    with pytest.raises(DataError, match=rf"{path}, sample 20 cannot be converted: its coefficients are damaged"):
        convert(open_source("beton", path, ""), tmp_path / "y.beton", EncodeOptions(**KEEP), num_workers=1)
    done = convert(
        open_source("beton", path, ""), tmp_path / "y.beton", EncodeOptions(**KEEP), num_workers=1, on_error="skip"
    )
    assert (len(done.rows), [name for name, _ in done.skipped]) == (COUNT - 1, [f"{path}, sample 20"])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.beton: no such file"):
        open_source("beton", tmp_path / "x.beton", "train")


def test_write_dataset(sealed, sealed_dct: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "dct.beton"
    command = ("--dataset=beton", "--data_dir", sealed["jpg"], "--write_path", out, "--write_mode=dct", "--subset=9")
    dry = _run(*command, "--num_workers=1", "--dry_run")
    assert "dct.beton would have 9 images of 37 classes" in dry.stdout, dry.stderr
    monkeypatch.setattr(sys, "argv", ["write_dataset.py"])
    result = _run(*command, "--num_workers=1", "--dct_level=-1")
    assert f"{out}: 9 images of 37 classes" in result.stdout, result.stderr
    assert "9 JPEG files are stored without loss, as their coefficients\n" in result.stdout
    beton = Beton(out)
    assert (beton.sidecar.options["write_mode"], beton.sidecar.options["dct_level"]) == ("dct", -1)
    assert payload(out, 8)[1] > 1.1 * payload(sealed_dct, 8)[1]
    status, printed = _refused(monkeypatch, capsys, *command, "--dct_level=99")
    assert (status, printed) == (2, "error: dct_level must be in -131072 to 22, got 99")
