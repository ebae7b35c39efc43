"""The file beside the .beton file."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from ffcv_cropmix.data.sidecar import (
    Sidecar,
    encode_digests,
    read_sidecar,
    sample_checksum,
    sidecar_path,
    tables_checksum,
    write_sidecar,
)
from ffcv_cropmix.errors import DataError

GOOD = {"dataset": "imagefolder", "split": "val", "classes": ["ä", "b"], "counts": [1, 2]}


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    sidecar = Sidecar(**GOOD, options={"max_resolution": 500}, versions={"ffcv": "1.0.2"})
    with sidecar_path(tmp_path / "x.beton").open("wb") as file:
        write_sidecar(file, sidecar)
    assert read_sidecar(tmp_path / "x.beton") == sidecar
    assert sidecar.digests() is None
    assert [path.name for path in tmp_path.iterdir()] == ["x.beton.json"]


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path / "x.beton") is None


def test_checksums() -> None:
    digests = np.array([sample_checksum(b""), sample_checksum(np.frombuffer(b"abc", np.uint8))], np.uint64)
    assert digests.tolist() == [0xEF46DB3751D8E999, 0x44BC2CF5AD770999]  # XXH64's, seed 0
    sidecar = Sidecar(**GOOD, checksums=encode_digests(digests))
    assert base64.b64decode(sidecar.checksums) == bytes.fromhex("99e9d85137db46ef990977adf52cbc44")
    assert sidecar.digests().dtype == np.uint64
    np.testing.assert_array_equal(sidecar.digests(), digests)
    assert tables_checksum([b"a", np.frombuffer(b"bc", np.uint8)]) == "44bc2cf5ad770999"
    with pytest.raises(DataError, match="checksums are garbled"):
        Sidecar(**GOOD, checksums="AAAA").digests()


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
        json.dumps(GOOD | {"checksums": "AAAA"}),
        json.dumps(GOOD | {"checksums": "AAAAAAAAAA=!"}),
        json.dumps(GOOD | {"checksums": 3}),
    ],
)
def test_a_garbled_one_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.beton.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"x\.beton\.json is not a sidecar") as caught:
        read_sidecar(tmp_path / "x.beton")
    assert "\n" not in str(caught.value)
