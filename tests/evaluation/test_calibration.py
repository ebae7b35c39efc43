"""RMS calibration error against an independent loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from ffcv_cropmix.evaluation.calibration import rms_calibration_error


def _loop(confidence: np.ndarray, correct: np.ndarray, bin_size: int, skip_last_bin: bool) -> float:
    """Sample by sample; the remainder belongs to the last whole bin."""
    pairs = sorted(zip(confidence.tolist(), correct.tolist(), strict=True), key=lambda pair: pair[0])
    bins: list[list[tuple[float, bool]]] = []
    for position, pair in enumerate(pairs):
        whole_bins_left = len(pairs) - position >= bin_size
        if position % bin_size == 0 and (whole_bins_left or not bins):
            bins.append([])
        bins[-1].append(pair)
    total = 0.0
    for pairs_of_bin in bins[:-1] if skip_last_bin else bins:
        mean_confidence = math.fsum(c for c, _ in pairs_of_bin) / len(pairs_of_bin)
        accuracy = sum(hit for _, hit in pairs_of_bin) / len(pairs_of_bin)
        total += len(pairs_of_bin) / len(pairs) * (mean_confidence - accuracy) ** 2
    return math.sqrt(total) * 100


@pytest.mark.parametrize("skip_last_bin", [False, True])
@pytest.mark.parametrize(("count", "bin_size"), [(1000, 100), (1234, 100), (199, 10), (200, 100), (7, 2)])
def test_equals_the_loop(count: int, bin_size: int, skip_last_bin: bool) -> None:
    generator = np.random.default_rng(count)
    confidence = generator.uniform(0.1, 1, count)
    correct = generator.uniform(size=count) < confidence**2
    expected = _loop(confidence, correct, bin_size, skip_last_bin)
    result = rms_calibration_error(confidence, correct, bin_size=bin_size, skip_last_bin=skip_last_bin)
    assert result == pytest.approx(expected, rel=1e-12)


def test_by_hand() -> None:
    confidence = [0.9, 0.5, 0.7, 0.6]  # bins of two: (0.5, 0.6), (0.7, 0.9)
    correct = [True, False, False, True]  # of the bins: (no, yes), (no, yes)
    both = math.sqrt((0.05**2 + 0.3**2) / 2) * 100
    first = math.sqrt(0.05**2 / 2) * 100
    assert rms_calibration_error(confidence, correct, bin_size=2) == pytest.approx(both)
    assert rms_calibration_error(confidence, correct, bin_size=2, skip_last_bin=True) == pytest.approx(first)


def test_default_bin_is_100_samples_and_the_last_bin_counts() -> None:
    confidence = np.repeat([0.3, 0.9], 100)
    correct = np.repeat([False, True], 100)
    expected = math.sqrt((0.3**2 + 0.1**2) / 2) * 100
    assert rms_calibration_error(confidence, correct) == pytest.approx(expected)


def test_fewer_samples_than_a_bin_make_one_bin() -> None:
    assert rms_calibration_error([0.8, 0.6], [True, False]) == pytest.approx(20)
    with pytest.raises(ValueError, match="2 samples make one bin"):
        rms_calibration_error([0.8, 0.6], [True, False], skip_last_bin=True)


@pytest.mark.parametrize(
    ("confidence", "correct", "bin_size"),
    [([], [], 100), ([0.5], [True, False], 100), ([[0.5]], [[True]], 100), ([0.5], [True], 0)],
)
def test_what_cannot_be_measured_is_refused(confidence: list, correct: list, bin_size: int) -> None:
    with pytest.raises(ValueError, match="got"):
        rms_calibration_error(confidence, correct, bin_size=bin_size)


def test_against_torchmetrics_where_its_bins_are_the_same() -> None:
    """Its bins are of equal width: with 100 samples near each of 0.05, 0.15, ... they are those of equal count."""
    random = np.random.default_rng(0)
    confidence = np.repeat(np.arange(10) / 10 + 0.05, 100) + random.uniform(-0.04, 0.04, 1000)
    correct = random.uniform(size=1000) < confidence**2
    order = random.permutation(1000)
    expected = binary_calibration_error(
        torch.from_numpy(confidence[order]), torch.from_numpy(correct[order]).long(), n_bins=10, norm="l2"
    )
    assert rms_calibration_error(confidence[order], correct[order]) == pytest.approx(100 * expected.item(), rel=1e-5)
