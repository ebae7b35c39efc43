"""Sets of labelled images, and decoding of any image to RGB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

JPG, RAW, DCT = 0, 1, 2
"""Modes in which a .beton file stores a sample; FFCV's RGBImageField has the first two"""


class Part(NamedTuple):
    """A file that lies uncompressed within an archive."""

    archive: Path
    name: str
    offset: int
    size: int
    """Size in bytes, including holes"""
    pieces: tuple[tuple[int, int], ...] | None = None
    """For a sparse file, (offset in the file, bytes) of each stored piece, in stored order; None: no holes"""

    def read(self, archive: BinaryIO) -> bytes:
        """Read the bytes from the opened archive."""
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
"""An image file: a place to read it from, or its bytes"""

OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Source:
    """A set of labelled images, listed but not opened."""

    classes: list[str]
    """Class names, by label"""
    labels: np.ndarray
    """int64 (n,)"""
    images: Sequence[ImageFile] | np.ndarray
    """n files, or uint8 (n, height, width, 3)"""
    dataset: str = ""
    """Name of the layout, of `sources.DATASETS`"""
    split: str = ""
    """Name of the split: train, val"""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files by kind that were found but not taken"""
    skipped: Sequence[tuple[str, str]] = ()
    """(name, reason) of what should be a sample but cannot be read"""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the name of a sample, for messages."""
        image = self.images[index]
        if isinstance(image, Part):
            return f"{image.archive}/{image.name}"
        if isinstance(image, Stored):
            return f"{image.beton}, sample {image.row}"
        return str(image) if isinstance(image, Path) else f"sample {index}"


def read(image: ImageFile) -> bytes | np.ndarray:
    """Read an image file: its bytes (a JPEG for `Stored`), or the pixels of a raw sample, uint8 (height, width, 3)."""
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
    """Turn the stored bytes of a sample into what `read` returns."""
    if image.mode == RAW:
        return np.frombuffer(data, np.uint8).reshape(image.height, image.width, 3)
    if image.mode == DCT:
        from .dct import to_jpeg  # imports numba, which takes a second

        return to_jpeg(data, image.height, image.width)
    return data


def decode_rgb(data: bytes, exif_transpose: bool = False) -> np.ndarray:
    """Decode an image file to RGB, uint8 (height, width, 3). See `to_rgb` for other colour modes.

    Args:
        data: the bytes of the file.
        exif_transpose: rotate the image as its EXIF orientation says, which torchvision's ImageFolder ignores.

    Raises:
        ValueError: Pillow cannot read the image, or its levels cannot be converted.

    Example:
        >>> file = BytesIO()
        >>> Image.new("L", (4, 2), 7).save(file, "PNG")
        >>> decode_rgb(file.getvalue()).shape
        (2, 4, 3)
    """
    try:
        opened = Image.open(BytesIO(data))
    except UnidentifiedImageError:  # its message would name a BytesIO
        raise ValueError("not an image that Pillow can read") from None
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
"""The transpose that shows an image upright, by EXIF orientation. `ImageOps.exif_transpose` also rewrites EXIF data."""


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1, upright, if there is none that can be read."""
    try:
        number = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # any error of Pillow about the bytes
        return 1
    return int(number) if number in _TRANSPOSES else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to RGB.

    Transparency is dropped. Gray levels of more than 8 bits are scaled to 8 bits, where Pillow clips them: modes I;16,
    I;16B, I;16L by their number of bits; I, which may have 32 bits, as 16 bits if it comes from a PNG or PGM file or
    has a level above 255. Levels of F are kept.

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
    """Return the levels of an image of mode I;16, I;16B, I;16L, I or F with 8 bits, uint8 (height, width)."""
    levels = np.asarray(image)
    low, high = (levels.min(), levels.max()) if levels.size else (0, 0)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        if not -0.5 <= low <= high < 255.5:  # nor NaN
            raise ValueError(
                f"its floating-point levels are in {low:g} to {high:g}, not in 0 to 255: save it as 8 bits"
            )
        if 0 < high <= 1:
            raise ValueError("its floating-point levels are in 0 to 1, or too dark to tell: save it as 8 or 16 bits")
        levels = np.rint(levels)
    elif image.mode != "I":
        levels = levels >> (tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 8)
    elif not 0 <= low <= high < 2**16:
        raise ValueError(f"its levels are in {low} to {high}, not in 0 to 65535: save it as 8 or 16 bits")
    elif image.format in ("PNG", "PPM") or high > 255:
        levels = levels >> 8
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # 0 is white: of these modes, Pillow ignores it
        levels = 255 - levels
    return levels.astype(np.uint8)
