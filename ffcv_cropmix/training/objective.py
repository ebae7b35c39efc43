"""What is minimised: the loss, and the labels of images that are mixed with others of their batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from .config import TrainingConfig


class BinaryCrossEntropy(nn.Module):
    """Each class on its own: the sum over classes of the binary cross-entropy, mean over the batch, nats.

    Takes outputs (N, C) and labels, int64 (N,) or shares (N, C), as `nn.CrossEntropyLoss` does. Source: Wightman et
    al. 2021, arXiv 2110.00476, section 2.1; the sum, as in Composer, suits learning rates for cross-entropy.
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
    """Outputs (N, C) and labels (N,) or shares of classes (N, C) to a scalar."""
    kinds = {"cross_entropy": nn.CrossEntropyLoss, "bce": BinaryCrossEntropy}
    loss: nn.Module = kinds[training.loss](label_smoothing=training.label_smoothing)
    return loss


def create_mixing(
    num_classes: int, *, mixup: float = 0, cutmix: float = 0
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images (N, 3, H, W) and labels (N,) to the same, or to mixed ones, float32, and shares of classes (N, C).

    This is mixup and cutmix between images, torchvision's. CropMix, which mixes crops of one image, is the decoder's.

    Args:
        mixup, cutmix: alpha of each, 0: off; with both, one of them is drawn for each batch.
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
