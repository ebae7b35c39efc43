"""Fixtures of all tests."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import betons as written


@pytest.fixture
def signals() -> Iterator[None]:
    """Puts back how SIGTERM and SIGINT are handled."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def betons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of tests/betons.py by mode: raw, jpg."""
    return written.write(tmp_path_factory.mktemp("betons"))


@pytest.fixture(scope="session")
def sealed(betons: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same files with sidecars that have checksums."""
    folder = tmp_path_factory.mktemp("sealed")
    copies = {mode: Path(shutil.copy(path, folder)) for mode, path in betons.items()}
    for path in copies.values():
        written.seal(path)
    return copies


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .beton of the two photos that ship with scikit-learn, as JPEG with softened contrast: no colour is clipped."""
    return written.write_photos(tmp_path_factory.mktemp("photos") / "photos.beton")
