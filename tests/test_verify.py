"""python -m ffcv_cropmix.verify, as its users start it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from ffcv_cropmix import verify
from ffcv_cropmix.errors import run_program
from tests.betons import COUNT, damaged
from tests.jpegs import DAMAGES

DIFFERS = "the checksum differs: the data are not those that were written"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        monkeypatch.setattr(sys, "argv", ["verify", *map(str, arguments)])
        status: object = 0
        try:
            run_program(verify.main)
        except SystemExit as end:
            status = end.code
        out, error = capsys.readouterr()
        return (status, out, error) if isinstance(status, int) else (1, out, f"{status}\n")

    return run


def test_sound_files(run, betons, sealed) -> None:
    status, out, error = run(betons["raw"])
    assert (status, error) == (0, "")
    assert out.splitlines() == [
        f"{betons['raw']}: {COUNT} samples of image, label",
        "header, tables and pointers are sound; no checksums to compare with",
    ]
    status, out, error = run(sealed["jpg"], "--full", "--num_workers=2")
    assert status == 0
    assert out.splitlines() == [
        f"{sealed['jpg']}: {COUNT} samples of image, label, {COUNT} classes",
        "header, tables and pointers are sound; compared with the sidecar's",
        f"{COUNT} images decoded, 0 samples damaged",
    ]
    assert f"{sealed['jpg']}, image: 1/1 in" in error  # progress


def test_damaged_samples(run, betons, sealed, tmp_path: Path) -> None:
    path = damaged(betons["jpg"], tmp_path / "damaged.beton", 11, "truncated")
    assert run(path)[0] == 0  # their bytes are not read
    status, out, _ = run(path, "--full")
    assert status == 1
    assert out.splitlines()[2:] == [
        f"{COUNT} images decoded, 1 samples damaged",
        "  sample 11, of class 11: the JPEG is damaged, or neither RGB nor gray",
    ]
    path = damaged(sealed["raw"], path, 30, "a bit")
    shutil.copy(f"{sealed['raw']}.json", f"{path}.json")
    status, out, _ = run(path, "--full", "--json")
    assert status == 1
    result = json.loads(out)
    assert result["damaged"] == [{"index": 30, "label": "30 (class 30)", "cause": DIFFERS}]
    assert (result["samples"], result["decoded"], result["checksums"]) == (COUNT, COUNT, True)


def test_damage_does_not_spread(run, betons, tmp_path: Path) -> None:
    path = tmp_path / "damaged.beton"
    shutil.copy(betons["jpg"], path)
    for index, damage in enumerate(DAMAGES, 8):
        damaged(path, path, index, damage)
    result = json.loads(run(path, "--full", "--json", "--num_workers=1")[1])
    assert [sample["index"] for sample in result["damaged"]] == list(range(8, 8 + len(DAMAGES)))


def test_coefficients(run, sealed_dct: Path, tmp_path: Path) -> None:
    status, out, _ = run(sealed_dct, "--full", "--num_workers=2")
    assert (status, out.splitlines()[2]) == (0, f"{COUNT} images decoded, 0 samples damaged")
    path = damaged(sealed_dct, tmp_path / "damaged.beton", 11, "a bit")
    status, out, _ = run(path, "--full")
    assert status == 1
    assert out.splitlines()[2] == f"{COUNT} images decoded, 1 samples damaged"
    assert out.splitlines()[3].startswith("  sample 11, of class 11: ")


def test_the_summary_is_one_screen() -> None:
    samples = [{"index": k, "label": None, "cause": DIFFERS} for k in range(1234)]
    known = {"file": "x.beton", "samples": 2000, "fields": ["image"], "classes": None, "checksums": True}
    lines = verify.Verification(**known, decoded=2000, damaged=samples).summary().splitlines()
    assert len(lines) == 24
    assert lines[-1] == "  and 1,214 more: --json lists all"


def test_files_that_are_none(run, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    assert run(path) == (1, "", f"error: {path}: no such file or directory\n")
    path.touch()
    assert run(path) == (1, "", f"error: {path} is not a sound .beton file: it is empty\n")
    status, out, error = run(path, "--json")
    assert (status, error) == (1, "")
    assert json.loads(out) == {"file": str(path), "error": f"{path} is not a sound .beton file: it is empty"}


def test_wrong_options(run, betons) -> None:
    assert run() == (2, "", "error: the following arguments are required: file\n")
    status, _, error = run(betons["raw"], "--full", "--num_workers=999")
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith("error: num_workers must be <= ")
