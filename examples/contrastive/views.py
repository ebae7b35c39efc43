"""Augmentation of views on the device, and one-way cutmix of two views."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor, nn


class Augment(nn.Module):
    """Apply MoCo v2's colour jitter and blur to each image on its own: uint8 (N, 3, H, W) to float32 in [0, 1].

    Colour jitter 0.4, 0.4, 0.4, 0.1 with probability 0.8, grayscale with 0.2, Gaussian blur of 0.1 to 2 px with 0.5.
    Cropping and flipping are the decoder's work. Source: Chen et al. 2020, arXiv 2003.04297: SimCLR's augmentation
    with a weaker jitter.

    Args:
        side: Side of the images, px. The kernel of the blur is a tenth of it.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        kernel = side // 20 * 2 + 1
        self.changes = nn.Sequential(
            K.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        changed: Tensor = self.changes(images.float() / 255)
        return changed


def paste_boxes(images: Tensor, others: Tensor) -> Tensor:
    """Paste a box of each of `others` into its image, in place: one-way cutmix.

    The sides of the box are sqrt(1 - u) of the image's, with u uniform in (0, 1). Its centre is uniform, and it is
    clipped. This is the cutmix of CropMix (arXiv 2205.15955) without the coin flip for the direction.

    Args:
        images: float (N, 3, H, W), changed in place.
        others: float (N, 3, H, W).

    Returns:
        `images`.
    """
    count, _, height, width = images.shape
    u, row, column = torch.rand(3, count, 1, 1, 1, device=images.device)
    share = (1 - u).sqrt()
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for size, center, shape in ((height, row, (1, 1, -1, 1)), (width, column, (1, 1, 1, -1))):
        middle, half = (center * size).floor(), (share * size).floor() // 2
        position = torch.arange(size, device=images.device).view(shape)
        inside = inside & (position >= middle - half) & (position < middle + half)
    return torch.where(inside, others, images, out=images)
