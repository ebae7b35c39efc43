"""The objective: loss functions, and mixup and cutmix between the images of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from .config import TrainingConfig


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy, summed over the classes and averaged over the batch, nats.

    Takes outputs (N, C) and labels, int64 (N,) or class probabilities (N, C), as `nn.CrossEntropyLoss` does. Source:
    Wightman et al. 2021, arXiv 2110.00476, section 2.1. The sum, as in Composer, suits learning rates that were tuned
    for cross-entropy.

    Args:
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).

    Example:
        >>> round(float(BinaryCrossEntropy()(torch.zeros(4, 10), torch.arange(4))), 4)  # 10 ln 2
        6.9315
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        classes = outputs.shape[1]
        shares = F.one_hot(labels, classes) if labels.ndim == 1 else labels
        targets = shares * (1 - self.label_smoothing) + self.label_smoothing / classes
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="sum") / len(outputs)


def create_loss(training: TrainingConfig) -> nn.Module:
    """Create the loss: outputs (N, C) and labels, int64 (N,) or class probabilities (N, C), to a scalar."""
    kinds = {"cross_entropy": nn.CrossEntropyLoss, "bce": BinaryCrossEntropy}
    loss: nn.Module = kinds[training.loss](label_smoothing=training.label_smoothing)
    return loss


def create_mixing(
    num_classes: int, *, mixup: float = 0, cutmix: float = 0
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Create torchvision's mixup and cutmix, which mix the images of a batch and their labels.

    CropMix, in contrast, mixes crops of a single image, in the decoder.

    Args:
        num_classes: Number of classes, C.
        mixup: Alpha of mixup; 0: off.
        cutmix: Alpha of cutmix; 0: off. If both are on, one of them is sampled per batch.

    Returns:
        A function from images (N, 3, H, W) and labels, int64 (N,), to mixed images, float32, and class probabilities
        (N, C). With both off, it returns its arguments.

    Example:
        >>> images, labels = create_mixing(10, mixup=0.2)(torch.zeros(4, 3, 8, 8), torch.arange(4))
        >>> labels.shape
        torch.Size([4, 10])
    """
    kinds: list[nn.Module] = []
    if mixup:
        kinds.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix:
        kinds.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    if not kinds:
        return lambda images, labels: (images, labels)

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        kind = kinds[int(torch.randint(len(kinds), ()))]
        mixed: tuple[Tensor, Tensor] = kind(images.float(), labels)
        return mixed

    return mix
