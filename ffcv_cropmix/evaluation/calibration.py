"""Does the model know how often it is right?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def rms_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, bin_size: int = 100, skip_last_bin: bool = False
) -> float:
    """Root mean square difference of confidence and accuracy over bins of equal count, in percent.

    Samples are sorted by confidence and cut into bins of `bin_size`; what is left over joins the last bin. The result
    is sqrt(sum over bins of |B| / n * (mean confidence - accuracy)^2) * 100.

    Args:
        confidence: (n,) numbers in [0, 1], the largest softmax output of each sample.
        correct: (n,) bool, whether the class of that output is the true one.
        bin_size: samples a bin, at least 1.
        skip_last_bin: leave the most confident bin out of the sum, as the implementation does that published figures
            come from (an off-by-one error there). Compare with those, not with the default.

    Raises:
        ValueError: nothing to measure, shapes that differ, or one bin alone, and that one to be skipped.
    """
    confidences, hits = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidences.ndim != 1 or confidences.shape != hits.shape or confidences.size == 0:
        raise ValueError(f"confidence and correct are (n,) with n >= 1, got {confidences.shape} and {hits.shape}")
    if bin_size < 1:
        raise ValueError(f"bin_size is at least 1, got {bin_size}")
    order = np.argsort(confidences, kind="stable")
    edges = np.arange(1, max(len(order) // bin_size, 1)) * bin_size
    bins = np.split((confidences - hits)[order], edges)
    if skip_last_bin:
        bins = bins[:-1]
        if not bins:
            raise ValueError(f"skip_last_bin leaves none of the bins of {bin_size}: {len(order)} samples make one bin")
    return float(np.sqrt(sum(len(b) * b.mean() ** 2 for b in bins) / len(order)) * 100)
