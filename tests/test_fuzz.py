"""Damaged files end in an error or in the right pixels; `python -m tests.fuzz` has the long run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FILES = 150


def test_damaged_files(sealed_dct) -> None:
    command = [sys.executable, "-m", "tests.fuzz", str(sealed_dct.parent), "--files", str(FILES)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[1])
    assert result.returncode == 0, result.stdout[-200:] + result.stderr
    outcomes = [line.split(": ")[-1] for line in result.stdout.splitlines()]
    assert len(outcomes) == FILES
    assert {"refused", "read", "1 reported"} <= set(outcomes)
