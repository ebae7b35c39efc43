"""Accuracy of a model on a validation set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from .calibration import rms_calibration_error


@dataclass(frozen=True)
class Evaluation:
    """What a model does on a validation set."""

    top_1: float
    """Share of samples whose class has the largest output, percent"""
    top_5: float
    """Share of samples whose class is among the five largest outputs, percent"""
    loss: float
    """Mean cross-entropy, nats; without label smoothing"""
    confidence: np.ndarray
    """(n,) float32, the largest softmax output of each sample, in the order of the loader; one process after another"""
    correct: np.ndarray
    """(n,) bool, whether the class of that output is the sample's"""

    @property
    def rms_calibration_error(self) -> float:
        """Percent; see `calibration`"""
        return rms_calibration_error(self.confidence, self.correct)

    def entries(self) -> dict[str, float]:
        """What a trainer's log has of it."""
        names = {"top_1": self.top_1, "top_5": self.top_5, "val_loss": self.loss}
        return {**names, "rms_calibration_error": self.rms_calibration_error}


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, num_classes: int, flip_tta: bool = True
) -> Evaluation:
    """Evaluate a model, and leave it in evaluation mode.

    Where torch.distributed runs, each process brings its batches, and all get the result over all of them.

    Args:
        model: images (N, 3, H, W) to outputs (N, num_classes), before the softmax.
        batches: images, and labels of shape (N,), int64 in [0, num_classes), both on the model's device.
        num_classes: at least 2; with fewer than 6 classes top-5 is always 100 %.
        flip_tta: average the outputs for each image and its mirror image, before the softmax.

    Raises:
        ValueError: there are no batches.
    """
    model.eval()
    metrics: dict[str, Metric] = {
        "top_1": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "top_5": MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro", validate_args=False),
        "loss": MeanMetric(nan_strategy="disable"),  # the check for NaN waits for the GPU
        "confidence": CatMetric(nan_strategy="disable"),
        "correct": CatMetric(nan_strategy="disable"),
    }
    for images, labels in batches:
        outputs = model(images).float()
        if flip_tta:
            outputs = (outputs + model(images.flip(3)).float()) / 2
        confidence, predicted = outputs.softmax(1).max(1)
        for metric in metrics.values():
            metric.to(labels.device)
        metrics["top_1"].update(outputs, labels)
        metrics["top_5"].update(outputs, labels)
        metrics["loss"].update(F.cross_entropy(outputs, labels, reduction="none"))
        metrics["confidence"].update(confidence)
        metrics["correct"].update(predicted == labels)
    if not metrics["top_1"].update_called:
        raise ValueError("there is nothing to evaluate: no batches")
    return Evaluation(
        top_1=100 * metrics["top_1"].compute().item(),
        top_5=100 * metrics["top_5"].compute().item(),
        loss=metrics["loss"].compute().item(),
        confidence=metrics["confidence"].compute().cpu().numpy(),
        correct=metrics["correct"].compute().cpu().numpy() > 0,
    )
