"""Accuracy, loss and confidence of a model on a validation set."""

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
    """Results of a model on a validation set."""

    top_1: float
    """Top-1 accuracy, percent"""
    top_5: float
    """Top-5 accuracy, percent"""
    loss: float
    """Mean cross-entropy without label smoothing, nats"""
    confidence: np.ndarray
    """float32 (n,): largest softmax output of each sample, in the order of the loader, concatenated by rank"""
    correct: np.ndarray
    """bool (n,): whether that output belongs to the true class"""

    @property
    def rms_calibration_error(self) -> float:
        """RMS calibration error, percent; see `calibration.rms_calibration_error`"""
        return rms_calibration_error(self.confidence, self.correct)

    def entries(self) -> dict[str, float]:
        """Return the entries for a trainer's log."""
        names = {"top_1": self.top_1, "top_5": self.top_5, "val_loss": self.loss}
        return {**names, "rms_calibration_error": self.rms_calibration_error}


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, num_classes: int, flip_tta: bool = True
) -> Evaluation:
    """Evaluate a model, and leave it in evaluation mode.

    With torch.distributed, each process evaluates its own batches, and all get the result over all of them.

    Args:
        model: Maps images (N, 3, H, W) to logits (N, num_classes).
        batches: Images, and labels, int64 (N,) in [0, num_classes), both on the model's device.
        num_classes: Number of classes, at least 2. With fewer than 6, top-5 is always 100 %.
        flip_tta: Average the logits for each image and its horizontal flip.

    Raises:
        ValueError: There are no batches.

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the brightest channel
        >>> images = torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8)
        >>> evaluate(model, [(images, torch.tensor([0, 1, 1]))], num_classes=3).top_1
        66.66666...
    """
    model.eval()
    metrics: dict[str, Metric] = {
        "top_1": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "top_5": MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro", validate_args=False),
        "loss": MeanMetric(nan_strategy="disable"),  # its check for NaN would wait for the GPU
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
