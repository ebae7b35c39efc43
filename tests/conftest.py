"""Fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import betons as written


@pytest.fixture(scope="session")
def betons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of tests/betons.py by mode: raw, jpg."""
    return written.write(tmp_path_factory.mktemp("betons"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .beton of the two photos that ship with scikit-learn, as JPEG with softened contrast: no colour is clipped."""
    return written.write_photos(tmp_path_factory.mktemp("photos") / "photos.beton")
