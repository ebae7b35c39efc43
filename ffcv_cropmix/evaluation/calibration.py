"""Calibration: does the confidence of a model match its accuracy?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def rms_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, bin_size: int = 100, skip_last_bin: bool = False
) -> float:
    """Return the root mean square difference of confidence and accuracy over bins of equal count, in percent.

    Samples are sorted by confidence and divided into bins of `bin_size`; the remainder joins the last bin. The result
    is sqrt(sum over bins of |B| / n * (mean confidence - accuracy)^2) * 100.

    Args:
        confidence: Numbers (n,) in [0, 1]: the largest softmax output of each sample.
        correct: bool (n,): whether that output belongs to the true class.
        bin_size: Samples per bin, at least 1.
        skip_last_bin: Leave out the most confident bin, as the code behind published figures does (an off-by-one error
            there). Use this to compare with published figures.

    Raises:
        ValueError: The input is empty, the shapes differ, or `skip_last_bin` leaves no bin.

    Example:
        >>> round(rms_calibration_error([0.9, 0.5, 0.7, 0.6], [True, False, False, True], bin_size=2), 2)
        21.51
    """
    confidences, hits = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidences.ndim != 1 or confidences.shape != hits.shape or confidences.size == 0:
        raise ValueError(f"confidence and correct must be (n,) with n >= 1, got {confidences.shape} and {hits.shape}")
    if bin_size < 1:
        raise ValueError(f"bin_size must be at least 1, got {bin_size}")
    order = np.argsort(confidences, kind="stable")
    edges = np.arange(1, max(len(order) // bin_size, 1)) * bin_size
    bins = np.split((confidences - hits)[order], edges)
    if skip_last_bin:
        bins = bins[:-1]
        if not bins:
            raise ValueError(f"skip_last_bin leaves none of the bins of {bin_size}: {len(order)} samples make one bin")
    return float(np.sqrt(sum(len(b) * b.mean() ** 2 for b in bins) / len(order)) * 100)
