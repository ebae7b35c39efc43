"""Encode one sample: an image as FFCV's RGBImageField stores it, a JPEG file unchanged, or its coefficients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from backports.zstd import CompressionParameter
from PIL import Image, UnidentifiedImageError

from .. import libturbojpeg
from ..errors import require
from .images import DCT, JPG, RAW, ImageFile, Stored, decode_rgb, orientation, read

_LARGEST_SIDE = {JPG: 65_500, RAW: 65_535, DCT: 65_500}  # px: the limits of libjpeg and of a uint16
_CHECKED_AREA = 2**26  # px; for larger JPEGs the file's size is checked before memory is allocated
DCT_ARGUMENTS = b"ffcv_cropmix.DCTImageField 1"
"""Arguments of a field of mode dct in a .beton file: its name and the version of its layout"""
_COLORS = (libturbojpeg.TJCS_RGB, libturbojpeg.TJCS_YCBCR, libturbojpeg.TJCS_GRAY)  # not CMYK, which FFCV cannot decode


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How images are stored.

    Raises:
        ValueError: an option is out of range.
    """

    max_resolution: int = 500
    """Shrink images whose longer side exceeds this, px; 0: never"""
    write_mode: Literal["raw", "jpg", "dct", "smart", "proportion"] = "jpg"
    """raw: pixels; jpg: JPEG; dct: the coefficients of a JPEG, faster to decode; smart: jpg above smart_threshold, else
    raw; proportion: jpg at random, else raw"""
    dct_level: int = 1
    """dct: zstd's compression level; a negative level gives larger files that are faster to read"""
    smart_threshold: int | None = None
    """smart: bytes of pixels above which an image is stored as JPEG; required for smart"""
    compress_probability: float = 0.5
    """proportion: chance that an image is stored as JPEG; depends on seed and index alone"""
    jpeg_quality: int = 90
    """Quality of encoded JPEGs, 0 to 100"""
    reencode: bool = False
    """Encode every image, also JPEG files that could be stored unchanged"""
    exif_transpose: bool = False
    """Rotate images as their EXIF orientation says"""
    seed: int = 0
    """proportion: seed of the random choice"""

    def __post_init__(self) -> None:
        require(self.max_resolution >= 0, "max_resolution", ">= 0 px", self.max_resolution)
        needed = self.write_mode == "smart"
        threshold = self.smart_threshold
        require(not needed or threshold is not None, "smart_threshold", "given for write_mode smart, bytes", threshold)
        require(threshold is None or threshold >= 0, "smart_threshold", ">= 0 bytes", threshold)
        probability = self.compress_probability
        require(0 <= probability <= 1, "compress_probability", "in [0, 1]", probability)
        require(0 <= self.jpeg_quality <= 100, "jpeg_quality", "in 0 to 100", self.jpeg_quality)
        least, most = CompressionParameter.compression_level.bounds()
        require(least <= self.dct_level <= most, "dct_level", f"in {least} to {most}", self.dct_level)


class Encoded(NamedTuple):
    """An encoded sample."""

    mode: int
    height: int
    width: int
    data: bytes
    origin: Literal["pixels", "file", "damaged file", "other file"] = "pixels"
    """file: a JPEG file unchanged, or its coefficients; damaged file: encoded again because libjpeg reports an error;
    other file: encoded again because mode dct cannot reproduce the JPEG's pixels"""


def encode(index: int, image: np.ndarray, options: EncodeOptions) -> Encoded:
    """Encode an image, uint8 (height, width, 3), as FFCV's RGBImageField or as a DCTImageField does.

    Args:
        index: index of the image in its source, for `write_mode="proportion"`.
        image: the pixels.
        options: how to store it.

    Raises:
        ValueError: a side is too long for the format.

    Example:
        >>> sample = encode(0, np.zeros((20, 10, 3), np.uint8), EncodeOptions(write_mode="raw", max_resolution=10))
        >>> sample.height, sample.width, len(sample.data)
        (10, 5, 150)
    """
    longest = max(image.shape[:2])
    if 0 < options.max_resolution < longest:
        ratio = options.max_resolution / longest
        height, width = (max(int(side * ratio), 1) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    height, width, _ = image.shape
    mode = _mode(index, height, width, options)
    limit = _LARGEST_SIDE[mode]
    if max(height, width) > limit:
        raise ValueError(f"{height} x {width} px, but a side can have at most {limit}: use --max_resolution")
    if mode == RAW:
        return Encoded(RAW, height, width, image.tobytes())
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, options.jpeg_quality])
    if mode == JPG:
        return Encoded(JPG, height, width, data.tobytes())
    sample = _as_dct(data.tobytes(), _decode(data.tobytes(), height, width), options.dct_level)
    if sample is None:
        raise ValueError("its coefficients cannot be stored, or do not decode to the same pixels: use --write_mode jpg")
    return Encoded(DCT, height, width, sample)


