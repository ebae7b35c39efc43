"""What the tests of decoders share: options, pipelines, and the images that a loader delivers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from ffcv.fields.basics import IntDecoder
from ffcv.transforms import ToTensor

from ffcv_cropmix import (
    cropmix,
    sample_plan,
)
from tests.betons import stored_image

SIZE = (24, 31)
OPTIONS = {
    "mixup": {"inter_aug": True, "flip_probability": 0.5, "seed": 2**63 + 5},
    "cutmix": {"operation": "cutmix", "number": 23, "scale": (0.1, 0.9), "inter_aug": True, "seed": 1},
    "crop": {"number": 1, "scale": 0.08, "ratio": (0.5, 2.0)},
}
LABEL = [IntDecoder(), ToTensor()]


def pipelines(decoder, *transforms) -> dict:
    return {"image": [decoder, *(transforms or (ToTensor(),))], "label": [*LABEL]}


@cache
def expected(path: Path, name: str, epoch: int, index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    image = stored_image(path, index)
    plan = sample_plan(*image.shape[:2], output_size=size, epoch=epoch, index=index, **OPTIONS[name])
    return cropmix(image, plan, size)


def read(loader) -> dict[int, np.ndarray]:
    """Index to image of one pass."""
    return {int(label): image.numpy().copy() for images, labels in loader for image, label in zip(images, labels)}


def check(images: dict[int, np.ndarray], path: Path, name: str, epoch: int, size: tuple[int, int] = SIZE) -> None:
    for index, image in images.items():
        np.testing.assert_array_equal(image, expected(path, name, epoch, index, size), err_msg=f"sample {index}")
