"""The file beside the .beton file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ffcv_cropmix.data.sidecar import Sidecar, read_sidecar, sidecar_path, write_sidecar
from ffcv_cropmix.errors import DataError

GOOD = {"dataset": "imagefolder", "split": "val", "classes": ["ä", "b"], "counts": [1, 2]}


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    sidecar = Sidecar(**GOOD, options={"max_resolution": 500}, versions={"ffcv": "1.0.2"})
    with sidecar_path(tmp_path / "x.beton").open("wb") as file:
        write_sidecar(file, sidecar)
        assert read_sidecar(tmp_path / "x.beton") == sidecar  # before the file is closed, too
    assert [path.name for path in tmp_path.iterdir()] == ["x.beton.json"]


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path / "x.beton") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "{}",
        "\xff",
        json.dumps(GOOD)[:-9],
        json.dumps(GOOD | {"extra": 2}),
        json.dumps(GOOD | {"classes": 2}),
        json.dumps(GOOD | {"classes": "ab"}),
        json.dumps(GOOD | {"classes": ["a", 1]}),
    ],
)
def test_a_garbled_one_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.beton.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"x\.beton\.json is not a sidecar") as caught:
        read_sidecar(tmp_path / "x.beton")
    assert "\n" not in str(caught.value)
