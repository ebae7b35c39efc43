"""Where Zstandard's library is found."""

from __future__ import annotations

import ctypes

import pytest

from ffcv_cropmix import libzstd
from ffcv_cropmix.errors import DataError


def test_the_systems_library_takes_the_place_of_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def missing(path: str) -> None:
        asked.append(path)
        raise OSError

    monkeypatch.setattr(libzstd, "find_spec", lambda name: None)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(DataError, match=r"^Zstandard's library is missing: pip install backports\.zstd, or install"):
        libzstd._open()
    assert asked == ["", "libzstd.so.1"]


def test_errors_are_negative() -> None:
    context, data = libzstd.new_context(), b"no frame"
    buffer = ctypes.create_string_buffer(data, len(data))
    assert libzstd.decompress(context, ctypes.addressof(buffer), 8, ctypes.addressof(buffer), 8) < 0
    libzstd.destroy_context(context)
