"""CropMix for torchvision data sets. It does not need FFCV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from .data.images import to_rgb
from .functional import cropmix
from .plan import Operation, check_size, sample_plan, sampling_options


class CropMix:
    """Mix several crops of distinct scales of a PIL image: the authors' transform, compiled.

    The arguments have the order and the names of the authors' code. Each call samples a plan with torch's generator, in
    the workers of a `DataLoader` too, so that `torch.manual_seed` makes it reproducible.

    Source: arXiv 2205.15955, section 3.

    Args:
        scale: smallest crop area as a fraction of the image's area, s for (s, 1), or (low, high).
        mix_ratio: mixup samples weights from Beta(mix_ratio / n, mix_ratio / n) for n crops.
        number: number of crops, 1 to 8, or several numbers, one of which is sampled for each image: (2, 3, 4), or 234.
        operation: "mixup" (0) or "cutmix" (1).
        inter_aug: permute the colour channels of one operand of each mixing step.
        post_aug: transform of the mixed image, float32 (3, height, width) in [0, 1], such as a flip and normalisation.
        size: size of the mixed image, px: its side, or (height, width).

    Raises:
        ValueError: an argument is out of range; the message names it and the value.

    Example:
        >>> transform = CropMix(0.01, 0.4, 234, "mixup", True, size=8)
        >>> transform(Image.new("RGB", (40, 30))).shape
        torch.Size([3, 8, 8])
    """

    def __init__(
        self,
        scale: float | tuple[float, float],
        mix_ratio: float,
        number: int | Sequence[int],
        operation: Operation | Literal[0, 1],
        inter_aug: bool,
        post_aug: Callable[[torch.Tensor], Any] | None = None,
        size: int | tuple[int, int] = 224,
    ) -> None:
        self.options: dict[str, Any] = {
            "scale": scale,
            "mix_ratio": mix_ratio,
            "number": number,
            "operation": operation,
            "inter_aug": bool(inter_aug),
        }
        sampling_options(**self.options)
        self.post_aug = post_aug
        self.size = check_size("size", (size, size) if isinstance(size, int) else size)
        self._mix(Image.new("RGB", (2, 2)), seed=0)  # compiles the kernels before workers are started

    def __call__(self, image: Image.Image) -> Any:
        """Mix crops of an image.

        Args:
            image: a PIL image of any size and mode. `data.images.to_rgb` documents how modes other than RGB are
                converted. For 16-bit gray images use `ImageFolder(..., loader=Image.open)`: torchvision's default
                loader clips them to white.

        Returns:
            float32 (3, height, width) in [0, 1], or the result of `post_aug`.

        Raises:
            TypeError: the image is not a PIL image.
            ValueError: the image has no pixels, or values that `to_rgb` rejects.
        """
        if not isinstance(image, Image.Image):
            raise TypeError(f"CropMix takes a PIL image, got {type(image).__name__}: convert it with to_pil_image")
        mixed = self._mix(image, seed=int(torch.randint(2**62, ())))
        tensor = torch.from_numpy(mixed).permute(2, 0, 1).contiguous().div(255)
        return tensor if self.post_aug is None else self.post_aug(tensor)

    def _mix(self, image: Image.Image, seed: int) -> np.ndarray:
        array = np.asarray(to_rgb(image))
        plan = sample_plan(*array.shape[:2], output_size=self.size, seed=seed, **self.options)
        return cropmix(array, plan, self.size)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}({options}, post_aug={self.post_aug!r}, size={self.size})"
