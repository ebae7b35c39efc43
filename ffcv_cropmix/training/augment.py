"""Augment the images of a batch on their device, each on its own, behind the decoder. Uses kornia."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Policy = Literal["trivial", "rand", "jitter"]

ERASED = 0.45  # of 1: about the mean of ImageNet, which torchvision's RandomErasing leaves after normalisation


class OnePerImage(nn.Module):
    """Apply one of several operations to each image, chosen uniformly.

    kornia's TrivialAugment and RandAugment choose their operations once for a whole batch.

    Args:
        operations: Of images (N, C, H, W), to the same shape.
        times: How often one is chosen and applied.
    """

    def __init__(self, operations: list[nn.Module], times: int) -> None:
        super().__init__()
        self.operations, self.times = nn.ModuleList(operations), times

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(self.times):
            chosen = torch.randint(len(self.operations), (len(images),))  # on the CPU: a GPU is not waited for
            order = chosen.argsort(stable=True).to(images.device, non_blocking=True)
            groups = images[order].split(torch.bincount(chosen, minlength=len(self.operations)).tolist())
            changed = [operation(group) for operation, group in zip(self.operations, groups) if len(group)]
            images = torch.empty_like(images).index_copy_(0, order, torch.cat(changed))
        return images


def create_augmentation(policy: Policy | None = None, *, random_erasing: float = 0) -> Callable[[Tensor], Tensor]:
    """Create an augmentation of batches, in which each image is transformed on its own.

    It samples from torch's generator of the CPU.

    Args:
        policy: "trivial": TrivialAugment (arXiv 2103.10158); "rand": RandAugment (arXiv 1909.13719), two operations of
            magnitude 9 of 30; "jitter": brightness, contrast and saturation by a factor in (0.6, 1.4); None: off.
        random_erasing: Probability of erasing a rectangle of 2 to 33 % of an image (arXiv 1708.04896); 0: off.

    Returns:
        A function from images (N, 3, H, W), levels 0 to 255, to float32 images of the same shape and range. With both
        off, it returns its argument.

    Raises:
        ValueError: kornia is not installed.

    Example:
        >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        >>> create_augmentation()(images) is images
        True
    """
    if policy is None and not random_erasing:
        return lambda images: images
    try:
        import kornia.augmentation as K
        from kornia.augmentation.auto import RandAugment, TrivialAugment
        from kornia.augmentation.auto.rand_augment.rand_augment import default_policy as rand
        from kornia.augmentation.auto.trivial_augment.trivial_augment import default_policy as trivial
    except ImportError as error:
        raise ValueError(
            f"training.augment and training.random_erasing need kornia ({error}): pip install kornia"
        ) from error
    steps: list[nn.Module] = []
    if policy == "trivial":
        steps = [OnePerImage([nn.Identity(), *(TrivialAugment([operation]) for operation in trivial)], times=1)]
    elif policy == "rand":
        steps = [OnePerImage([RandAugment(1, 9, [operation]) for operation in rand], times=2)]
    elif policy == "jitter":
        steps = [K.ColorJitter(0.4, 0.4, 0.4)]
    if random_erasing:
        steps.append(K.RandomErasing(scale=(0.02, 0.33), ratio=(0.3, 3.3), value=ERASED, p=random_erasing))
    augmentation = nn.Sequential(*steps)

    @torch.no_grad()
    def augment(images: Tensor) -> Tensor:
        augmented: Tensor = augmentation(images.float() / 255) * 255
        return augmented

    return augment
