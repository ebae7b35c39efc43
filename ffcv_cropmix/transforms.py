"""CropMix for torchvision data sets: no FFCV needed."""

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
    """Takes several crops of distinct scales of a PIL image and mixes them: the authors' transform, compiled.

    The arguments have the authors' order and names. Every call samples anew, from torch's generator, in
    the workers of a `DataLoader` too; after `torch.manual_seed` the samples are the same.

    Source: arXiv 2205.15955, section 3.

    Args:
        scale: smallest crop area as a share of the image's, s for (s, 1), or (low, high).
        mix_ratio: mixup samples the weights from Beta(mix_ratio / n, mix_ratio / n) for n crops.
        number: how many crops, 1 to 8, or several to choose from for each image: (2, 3, 4), or 234.
        operation: "mixup" (0) or "cutmix" (1).
        inter_aug: permute the colour channels of one operand of each mixing step.
        post_aug: what follows on the mixed image, float32 (3, height, width) in [0, 1]: flip, normalisation.
        size: of the mixed image, px: a side, or (height, width).

    Raises:
        ValueError: an argument is out of range; names it and the value.
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
        self._mix(Image.new("RGB", (2, 2)), seed=0)  # compiles, once: before workers are started

    def __call__(self, image: Image.Image) -> Any:
        """Mix crops of an image.

        Args:
            image: a PIL image of any size and mode; `data.images.to_rgb` says how modes other than RGB are converted.
                16-bit gray: `ImageFolder(..., loader=Image.open)`, as torchvision's own loader clips it to white.

        Returns:
            float32 (3, height, width) in [0, 1], or what `post_aug` makes of that.

        Raises:
            TypeError: it is no PIL image.
            ValueError: it has no pixels, or levels that `to_rgb` refuses.
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
