"""The inverse transform: its vector code, its definition, and what that approximates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.fft import idctn

from ffcv_cropmix.kernels import idct
from ffcv_cropmix.kernels.coefficient_code import ZIGZAG
from ffcv_cropmix.kernels.jit import entry
from tests import naive


@entry
def inverse_dct(*arguments):
    idct.inverse_dct(*arguments)


def blocks(random: np.random.Generator, last: np.ndarray, spread: float) -> np.ndarray:
    """int16 (blocks, 64), row by row, not 0 at zigzag position `last`, and only 0 beyond."""
    coefficients = np.zeros((len(last), 64), np.int16)
    for block, end in zip(coefficients, last):
        block[ZIGZAG[: end + 1]] = random.normal(0, spread, end + 1)
        block[ZIGZAG[end]] = 3
    return coefficients


@pytest.mark.parametrize("spread", [3, 300])
@pytest.mark.parametrize("most", [0, 1, 9, 10, 63])
def test_compiled_as_defined(most: int, spread: float) -> None:
    random = np.random.default_rng(most)
    for pairs in (1, 7):
        last = random.integers(0, most + 1, 2 * pairs).astype(np.uint8)
        last[-1] = most
        coefficients = blocks(random, last, spread)
        quantisation = random.integers(1, 9, 64).astype(np.uint16)
        stride = 16 * pairs + 5
        expected = np.full(3 + 8 * stride, 77, np.uint8)
        got = expected.copy()
        idct.inverse_dct(coefficients.ravel(), quantisation, last, pairs, expected, 3, stride)
        inverse_dct(coefficients.ravel(), quantisation, last, pairs, got, 3, stride)
        np.testing.assert_array_equal(got, expected)
        rows = expected[3:].reshape(8, stride)
        assert (rows[:, 16 * pairs :] == 77).all() and rows.std() > 0


def test_close_to_the_exact_transform() -> None:
    """Levels are within 1 of the exact ones: those of blocks that a picture can have."""
    random = np.random.default_rng(0)
    quantisation = np.full(64, 4, np.uint16)
    samples = random.integers(0, 256, (40, 8, 8)) - 128.0
    samples[:20] = samples[:20, :1, :1]  # plain
    basis = np.array(naive.cosines())
    coefficients = np.rint(basis @ samples @ basis.T / 4).astype(np.int16)
    last = np.array([np.flatnonzero(block.ravel()[ZIGZAG]).max(initial=0) for block in coefficients], np.uint8)
    plane = np.zeros((8, 8 * len(samples)), np.uint8)
    inverse_dct(coefficients.ravel(), quantisation, last, len(samples) // 2, plane.ravel(), 0, plane.shape[1])
    got = plane.reshape(8, -1, 8).swapaxes(0, 1)

    exact = idctn(4.0 * coefficients, axes=(1, 2), norm="ortho") + 128
    np.testing.assert_allclose(exact, [naive.inverse_dct(4 * block) for block in coefficients], atol=1e-9)
    assert np.abs(got - np.clip(exact, 0, 255)).max() <= 1
    assert np.abs(got - np.clip(np.rint(exact), 0, 255)).mean() < 0.03
