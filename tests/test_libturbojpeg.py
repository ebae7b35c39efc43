"""What is said of an installation of FFCV that does not work."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from ffcv_cropmix import libturbojpeg
from ffcv_cropmix.errors import DataError


def test_ffcv_is_missing_or_for_another_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libturbojpeg, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"^ffcv is not installed: docs/install\.md"):
        libturbojpeg._open()
    spec = ModuleSpec("ffcv", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    (tmp_path / "_libffcv.cpython-39-x86_64-linux-gnu.so").touch()  # libffcv/ffcv#329
    monkeypatch.setattr(libturbojpeg, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match=f"^{tmp_path}: this ffcv was not compiled for this Python, it has no module"):
        libturbojpeg._open()


def test_a_library_that_ffcv_was_compiled_against_is_gone(tmp_path: Path) -> None:  # libffcv/ffcv#136, #346
    spec = find_spec("ffcv")
    assert spec and spec.submodule_search_locations
    (installed,) = Path(spec.submodule_search_locations[0]).glob("_libffcv*.so")
    needed = b"libturbojpeg.so"
    assert needed in installed.read_bytes()
    (tmp_path / "ffcv").mkdir()
    (tmp_path / "ffcv/__init__.py").touch()
    extension = tmp_path / "ffcv/_libffcv.abi3.so"
    extension.write_bytes(installed.read_bytes().replace(needed, b"libturbogone.so"))
    result = subprocess.run(
        [sys.executable, "-m", "ffcv_cropmix", "verify", "x.beton"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.stderr
    message = f"error: {extension} does not load, ffcv has to be compiled again: libturbogone.so"
    assert result.stderr.startswith(message) and result.stderr.endswith("docs/install.md says how to install it\n")
