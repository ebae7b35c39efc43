"""One step of the fast gradient sign method, the simplest attack that sees the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def fgsm(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, eps: float = 0.007) -> Tensor:
    """Move each pixel by `eps` in the direction that raises the cross-entropy (Goodfellow et al. 2015).

    Args:
        model: images in [0, 1] to outputs before the softmax; normalisation is its own, and it is in evaluation mode.
        images: float (N, 3, H, W) in [0, 1].
        labels: int64 (N,).
        eps: step, in units of [0, 1].

    Returns:
        clamp(images + eps * sign(gradient), 0, 1), like `images`.
    """
    with torch.enable_grad():  # `evaluate` has it off
        images = images.detach().requires_grad_()
        loss = F.cross_entropy(model(images), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    return (images.detach() + eps * gradient.sign()).clamp(0, 1)
