"""Importing the package is quick, and takes no more than is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ffcv_cropmix
from ffcv_cropmix.errors import Parser


def _runs(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_imports_nothing_at_first() -> None:
    _runs("import sys, ffcv_cropmix; assert not {'numpy', 'numba', 'torch', 'ffcv'} & set(sys.modules)")


def test_ffcv_is_imported_without_compiling() -> None:
    """By whichever module comes first; numba's own Dict is back in its place."""
    modules = ("loader", "decoders", "views", "data.reader", "data.check", "training.run")
    imports = "\n".join(f"    import ffcv_cropmix.{name}" for name in modules)
    for first in modules[4:]:  # the others begin with `patches`
        _runs(
            "from numba.core import event\n"
            "with event.install_recorder('numba:compile') as compiled:\n"
            f"    import ffcv_cropmix.{first}\n{imports}\n"
            "assert not compiled.buffer\n"
            "import numba.typed, ffcv.fields.rgb_image as images\n"
            "assert numba.typed.Dict is numba.typed.typeddict.Dict\n"
            "assert dict(images.IMAGE_MODES) == {'jpg': 0, 'raw': 1}"
        )


def test_cropmix_needs_neither_ffcv_nor_torch() -> None:
    _runs(
        "import os, sys; os.environ['NUMBA_DISABLE_JIT'] = '1'; sys.modules['ffcv'] = sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from ffcv_cropmix import cropmix, sample_plan\n"
        "cropmix(np.zeros((9, 9, 3), np.uint8), sample_plan(9, 9), (2, 2))"
    )


def test_options_are_not_abbreviated(capsys) -> None:
    parser = Parser()
    parser.add_argument("--metrics")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--metric=clean"])
    assert (ended.value.code, capsys.readouterr().err) == (2, "error: unrecognized arguments: --metric=clean\n")


def test_what_there_is_to_run() -> None:
    root = Path(__file__).parents[1]
    listed = subprocess.check_output([sys.executable, "-m", "ffcv_cropmix"], cwd=root, text=True)
    assert len(listed.splitlines()) <= 24  # of a terminal
    assert max(map(len, listed.splitlines())) <= 100
    named = set(re.findall(r"python (-m )?(\S+)", listed))
    assert {name for module, name in named if not module} == {
        *(path.name for path in root.glob("*.py")),
        "examples/quickstart.py",
    }
    modules = {name for module, name in named if module}
    programs = {path for path in (root / "ffcv_cropmix").rglob("*.py") if "\n    run_program(" in path.read_text()}
    assert modules == {".".join(path.relative_to(root).with_suffix("").parts) for path in programs}


def test_public_names() -> None:
    for name in ffcv_cropmix.__all__:
        assert getattr(ffcv_cropmix, name).__name__ == name
    assert set(ffcv_cropmix.__all__) <= set(dir(ffcv_cropmix))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ffcv_cropmix.nothing  # noqa: B018
