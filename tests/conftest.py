"""Fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import betons as written


@pytest.fixture(scope="session")
def betons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of tests/betons.py by mode: raw, jpg."""
    return written.write(tmp_path_factory.mktemp("betons"))
