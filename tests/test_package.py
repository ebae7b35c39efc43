"""Importing the package is quick, and takes no more than is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ffcv_cropmix


def _runs(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_imports_nothing_at_first() -> None:
    _runs("import sys, ffcv_cropmix; assert not {'numpy', 'numba', 'torch', 'ffcv'} & set(sys.modules)")


def test_cropmix_needs_neither_ffcv_nor_torch() -> None:
    _runs(
        "import os, sys; os.environ['NUMBA_DISABLE_JIT'] = '1'; sys.modules['ffcv'] = sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from ffcv_cropmix import cropmix, sample_plan\n"
        "cropmix(np.zeros((9, 9, 3), np.uint8), sample_plan(9, 9), (2, 2))"
    )


def test_public_names() -> None:
    for name in ffcv_cropmix.__all__:
        assert getattr(ffcv_cropmix, name).__name__ == name
    assert set(ffcv_cropmix.__all__) <= set(dir(ffcv_cropmix))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ffcv_cropmix.nothing  # noqa: B018
