"""Tests of ffcv_cropmix.kernels.jit."""

from __future__ import annotations

from typing import Any

import pytest
from numba import types
from numba.core import config
from numba.core.codegen import JITCodeLibrary

from ffcv_cropmix.kernels.jit import compiled_once, entry, jit


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


@jit
def _said(number):
    print("called with", number)
    return number


def test_callees_print_and_raise(capfd: pytest.CaptureFixture[str]) -> None:
    """Numba needs the environment of a function to print and to raise an exception with an argument."""

    @jit
    def refuse(number):
        if number > 1:
            raise ValueError("too large", number)
        return _said(number)

    @jit
    def one_more(number):
        return refuse(number) + 1

    said_separately = compiled_once(_said, types.int64, types.int64)

    @entry
    def called_by_python(number):
        return one_more(number) + said_separately(number)

    assert called_by_python(1) == 3
    with pytest.raises(ValueError, match=r"\('too large', 5\)"):
        called_by_python(5)
    assert capfd.readouterr().out == "called with 1\ncalled with 1\n"
