"""Random numbers: Philox as published, Beta as scipy has it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from scipy import stats

from ffcv_cropmix.kernels.jit import entry
from ffcv_cropmix.kernels.rng import beta, make_key, philox4x32, uniforms
from tests import naive

WORD = st.integers(0, 2**32 - 1)
ALL = 0xFFFFFFFF


@pytest.mark.parametrize("function", [philox4x32, entry(philox4x32)], ids=["interpreted", "compiled"])
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known answers
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_vectors(function, counter: tuple, key: tuple, expected: tuple) -> None:
    assert function(*counter, *key) == expected


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_philox_is_the_oracles(counter: tuple, key: tuple) -> None:
    assert philox4x32(*counter, *key) == naive.philox(counter, key)


def test_uniforms_take_every_part_of_the_key() -> None:
    base = uniforms(make_key(1, 2, 3, 4, 7), 5, 6)
    assert base == tuple((word + 0.5) / 2**32 for word in naive.philox((3, 4, 32 * 7 + 5, 6), (1, 2)))
    others = [uniforms(make_key(*(k * (k != part) for k in (1, 2, 3, 4, 7))), 5, 6) for part in (1, 2, 3, 4, 7)]
    others += [uniforms(make_key(1, 2, 3, 4, 7), 0, 6), uniforms(make_key(1, 2, 3, 4, 7), 5, 0)]
    assert len({base, *others}) == 8


@njit
def _sample(count, a):
    sampled = np.empty(count)
    for index in range(count):
        sampled[index] = beta(make_key(7, 0, index, 0, 0), 8, a)
    return sampled


@pytest.mark.parametrize("a", [0.05, 0.1, 0.4 / 3, 0.2, 0.5, 1.0, 5.0])
def test_beta_is_scipys(a: float) -> None:
    sampled = _sample(200_000, a)
    # By halves: of numbers just below 1, float64 has too few for small a (1 % of Beta(0.1) rounds to 1).
    lower, upper = sampled[sampled < 0.5], sampled[sampled >= 0.5]
    assert stats.binomtest(len(lower), len(sampled)).pvalue > 0.001
    assert stats.kstest(lower, lambda x: 2 * stats.beta(a, a).cdf(x)).pvalue > 0.001
    assert stats.ks_2samp(np.maximum(lower, 1e-12), np.maximum(1 - upper, 1e-12)).pvalue > 0.001


@pytest.mark.parametrize("a", [1e-4, 1e-3])
def test_beta_of_small_parameters_neither_underflows_nor_fails(a: float) -> None:
    sampled = _sample(100_000, a)
    assert ((sampled >= 0) & (sampled <= 1)).all()
    assert (sampled < 0.5).mean() == pytest.approx(0.5, abs=0.01)
    assert ((sampled < 1e-3) | (sampled > 1 - 1e-3)).mean() > 0.98


def test_no_fastmath_from_the_caller() -> None:
    @njit(fastmath=True)
    def caller(a):
        return beta(make_key(1, 2, 3, 4, 0), 5, a)

    caller(0.2)
    assert " fast " not in next(iter(caller.inspect_llvm().values()))
