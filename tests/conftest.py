"""Fixtures of all tests."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

# Two test processes share the cores: threads of OpenMP that spin while they wait would take them from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import ffcv_cropmix.ffcv_compat  # noqa: F401  before FFCV: 5 s less
from tests import betons as written


def pytest_configure(config: pytest.Config) -> None:
    """Let all processes of all runs share compiled code, in .pytest_cache."""
    cache = getattr(config, "cache", None)  # none under -p no:cacheprovider
    if cache is not None:
        os.environ.setdefault("NUMBA_CACHE_DIR", str(cache.mkdir("compiled")))


@pytest.fixture
def signals() -> Iterator[None]:
    """Puts back how the signals are handled that stop a run."""
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def file_limit() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file grows beyond so many bytes, as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


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
def sealed_dct(sealed: dict[str, Path]) -> Path:
    """dct.beton beside them: the samples of jpg.beton as coefficients."""
    path = written.write_dct(sealed["jpg"], sealed["jpg"].with_name("dct.beton"))
    written.seal(path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .beton of the two photos that ship with scikit-learn, as JPEG with softened contrast: no colour is clipped."""
    return written.write_photos(tmp_path_factory.mktemp("photos") / "photos.beton")
