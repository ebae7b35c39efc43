"""The fast gradient sign method: a white-box attack of one step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def fgsm(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, eps: float = 0.007) -> Tensor:
    """Move each pixel by `eps` in the direction that increases the cross-entropy (Goodfellow et al. 2015).

    Args:
        model: Maps images in [0, 1] to logits, in evaluation mode. It normalises the images itself.
        images: float (N, 3, H, W) in [0, 1].
        labels: int64 (N,).
        eps: Step, in units of [0, 1].

    Returns:
        clamp(images + eps * sign(gradient), 0, 1), with the shape and dtype of `images`.

    Example:
        >>> model = lambda images: images.mean((2, 3))  # one logit per channel
        >>> fgsm(model, torch.full((1, 3, 1, 1), 0.5), torch.tensor([0]), eps=0.25).flatten()
        tensor([0.2500, 0.7500, 0.7500])
    """
    with torch.enable_grad():  # `evaluate` turns gradients off
        images = images.detach().requires_grad_()
        loss = F.cross_entropy(model(images), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    return (images.detach() + eps * gradient.sign()).clamp(0, 1)