def _as_dct(data: bytes, pixels: np.ndarray | None, level: int) -> bytes | None:
    """Encode a JPEG with these pixels, gray or YCbCr, in mode dct; None if that does not decode to the same pixels."""
    from .dct import decode_dct, encode_dct  # imports numba, which takes a second

    if pixels is None:
        return None
    height, width, _ = pixels.shape
    sample = encode_dct(data, height, width, level)
    decoded = decode_dct(sample, height, width) if sample else None
    return sample if decoded is not None and np.array_equal(decoded, pixels) else None


def encode_file(index: int, image: ImageFile | np.ndarray, options: EncodeOptions, largest: int) -> Encoded:
    """Encode an image of a source: store a JPEG file unchanged if possible, else encode its pixels.

    A JPEG is stored unchanged if it is RGB or gray, FFCV can decode it, it is not to be shrunk, rotated or stored raw,
    and it is not too large. Progressive coding, EXIF tags and bytes after its end make no difference. In mode dct its
    coefficients are stored if it is gray or YCbCr.

    Args:
        index: index of the image in the source.
        image: the file, or pixels, uint8 (height, width, 3).
        options: how to store it.
        largest: most bytes that a sample may have.

    Raises:
        ValueError: the sample is too large.
        Exception: any error of Pillow about the bytes.
    """
    data = image if isinstance(image, np.ndarray) else read(image)
    if isinstance(data, np.ndarray):
        encoded = encode(index, data, options)
    else:
        pixels, damaged, other = None, False, False
        header = _read_header(data) if data.startswith(b"\xff\xd8") else None
        if header and header[0] * header[1] > max(_CHECKED_AREA, 64 * 8 * len(data)):  # a bit for each block
            raise ValueError(f"it is cut off: {len(data):,} bytes are too few for {header[0]} x {header[1]} px")
        if data.startswith(b"\xff\xd8") and not options.reencode:
            damaged = header is None
            if header and not (options.exif_transpose and _is_turned(data)):
                height, width, color, unusual = header
                mode = _mode(index, height, width, options)
                fits = max(height, width) <= (options.max_resolution or _LARGEST_SIDE[mode]) and len(data) <= largest
                if fits and mode == JPG and color in _COLORS:
                    if _is_sound(data, height, width, unusual):
                        return Encoded(JPG, height, width, data, "file")
                    damaged = True
                elif color in _COLORS:
                    pixels = _decode(data, height, width)
                    damaged = fits and pixels is None
                if fits and mode == DCT and not damaged:
                    sample = _as_dct(data, pixels, options.dct_level) if color != libturbojpeg.TJCS_RGB else None
                    if sample is not None:
                        return Encoded(DCT, height, width, sample, "file")
                    other = True
        if pixels is None:
            pixels = decode_rgb(data, options.exif_transpose)
        encoded = encode(index, pixels, options)
        if encoded.mode != RAW and (damaged or other):
            encoded = encoded._replace(origin="damaged file" if damaged else "other file")
    if len(encoded.data) > largest:
        raise ValueError(f"it takes {len(encoded.data)} bytes, but a page has {largest}: use --max_resolution")
    return encoded


def most_bytes(index: int, image: ImageFile, options: EncodeOptions) -> int:
    """Return an upper bound of the bytes that `encode_file` makes of an image file, from its header.

    The bound is the size of the pixels; for a JPEG that may be stored unchanged it is twice the file, since a damaged
    one is encoded again, and in mode dct four times, since the lowest levels of zstd hardly compress.
    """
    if isinstance(image, Stored):
        height, width, size, is_jpeg = image.height, image.width, image.size, image.mode != RAW
    else:
        data = image if isinstance(image, Path) else BytesIO(bytes(read(image)))
        size = data.stat().st_size if isinstance(data, Path) else len(data.getbuffer())
        with Image.open(data) as opened:
            height, width = opened.height, opened.width
            is_jpeg = opened.format in ("JPEG", "MPO") and opened.mode in ("RGB", "L")
            is_jpeg &= not (options.exif_transpose and orientation(opened) > 1)
    ratio = min(1, (options.max_resolution or math.inf) / max(height, width))
    pixels = math.ceil(3 * height * width * ratio**2)
    if not is_jpeg or options.reencode or not _may_be_kept(index, height, width, options):
        return pixels
    return 4 * size + 4096 if options.write_mode == "dct" else max(size, min(2 * size, pixels))


