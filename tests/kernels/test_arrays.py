"""Arrays that are made in compiled code equal NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from numba.core import config

from ffcv_cropmix.kernels.arrays import array_at, empty

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")


def empties(n, small):
    return empty(n, np.uint8), empty((n, 3), np.int64), empty((2, small, n), np.float32), empty((n,), np.uint16)


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("small", [np.int8(3), np.uint16(4)])
@pytest.mark.parametrize("make", [njit(empties), empties])
def test_shapes_and_types(make, n: int, small) -> None:
    expected = np.empty(n, np.uint8), np.empty((n, 3), np.int64), np.empty((2, small, n), np.float32), np.empty(n, "u2")
    for array, like in zip(make(n, small), expected):
        assert (array.shape, array.dtype, array.flags.c_contiguous) == (like.shape, like.dtype, True)
        array[...] = 7
        assert (array == 7).all()


@njit
def too_large():
    return empty((2**20, 2**20, 2**10), np.int64)


def test_no_memory() -> None:
    with pytest.raises(MemoryError):
        too_large()


def at(address, height):
    return array_at(address, (height, 2), np.int32)


@pytest.mark.parametrize("read", [njit(at), at])
def test_an_array_at_an_address(read) -> None:
    numbers = np.arange(12, dtype=np.int32)
    array = read(numbers.ctypes.data + 8, 3)
    np.testing.assert_array_equal(array, [[2, 3], [4, 5], [6, 7]])
    array[1, 0] = -1
    assert numbers[4] == -1
