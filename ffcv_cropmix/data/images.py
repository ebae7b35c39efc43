"""Labelled images that are listed, not opened; and any image as RGB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class Part(NamedTuple):
    """A file within an archive, which has its bytes as they are."""

    archive: Path
    name: str
    offset: int
    size: int


ImageFile = Path | Part | bytes
"""Where the bytes of an image file are, or those"""


@dataclass(frozen=True)
class Source:
    """A set of labelled images."""

    classes: list[str]
    """Names, by label"""
    labels: np.ndarray
    """(n,) int64"""
    images: Sequence[ImageFile] | np.ndarray
    """n files, or uint8 (n, height, width, 3)"""
    dataset: str = ""
    """One of sources.DATASETS"""
    split: str = ""
    """Which part of that: train, val"""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Of a sample, for messages."""
        image = self.images[index]
        if isinstance(image, Part):
            return f"{image.archive}/{image.name}"
        return str(image) if isinstance(image, Path) else f"sample {index}"


def read(image: ImageFile) -> bytes:
    """The bytes of an image file."""
    if isinstance(image, Path):
        return image.read_bytes()
    if isinstance(image, bytes):
        return image
    with image.archive.open("rb") as archive:
        archive.seek(image.offset)
        return archive.read(image.size)


def pixel_bytes(image: ImageFile) -> int:
    """How many bytes the pixels of an image file take, from its header."""
    with Image.open(image if isinstance(image, Path) else BytesIO(read(image))) as opened:
        return 3 * opened.width * opened.height


def decode_rgb(data: bytes, exif_transpose: bool = False) -> np.ndarray:
    """The pixels of an image file, uint8 (height, width, 3), as `to_rgb` says.

    Args:
        exif_transpose: turn it as its EXIF orientation says; torchvision's ImageFolder, for one, ignores that.
    """
    try:
        opened = Image.open(BytesIO(data))
    except UnidentifiedImageError:  # its message would name a BytesIO
        raise ValueError("it is no image that Pillow can read") from None
    with opened:
        return np.asarray(to_rgb(ImageOps.exif_transpose(opened) if exif_transpose else opened))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB: transparency is dropped, 16-bit gray is scaled to 8 bits (Pillow clips it).

    "I" has 32 bits; their range is a guess, but for the 16-bit files that some Pillow versions read so. "F" is clipped.
    """
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if image.mode != "I" or image.format in ("PNG", "PPM") or levels.max(initial=0) > 255:
            levels = levels >> 8
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:  # Pillow warns of palettes with it
        image = image.convert("RGBA")
    return image.convert("RGB")
