"""Tests of ffcv_cropmix.kernels.jit."""

from __future__ import annotations

from typing import Any

import pytest
from numba.core import config
from numba.core.codegen import JITCodeLibrary

from ffcv_cropmix.kernels.jit import entry, jit


@jit
def _twice(number):
    return 2 * number


@jit
def _twice_and_one(number):
    return _twice(number) + 1


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="nothing is compiled")  # type: ignore[attr-defined]
def test_no_machine_code_for_what_only_compiled_code_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = JITCodeLibrary._finalize_specific

    def record(library: Any) -> None:
        made.append(library.name)
        make(library)

    monkeypatch.setattr(JITCodeLibrary, "_finalize_specific", record)

    @entry
    def called_by_python(number):
        return _twice_and_one(number) + _twice(number)

    assert called_by_python(10) == 41
    names = [name.rpartition(".")[2] for name in made]
    assert "called_by_python" in names
    assert "_twice" not in names and "_twice_and_one" not in names
