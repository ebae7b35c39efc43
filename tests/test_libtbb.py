"""Where numba finds threads on a machine without libgomp."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from ffcv_cropmix import libtbb


@pytest.mark.parametrize("bare", [False, True])
def test_tbb_of_pypi_is_loaded_where_there_is_nothing_else(bare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def import_module(name: str) -> None:
        if bare:
            raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(libtbb, "import_module", import_module)
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode: loaded.append(Path(path)))
    libtbb.load()
    assert [path.name for path in loaded] == (["libtbb.so.12"] if bare else [])
    assert all(path.exists() for path in loaded)