def _mode(index: int, height: int, width: int, options: EncodeOptions) -> int:
    if options.write_mode == "dct":
        return DCT
    if options.write_mode == "smart":
        as_jpg = 3 * height * width > (options.smart_threshold or 0)
    elif options.write_mode == "proportion":
        as_jpg = _uniform(options.seed, index) < options.compress_probability
    else:
        as_jpg = options.write_mode == "jpg"
    return JPG if as_jpg else RAW


def _may_be_kept(index: int, height: int, width: int, options: EncodeOptions) -> bool:
    mode = _mode(index, height, width, options)
    return mode != RAW and max(height, width) <= (options.max_resolution or _LARGEST_SIDE[mode])


def _uniform(seed: int, index: int) -> float:
    """Return a number in [0, 1) that depends on seed and index alone."""
    return int.from_bytes(blake2b(f"{seed} {index}".encode(), digest_size=8).digest(), "big") / 2**64


def _is_turned(data: bytes) -> bool:
    try:
        with Image.open(BytesIO(data)) as opened:
            return orientation(opened) > 1
    except UnidentifiedImageError:
        return False


@contextmanager
def _new_handle() -> Iterator[int]:
    """Provide a handle for one call: it would keep the tables of the last JPEG, and refuse all JPEGs after an error."""
    handle = libturbojpeg.new_handle()
    try:
        yield handle
    finally:
        libturbojpeg.destroy_handle(handle)


def _read_header(data: bytes) -> tuple[int, int, int, bool] | None:
    """Return height, width, colour space of a JPEG, and whether libjpeg-turbo has no name for its chroma subsampling.

    None if libjpeg-turbo reports an error.
    """
    stored, header = np.frombuffer(data, np.uint8), np.zeros(4, np.int32)
    at = header.ctypes.data
    with _new_handle() as handle:
        result = libturbojpeg.read_header(handle, stored.ctypes.data, len(data), at, at + 4, at + 8, at + 12)
        fatal = libturbojpeg.error_code(handle) == libturbojpeg.TJERR_FATAL
    width, height, sampling, color = header.tolist()
    unusual = sampling < 0 and fatal
    sound = (result == 0 or unusual) and height > 0  # for a file with tables only, it reports success and sets nothing
    return (height, width, color, unusual) if sound else None


def _decompress(data: bytes, pixels: np.ndarray, pixel_format: int, flags: int) -> bool:
    """Decode a JPEG into `pixels`, uint8 (height, width, ...), of its size or a fraction; False on a warning."""
    stored = np.frombuffer(data, np.uint8)
    height, width = pixels.shape[:2]
    at = (stored.ctypes.data, len(data), pixels.ctypes.data)
    with _new_handle() as handle:
        return not libturbojpeg.decompress(handle, *at, width, 0, height, pixel_format, flags)


def _is_sound(data: bytes, height: int, width: int, unusual: bool) -> bool:
    """Return whether FFCV's decoder decodes a JPEG without a warning.

    Decoding to an eighth of the size in gray reads all entropy-coded data, where damage shows, without making all
    pixels: 0.91 ms instead of 1.27 per image of ImageNet (Pillow: 2.1). JPEGs with unusual subsampling are decoded in
    full: some decode to an eighth but not to full size in colour.
    """
    if unusual:
        pixels = np.empty((height, width, 3), np.uint8)
        return _decompress(data, pixels, libturbojpeg.TJPF_RGB, libturbojpeg.FLAGS)
    eighth = np.empty((-(-height // 8), -(-width // 8)), np.uint8)
    return _decompress(data, eighth, libturbojpeg.TJPF_GRAY, libturbojpeg.FLAGS)


def _decode(data: bytes, height: int, width: int) -> np.ndarray | None:
    """Decode a JPEG to the same pixels as Pillow, uint8 (height, width, 3), but faster; None if it is not sound."""
    pixels = np.empty((height, width, 3), np.uint8)
    return pixels if _decompress(data, pixels, libturbojpeg.TJPF_RGB, libturbojpeg.ACCURATE) else None
