"""Functions called in numba's threads, by their address."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numba
import numpy as np
import pytest
from numba.core import config

from ffcv_cropmix.kernels.jit import entry
from ffcv_cropmix.kernels.parallel import compile_parallel_for, parallel_for, task

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")


@task
def square(arguments, number):
    squares, threads, work, fails_at = arguments
    if number == fails_at:
        raise MemoryError
    squares[number] += number * number
    threads[number] = numba.get_thread_id()
    for k in range(20_000):  # long enough for the other thread to take a call
        work[number] = math.cos(work[number] + k)


@entry
def squares_of(squares, threads, fails_at, count):
    return parallel_for(square, (squares, threads, np.zeros(50), fails_at), count)


@pytest.fixture(params=[1, 2])
def num_threads(request) -> Iterator[int]:
    compile_parallel_for()
    before = numba.get_num_threads()
    numba.set_num_threads(request.param)
    yield request.param
    numba.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_each_number_once(num_threads: int, count: int) -> None:
    squares, threads = np.zeros(50, np.int64), np.zeros(50, np.int64)
    assert squares_of(squares, threads, -1, count)
    assert squares.tolist() == [k * k if k < count else 0 for k in range(50)]


def test_as_many_threads_as_are_set(num_threads: int) -> None:
    seen: set[int] = set()
    for _ in range(100):  # on a busy machine one thread may do all of the work
        threads = np.zeros(50, np.int64)
        squares_of(np.zeros(50, np.int64), threads, -1, 50)
        seen |= set(threads)
        if len(seen) == 2:
            break
    assert len(seen) == num_threads


def test_an_exception_in_a_thread() -> None:
    compile_parallel_for()
    squares, threads = np.zeros(8, np.int64), np.zeros(8, np.int64)
    assert not squares_of(squares, threads, 3, 8)
    assert squares.tolist() == [k * k if k != 3 else 0 for k in range(8)]
    assert squares_of(squares, threads, -1, 8)  # the next call is not affected
