"""XXH64 against the package xxhash."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from ffcv_cropmix.kernels.checksum import xxh64
from ffcv_cropmix.kernels.jit import entry

_compiled = entry(lambda data: xxh64(data))


@pytest.mark.parametrize("size", [*range(0, 70), 127, 1024, 100_003])
def test_as_the_package(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size + 3, np.uint8)
    for part in (data[:size], data[3:]):  # aligned, and not
        assert int(_compiled(part)) == xxhash.xxh64_intdigest(np.ascontiguousarray(part))


def test_interpreted() -> None:
    with np.errstate(over="ignore"):
        for size in (0, 5, 15, 33, 77):
            data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
            assert int(xxh64(data)) == xxhash.xxh64_intdigest(data)
