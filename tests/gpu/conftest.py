"""Fixtures of the tests for a machine with a GPU: `make gpu`.

Without CUDA they are skipped. GPU_TESTS_DEVICE=cpu runs them on the CPU instead, as a test of the tests: what only a
GPU can show is then left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

DEVICE = torch.device(os.environ.get("GPU_TESTS_DEVICE", "cuda"))
ON_CPU = DEVICE.type == "cpu"
CLASSES = 3

if not ON_CPU:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; makes it deterministic


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not ON_CPU and not torch.cuda.is_available():
                check = (item.function.__doc__ or "").splitlines()[0]  # type: ignore[attr-defined]
                item.add_marker(pytest.mark.skip(reason=f"no CUDA. Would check: {check}"))


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Let torch raise an error where the host waits for the GPU, in any thread."""
    if ON_CPU:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Make torch choose the same algorithms in each run; the trainer then leaves cuDNN's benchmark off."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolve and multiply in float32 as the CPU does, without TF32."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before):
        switch.allow_tf32 = value


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name two files of noisy images whose class is their brightest third."""
    from ffcv_cropmix.data.convert import convert
    from ffcv_cropmix.data.encode import EncodeOptions
    from ffcv_cropmix.data.images import Source

    folder = tmp_path_factory.mktemp("stripes")
    options = ["--data.num_workers=1", "--logging.tensorboard=0"]
    for name, count in {"train": 96, "val": 24}.items():
        labels = np.arange(count) % CLASSES
        images = np.random.default_rng(count).integers(0, 120, (count, 36, 36, 3), np.uint8)
        for image, label in zip(images, labels):
            image[:, label * 12 :][:, :12] += 120
        source = Source([f"third {label}" for label in range(CLASSES)], labels, images)
        convert(source, folder / f"{name}.beton", EncodeOptions(write_mode="raw"), num_workers=1)
        options.append(f"--data.{name}_dataset={folder / name}.beton")
    return options
