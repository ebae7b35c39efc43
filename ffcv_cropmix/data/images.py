"""Labelled images that are listed, not opened; and any image as RGB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

JPG, RAW, DCT = 0, 1, 2
"""How a sample of a .beton file is stored; of FFCV's RGBImageField the first two"""


class Part(NamedTuple):
    """A file within an archive, which has its bytes as they are."""

    archive: Path
    name: str
    offset: int
    size: int
    """Bytes, holes included"""
    pieces: tuple[tuple[int, int], ...] | None = None
    """Of a file with holes: (where it belongs, bytes) of what is stored, one after the other; None: all of it is"""

    def read(self, archive: BinaryIO) -> bytes:
        """Its bytes, from its archive."""
        archive.seek(self.offset)
        if self.pieces is None:
            return archive.read(self.size)
        content = bytearray(self.size)
        for start, count in self.pieces:
            content[start : start + count] = archive.read(count)
        return bytes(content)


class Stored(NamedTuple):
    """A sample of a .beton file."""

    beton: Path
    row: int
    mode: int
    height: int
    width: int
    offset: int
    size: int


ImageFile = Path | Part | bytes | Stored
"""Where the bytes of an image file are, or those"""

OnError = Literal["raise", "skip"]


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
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How much of what is there is not taken, by kind"""
    skipped: Sequence[tuple[str, str]] = ()
    """(name, reason) of what should be a sample, and cannot be"""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Of a sample, for messages."""
        image = self.images[index]
        if isinstance(image, Part):
            return f"{image.archive}/{image.name}"
        if isinstance(image, Stored):
            return f"{image.beton}, sample {image.row}"
        return str(image) if isinstance(image, Path) else f"sample {index}"


def read(image: ImageFile) -> bytes | np.ndarray:
    """The bytes of an image file, of a `Stored` one a JPEG, or if it is raw, its pixels, uint8 (height, width, 3)."""
    if isinstance(image, Path):
        return image.read_bytes()
    if isinstance(image, bytes):
        return image
    if isinstance(image, Part):
        with image.archive.open("rb") as archive:
            return image.read(archive)
    with image.beton.open("rb") as file:
        file.seek(image.offset)
        return _as_file(file.read(image.size), image)


def _as_file(data: bytes, image: Stored) -> bytes | np.ndarray:
    """What `read` returns for the bytes of a sample."""
    if image.mode == RAW:
        return np.frombuffer(data, np.uint8).reshape(image.height, image.width, 3)
    if image.mode == DCT:
        from .dct import to_jpeg  # it imports numba, which takes a second

        return to_jpeg(data, image.height, image.width)
    return data


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
        rgb = to_rgb(opened)
        method = _TRANSPOSES.get(orientation(opened)) if exif_transpose else None
        return np.asarray(rgb if method is None else rgb.transpose(method))


_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What shows an image upright, by its EXIF orientation. `ImageOps.exif_transpose` also writes the EXIF data anew."""


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8: 1, upright, if it has none that can be read."""
    try:
        number = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever Pillow trips over in the bytes
        return 1
    return int(number) if number in _TRANSPOSES else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to RGB.

    Transparency is dropped. Gray levels of more than 8 bits are scaled to 8 bits, where Pillow clips them: modes I;16,
    I;16B, I;16L by their number of bits; I, which may have 32 bits, as 16 bits if it comes from a PNG or PGM file or
    has a level above 255. Levels of F are taken as they are.

    Raises:
        ValueError: levels of I are outside 0 to 65535; or levels of F outside 0 to 255, or all of them in 0 to 1 (which
            may mean black to white, or black).
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_gray(image)).convert("RGB")
    if "transparency" in image.info:  # Pillow warns of palettes with it
        image = image.convert("RGBA")
    return image.convert("RGB")


def _gray(image: Image.Image) -> np.ndarray:
    """The levels of an image of mode I;16, I;16B, I;16L, I or F with 8 bits, (height, width) uint8."""
    levels = np.asarray(image)
    low, high = (levels.min(), levels.max()) if levels.size else (0, 0)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        if not -0.5 <= low <= high < 255.5:  # nor NaN
            raise ValueError(
                f"its floating-point levels are of {low:g} to {high:g}, not of 0 to 255: save it as 8 bits"
            )
        if 0 < high <= 1:
            raise ValueError("its floating-point levels are of 0 to 1, or too dark to tell: save it as 8 or 16 bits")
        levels = np.rint(levels)
    elif image.mode != "I":
        levels = levels >> (tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 8)
    elif not 0 <= low <= high < 2**16:
        raise ValueError(f"its levels are of {low} to {high}, not of 0 to 65535: save it as 8 or 16 bits")
    elif image.format in ("PNG", "PPM") or high > 255:
        levels = levels >> 8
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # 0 is white: of these modes, Pillow ignores it
        levels = 255 - levels
    return levels.astype(np.uint8)
